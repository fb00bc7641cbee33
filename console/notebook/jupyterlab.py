"""`qwen3vl notebook`: JupyterLab on the example notebooks. Needs no widget; imports no Jupyter."""

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
    """Where this package's notebooks lie: in its source tree, or where an installation puts them. Raises RequestError."""
    root = plan_record.source_root()
    places = [root / "notebooks"] if root else []
    places.append(Path(sysconfig.get_path("data")) / INSTALLED)
    for place in places:
        if any(place.glob("*.ipynb")):
            return place
    raise RequestError(f"{places[0]}: the example notebooks are not there; install the package again, or give --dir with your own")


def put_examples(folder: Path) -> list[Path]:
    """Copy the example notebooks that `folder` does not have; gives all that are there. Raises RequestError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(examples().glob("*.ipynb")):
            target = folder / source.name
            if not target.exists():
                beside = target.with_name(target.name + ".tmp")
                shutil.copyfile(source, beside)
                os.replace(beside, target)
    except OSError as error:
        raise RequestError(f"--dir {folder}: {error.strerror}; choose a folder that you can write to") from None
    return sorted(folder.glob("*.ipynb"))


def command(folder: Path, port: int | None, ip: str, browser: bool) -> list[str]:
    """Words that start JupyterLab there. It makes and prints a token of its own; nobody comes in without it."""
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", f"--ServerApp.ip={ip}"]
    words += [f"--ServerApp.port={port}"] if port is not None else []
    words += [] if browser else ["--no-browser"]
    # cloud notebooks are root's own machines, where Jupyter otherwise refuses to start
    return words + (["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])


def environment(runs: Path | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the kernels get: this package from any folder, `!qwen3vl`, the run store, and a terminal in full colour."""
    made = {**inherited, "PYTHONPATH": plan_record.python_path(inherited.get("PYTHONPATH", ""))}
    made["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [inherited.get("PATH", "")])])
    if not made["PYTHONPATH"]:
        del made["PYTHONPATH"]
    if runs is not None:
        made["QWEN3VL_RUNS"] = str(runs)
    return made


def start(folder: Path | None, runs: Path | None, port: int | None, ip: str, browser: bool) -> int:
    """Become JupyterLab. Returns only by raising RequestError when it cannot be started."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise RequestError("notebook: JupyterLab is not installed; pip install 'qwen3vl-console[notebook]'")
    place = Path(folder or DEFAULT_FOLDER).expanduser().absolute()
    if place.exists() and not place.is_dir():
        raise RequestError(f"--dir {place}: is a file; choose a folder")
    notebooks = put_examples(place)
    print("\n".join(f"  {notebook.name}" for notebook in notebooks) + f"\nin {place}; the link below opens them", flush=True)
    words = command(place, port, ip, browser)
    try:
        os.execve(words[0], words, environment(runs, os.environ))
    except OSError as error:
        raise RequestError(f"{words[0]}: {error.strerror}; install JupyterLab again") from None
