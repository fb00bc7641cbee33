"""`qwen3vl notebook` where a JupyterLab is open already: its root folder, the kernel for it, and whether it can draw the widgets."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small

FOLDER = "qwen3vl-notebooks"
"""Where the examples go, in the root folder of the open JupyterLab."""
KERNEL = {"name": "qwen3vl", "display_name": "Qwen3-VL", "language": "python"}
EXTENSIONS = ("@jupyter-widgets/jupyterlab-manager", "anywidget")
"""What a JupyterLab needs in its own environment to draw the widgets."""
PACKAGES = "ipywidgets anywidget"
LARGEST = 1 << 20


def root_of(environment: Mapping[str, str]) -> Path | None:
    """The root folder of the Jupyter server that this process belongs to, as a terminal in it or a cell; None outside of one."""
    root = environment.get("JUPYTER_SERVER_ROOT")
    if root:  # its terminals
        return Path(root).expanduser()
    server = environment.get("JPY_PARENT_PID", "")
    if not server.isdigit():
        return None
    with contextlib.suppress(ImportError, OSError, ValueError, KeyError, TypeError):
        runtime = Path(importlib.import_module("jupyter_core.paths").jupyter_runtime_dir())
        return Path(json.loads(read_small(runtime / f"jpserver-{server}.json", LARGEST))["root_dir"])
    return Path.cwd()  # a cell's folder is in the root


def register_kernel(variables: Mapping[str, str]) -> Path:
    """Make this Python a kernel named `Qwen3-VL` for every JupyterLab of this user. variables: added to its environment.

    Raises RequestError.
    """
    if importlib.util.find_spec("ipykernel") is None or importlib.util.find_spec("ipywidgets") is None:
        raise RequestError(f"notebook: {sys.executable} has no kernel and no widgets; pip install 'qwen3vl-console[notebook]'")
    install: Any = importlib.import_module("ipykernel.kernelspec").install
    try:
        return Path(install(user=True, kernel_name=KERNEL["name"], display_name=KERNEL["display_name"], env=dict(variables)))
    except OSError as error:
        raise RequestError(f"{error.filename}: {error.strerror}; name a folder for Jupyter's data: export JUPYTER_DATA_DIR=DIR") from None


def lacking(environment: Mapping[str, str]) -> str | None:
    """The Python of the open JupyterLab if that cannot draw the widgets; None if it can, or is not found."""
    python = _server_python(os.getppid())
    if python is None:
        return None
    shared = [python.parent.parent / "share" / "jupyter", Path("/usr/local/share/jupyter"), Path("/usr/share/jupyter")]
    home = environment.get("JUPYTER_DATA_DIR") or "~/.local/share/jupyter"
    shared += [Path(home).expanduser(), *map(Path, filter(None, environment.get("JUPYTER_PATH", "").split(os.pathsep)))]
    found = all(any((place / "labextensions" / name).is_dir() for place in shared) for name in EXTENSIONS)
    return None if found else str(python)


def _server_python(process: int) -> Path | None:
    """The Python of the Jupyter server among a process and those it descends from; None if there is none, or no /proc."""
    while process > 1:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
        program = Path(os.fsdecode(words[0]))
        if program.name.startswith("python") and program.is_absolute() and any(b"jupyter" in word for word in words[1:4]):
            return program
    return None
