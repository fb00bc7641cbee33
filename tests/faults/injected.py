"""Commands in processes whose file calls fail, or that are killed at one of them. See inject.c.

A server has everything imported and forks a process for each command, so that a case costs the command's own work.
`python -m tests.faults.injected` is the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
KILL, EIO, ENOSPC, SLOW = "kill", "EIO", "ENOSPC", "slow"
_MODES = {"off": 0, KILL: 1, EIO: 2, ENOSPC: 3, SLOW: 4}
FAULTS = (KILL, EIO, ENOSPC)
DEADLINE_SECONDS = 300


class Done(NamedTuple):
    """How a command ended."""

    code: int
    """Exit code; of a killed one the signal, negative."""
    calls: int
    """File calls that it made below the prefix."""
    said: str


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def library(folder: Path) -> Path:
    """Build inject.c."""
    built = folder / "inject.so"
    words = [str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(built), str(Path(__file__).with_name("inject.c")), "-ldl"]
    subprocess.run(words, check=True)
    return built


class Commands:
    """The server, for `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._library = library(folder)

    def __enter__(self) -> Commands:
        environment = os.environ | {"LD_PRELOAD": str(self._library), "INJECT": str(self._library), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.injected"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(DEADLINE_SECONDS)
        self._server.stdout.close()

    def run(
        self, job: list[str], prefix: Path, fault: str = "off", at: int = 0, environment: Mapping[str, str] = MappingProxyType({})
    ) -> Done:
        """Run a command of `qwen3vl`, or with `train RUN_DIR` a training; its calls on paths that begin with `prefix` count.

        environment: variables for it. at: the call, from 1 on, at which the fault is; of SLOW the milliseconds that each write takes."""
        assert self._server.stdin is not None and self._server.stdout is not None
        log = self.folder / "said"
        request = {"job": job, "prefix": str(prefix), "mode": _MODES[fault], "at": at, "log": str(log), "environment": dict(environment)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Done(answer["code"], answer["calls"], log.read_text(errors="replace"))


def _serve(answers: Any) -> None:
    import torch

    import qwen3vl_core.training.loop
    from qwen3vl_core.checkpoint import convert
    from qwen3vl_core.data.prepare import command

    assert convert and command and qwen3vl_core.training.loop
    torch.set_num_threads(1)
    injected = ctypes.CDLL(os.environ.pop("INJECT"))
    # processes that a command starts, and does not fork, are not armed
    os.environ.pop("LD_PRELOAD")
    injected.calls.restype = ctypes.c_long
    injected.arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_char_p]
    for line in sys.stdin:
        request = json.loads(line)
        # the counter is made before the fork, and shared
        injected.arm(0, 0, 0, b"")
        child = os.fork()
        if not child:
            _command(request, injected)
        _, status = os.waitpid(child, 0)
        answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status), "calls": injected.calls()}) + "\n")
        answers.flush()


def _command(request: dict[str, Any], injected: Any) -> None:
    code = 99
    try:
        said = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.environ |= {"QWEN3VL_PROGRESS": "none"} | request["environment"]
        job = request["job"]
        from qwen3vl_core.cli import main
        from qwen3vl_core.training.__main__ import main as train

        injected.arm(request["mode"], request["at"], errno.EIO, request["prefix"].encode())
        code = train(job[1:]) if job[0] == "train" else main(job)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"Traceback: {error!r}\n".encode())
    finally:
        os._exit(code)


def digest(folder: Path, without: tuple[str, ...] = ()) -> str | None:
    """Of the names and the bytes of all files in a folder; None where there is none."""
    if not folder.exists():
        return None
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without):
        total.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return total.hexdigest()


def moments(calls: int, most: int) -> Iterator[int]:
    """Up to `most` of the calls from 1 to `calls`, evenly, the first and the last among them."""
    count = min(calls, most)
    return iter(sorted({1 + round(place * (calls - 1) / max(count - 1, 1)) for place in range(count)}))


if __name__ == "__main__":
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(_answers)
