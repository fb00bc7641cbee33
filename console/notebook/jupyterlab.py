"""`qwen3vl notebook`: the example notebooks, in the JupyterLab that is open, else in one that it starts. Imports no widgets."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from console.notebook import inside_jupyter
from console.notebook.examples import Copied, copy_examples
from console.runs import plan_record
from qwen3vl_core.errors import EXIT_DONE, RequestError

DEFAULT_FOLDER = Path("~/.qwen3vl/notebooks")


def copy(folder: Path | None, runs: Path | None) -> int:
    """Copy or refresh the examples for the JupyterLab that is open, register the kernel that they name, and print where they are.

    Outside of Jupyter: into `folder`. Raises RequestError.
    """
    root = inside_jupyter.root_of(os.environ)
    default = DEFAULT_FOLDER if root is None else root / inside_jupyter.FOLDER
    place = _folder(folder or default)
    variables = environment(runs, {"PATH": os.environ.get("PATH", "")})
    inside_jupyter.register_kernel(variables)
    _say(copy_examples(place, inside_jupyter.KERNEL), "in")
    if root is not None and place.is_relative_to(root.absolute()):
        inner = place.relative_to(root.absolute())
        print(f"in JupyterLab's list of files: {inner}; in its address: …/lab/tree/{inner}")
    elif root is not None:
        print(f"JupyterLab shows files below {root} only; leave --dir out, and they are copied there")
    print(f"their kernel: {inside_jupyter.KERNEL['display_name']}, {sys.executable}")
    python = inside_jupyter.lacking(os.environ) if root is not None else None
    if python is not None:
        print(f"this JupyterLab cannot draw the widgets yet: {python} -m pip install {inside_jupyter.PACKAGES}, then reload its page")
    return EXIT_DONE


def _say(copied: Copied, where: str) -> None:
    print("\n".join(f"  {name}" for name in copied.names) + f"\n{where} {copied.folder}")
    print("".join(f"  {line}\n" for line in copied.lines), end="", flush=True)


def _folder(folder: Path) -> Path:
    root = Path(folder).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise RequestError(f"--dir {root}: is a file; choose a folder")
    return root


def command(folder: Path, port: int | None, ip: str, browser: bool, base_url: str | None = None) -> list[str]:
    """The command that starts JupyterLab in a folder, as a list of words. JupyterLab creates and prints a token, which clients need."""
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", f"--ServerApp.ip={ip}"]
    words += [f"--ServerApp.port={port}"] if port is not None else []
    words += [f"--ServerApp.base_url={base_url}"] if base_url else []
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


def start(folder: Path | None, runs: Path | None, port: int | None, ip: str, browser: bool, base_url: str | None = None) -> int:
    """Replace this process by JupyterLab. base_url: the path below which it is served. Raises RequestError when it cannot be started."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise RequestError("notebook: JupyterLab is not installed; pip install 'qwen3vl-console[notebook]'")
    if base_url is not None and not base_url.startswith("/"):
        raise RequestError(f"--base-url {base_url}: must begin with /; use --base-url /{base_url}")
    root = _folder(folder or DEFAULT_FOLDER)
    _say(copy_examples(root), "the link below opens them, in")
    words = command(root, port, ip, browser, base_url)
    try:
        os.execve(words[0], words, environment(runs, os.environ))
    except OSError as error:
        raise RequestError(f"{words[0]}: {error.strerror}; install JupyterLab again") from None
