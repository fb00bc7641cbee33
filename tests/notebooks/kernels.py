"""Runs notebooks in a separate kernel, with other values in the cell tagged `parameters`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

from tests.console.runs.jobs import until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
CELL_SECONDS = 600


def with_parameters(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> nbformat.NotebookNode:
    """The notebook with assignments added to its tagged cell."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    known = {line.split(" = ")[0] for line in cell.source.splitlines() if " = " in line}
    assert set(values) <= known, f"{set(values) - known} are no parameters"
    lines = [f"{name} = {f'Path({str(value)!r})' if isinstance(value, Path) else repr(value)}" for name, value in values.items()]
    cell.source = "\n".join([cell.source, *lines])
    return notebook


class Kernel:
    """A kernel in a folder, which notebooks run in one after another, each in an empty namespace. It ends with the block."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.manager = KernelManager(kernel_name="python3")

    def __enter__(self) -> Kernel:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false", "QWEN3VL_GRACE": "5",
        }  # fmt: skip
        self.manager.start_kernel(env=environment, cwd=str(self.place))
        return self

    def __exit__(self, *error: Any) -> None:
        self.end()

    def end(self) -> None:
        """End it as a user's shutdown does."""
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)

    def execute(self, name: str, extra: list[str] | None = None, **values: Any) -> nbformat.NotebookNode:
        """Run a notebook of the examples top to bottom; extra: cells to run after its own. Raises what a cell raises."""
        notebook = with_parameters(nbformat.read(FOLDER / name, 4), values)
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in extra or []]
        # what the notebook before left: its widgets, and its names
        empty = nbformat.v4.new_code_cell("import ipywidgets\nipywidgets.Widget.close_all()\n%reset -f\n")
        notebook.cells.insert(0, empty)
        NotebookClient(notebook, timeout=CELL_SECONDS, km=self.manager).execute()
        del notebook.cells[0]
        return notebook


def shown(cell: nbformat.NotebookNode, kind: str = "text/plain") -> str:
    """The outputs of a cell of one MIME type, and its printed text."""
    texts = [o.get("text", "") if o.output_type == "stream" else str(o.get("data", {}).get(kind, "")) for o in cell.get("outputs", [])]
    return "\n".join(texts)


@contextlib.contextmanager
def running_lab(home: Path, folder: Path, base: str = "/", **variables: str) -> Iterator[tuple[str, str, str]]:
    """`qwen3vl notebook` in `folder`: (address, token, what it printed before the link). It and its kernels end with the block.

    base: the path below which it is served.
    """
    words = [sys.executable, "-c", "import sys; from console.commands import notebook; notebook(sys.argv[1:])"]
    words += ["--dir", str(folder), "--no-browser", "--port", "18931", "--base-url", base]
    own = {name: str(home / name.lower()) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | own | variables
    log = home / "lab.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL)
    try:
        found = until(lambda: re.search(rf"(http://127\.0\.0\.1:\d+){base}lab\?token=([0-9a-f]{{20,}})", log.read_text()), 240)
        until(lambda: _answers(f"{found[1]}{base}api"), 240)
        yield found[1], found[2], log.read_text()[: found.start()]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(150)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
