"""Checks that what a run has written is still that, by the digests of its files. Imports no torch.

`python -m console.runs.check RUN_DIR` does so in the background, with the lowest priority, and writes how far it is to `check.json`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from console.runs import processes
from console.runs.state import boot_id, host, is_here, read_json, write_json
from console.runs.store import Run
from qwen3vl_core import file_digests
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import CHECK, CHECKPOINTS, VERSION, checkpoint_step

WRITE_SECONDS = 1.0
LOWEST_PRIORITY = 19


class Checked(NamedTuple):
    """One checkpoint, or the target of a conversion."""

    step: int
    """0 for a conversion's."""
    path: Path
    bytes: int
    """Size of its files according to the digests; 0 if it has none."""
    problem: str | None
    """The first difference found; None if there is none."""
    unknown: bool = False
    """It has no digests, because an older version or another program wrote it."""

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "path": str(self.path)}


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a finetune in ascending order, or of a conversion's target."""
    if run.kind == "convert":
        target = Path(str(run.options.get("target") or ""))
        return [(0, folder) for folder in (target / "release", target) if target.is_absolute() and folder.is_dir()]
    try:
        folders = [path for path in (run.path / CHECKPOINTS).iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted((step, path) for path in folders if (step := checkpoint_step(path.name)) is not None)


def check(step: int, path: Path, read_data: bool, told: Callable[[int], None] | None = None) -> Checked:
    """Compare one checkpoint with its digests. read_data: every byte; else the lengths, and the small files whole. told: called with
    the bytes that were read since."""
    try:
        digests = file_digests.read(path)
        if digests is None:
            return Checked(step, path, 0, None, unknown=True)
        size = sum(length for length, _ in digests.values())
        wanted = digests if read_data else {name: digest for name, digest in digests.items() if digest[0] <= file_digests.SMALL}
        problem = file_digests.sizes_problem(path, digests) or file_digests.problem(path, wanted, told=told)
        return Checked(step, path, size, problem)
    except (ValueError, OSError) as error:
        return Checked(step, path, 0, str(error))


def bytes_to_read(saved: list[tuple[int, Path]]) -> int:
    """Of all files of these checkpoints."""
    return sum(file.stat().st_size for _, path in saved for file in path.iterdir() if file.is_file() and not file.is_symlink())


def state_of(run: Run) -> dict[str, Any]:
    """What the last check in the background has found so far, with `alive`; empty where there was none."""
    state = read_json(run.path / CHECK)
    pid = state.get("pid")
    if state:
        here = not state.get("done") and is_here(state)  # type: ignore[arg-type]  # the same two keys
        state["alive"] = here and isinstance(pid, int) and processes.start_of(pid) == state.get("start")
    return state


def start(run: Run) -> None:
    """Check every byte in the background. Raises RequestError while that is being done, WorkError when it cannot be started."""
    if state_of(run).get("alive"):
        raise RequestError(filled("run {}: is being checked already; qwen3vl runs check {} shows how far", run.id, run.number))
    from console.runs import plan_record  # imports the options' declarations, which a list of runs does not need

    environment = os.environ | {"PYTHONPATH": plan_record.python_path(os.environ.get("PYTHONPATH", ""))}
    try:
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(run.path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
        ).returncode = 0  # fmt: skip
    except OSError as error:
        raise WorkError(filled("run {}: the check could not be started ({}); try again later", run.id, error.strerror)) from None


def _work(run: Run) -> None:
    """The check in the background: `check.json` says how far it is, and in the end what it has found. Raises OSError on a full disk."""
    os.nice(LOWEST_PRIORITY)
    saved = checkpoints(run)
    state: dict[str, Any] = {
        "v": VERSION, "pid": os.getpid(), "start": processes.start_of(os.getpid()), "host": host(), "boot_id": boot_id(),
        "time": time.time(), "read": 0, "total": bytes_to_read(saved), "checkpoints": [], "done": False,
    }  # fmt: skip
    written = 0.0

    def told(count: int) -> None:
        nonlocal written
        state["read"] += count
        if time.monotonic() >= written + WRITE_SECONDS:
            written = time.monotonic()
            write_json(run.path / CHECK, state)

    told(0)
    for step, path in saved:
        state["checkpoints"].append(check(step, path, True, told).as_json())
    write_json(run.path / CHECK, state | {"time": time.time(), "done": True})


if __name__ == "__main__":
    _work(Run(Path(sys.argv[1])))
