"""`qwen3vl notebook`: starts JupyterLab on the example notebooks. Imports neither widgets nor Jupyter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from console.runs import plan_record
from qwen3vl_core.errors import RequestError

DEFAULT_FOLDER = Path("~/.qwen3vl/notebooks")
INSTALLED = Path("share") / "qwen3vl" / "notebooks"


def examples() -> Path:
    """The folder of the example notebooks, in the source tree or the installation. Raises RequestError."""
    root = plan_record.source_root()
    folders = [root / "notebooks"] if root else []
    folders.append(Path(sysconfig.get_path("data")) / INSTALLED)
    for folder in folders:
        if any(folder.glob("*.ipynb")):
            return folder
    raise RequestError(f"{folders[0]}: no example notebooks in it; install the package again, or give --dir with your own")


def copy_examples(folder: Path) -> list[Path]:
    """Copy missing example notebooks into `folder`. Returns all its notebooks. Raises RequestError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(examples().glob("*.ipynb")):
            target = folder / source.name
            if not target.exists():
                temporary = target.with_name(target.name + ".tmp")
                shutil.copyfile(source, temporary)
                os.replace(temporary, target)
    except OSError as error:
        raise RequestError(f"--dir {folder}: {error.strerror}; choose a folder that you can write to") from None
    return sorted(folder.glob("*.ipynb"))


def command(folder: Path, port: int | None, ip: str, browser: bool) -> list[str]:
    """The command that starts JupyterLab in a folder, as a list of words. JupyterLab creates and prints a token, which clients need."""
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", f"--ServerApp.ip={ip}"]
    words += [f"--ServerApp.port={port}"] if port is not None else []
    words += [] if browser else ["--no-browser"]
    # users of cloud notebooks are often root, for whom Jupyter otherwise refuses to start
    return words + (["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])


def environment(runs: Path | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """The kernels' environment: with this package, the `qwen3vl` command, and the run store."""
    variables = {**inherited, "PYTHONPATH": plan_record.python_path(inherited.get("PYTHONPATH", ""))}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [inherited.get("PATH", "")])])
    if not variables["PYTHONPATH"]:
        del variables["PYTHONPATH"]
    if runs is not None:
        variables["QWEN3VL_RUNS"] = str(runs)
    return variables


def start(folder: Path | None, runs: Path | None, port: int | None, ip: str, browser: bool) -> int:
    """Replace this process by JupyterLab. Raises RequestError when it cannot be started."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise RequestError("notebook: JupyterLab is not installed; pip install 'qwen3vl-console[notebook]'")
    root = Path(folder or DEFAULT_FOLDER).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise RequestError(f"--dir {root}: is a file; choose a folder")
    notebooks = copy_examples(root)
    print("\n".join(f"  {notebook.name}" for notebook in notebooks) + f"\nin {root}; the link below opens them", flush=True)
    words = command(root, port, ip, browser)
    try:
        os.execve(words[0], words, environment(runs, os.environ))
    except OSError as error:
        raise RequestError(f"{words[0]}: {error.strerror}; install JupyterLab again") from None
