"""The demo's model, and files that all processes of a test session share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import qwen3vl_core

DEMO = Path(qwen3vl_core.__file__).parent / "demo" / "base_hf"
"""The demo's base model as the package ships it."""


def once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this session, filled by `make(folder)` in the first process that asks; the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def run_demo(folder: Path) -> subprocess.CompletedProcess:
    """`qwen3vl demo --headless` in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "qwen3vl_core.cli", "demo", "--headless", "--dir", str(folder)],
        capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "100"}, check=False,
    )  # fmt: skip


def demo(tmp_path_factory) -> tuple[Path, str]:
    """(workspace, output) of the whole loop, which takes 100 CPU seconds and is shared by the tests. Read-only."""

    def make(folder: Path) -> None:
        done = run_demo(folder / "demo")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (folder / "printed").write_text(done.stdout)

    folder = once(tmp_path_factory, "whole-loop", make)
    return folder / "demo", (folder / "printed").read_text()
