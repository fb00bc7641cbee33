"""What the worker processes of prepare do, and the processes themselves. Imports no torch.

Every task says what it needs and where its bytes go, so that the result does not depend on how many processes there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any

from qwen3vl_core.data.prepare_check import Sample
from qwen3vl_core.data.tar import BLOCK, header
from qwen3vl_core.errors import WorkError

MOST_WORKERS = 16
_AT_ONCE = 4 << 20
_BUFFERS = 512
"""Buffers in one write; systems take 1,024."""
_PDEATHSIG = 1
_state: Any = None


class Workers:
    """`with Workers(count, state) as workers: for result in workers.map(method, tasks)`; results in the tasks' order.

    count: 0 is one a core, where the work is worth starting them. method: a function of (state, task); the state is sent
    to every process once. A single task, or a count of 1, is done in this process.
    """

    def __init__(self, count: int, state: Any) -> None:
        self.count, self._asked = worker_count(count), count > 1
        self._own, self._pool = state, None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, method: Callable[[Any, Any], Any], tasks: Iterable[Any], small: bool = False) -> Iterator[Any]:
        """small: not worth starting processes for. Raises what a task raises; WorkError when a process dies."""
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        if self.count <= 1 or len(first) < 2 or (small and not self._asked):
            for task in chain(first, tasks):
                yield method(self._own, task)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, _context(), _begin, (self._own, os.getpid()))
        waiting: deque[Future] = deque()
        try:
            for task in chain(first, tasks):
                waiting.append(self._pool.submit(_do, method, task))
                # enough to keep all busy, few enough to hold only some results
                if len(waiting) > 4 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkError("a worker process was killed, often for want of memory; use fewer --workers") from error
        finally:
            for future in waiting:
                future.cancel()


def worker_count(wanted: int) -> int:
    """`wanted`, or for 0 as many as there are cores to run on."""
    if wanted:
        return wanted
    with contextlib.suppress(AttributeError):
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return min(os.cpu_count() or 1, MOST_WORKERS)


def _context() -> multiprocessing.context.BaseContext:
    """Forking takes milliseconds, but other threads' locks would stay shut for ever in the child."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if alone and "fork" in methods else "forkserver" if "forkserver" in methods else "spawn")


def _begin(state: Any, parent: int) -> None:
    global _state
    _state = state
    # Ctrl-C reaches the whole group: the parent ends the work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # a parent that is killed cannot tell; without this its workers would wait for tasks for ever
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 != parent:
        os._exit(1)


def _do(method: Callable[[Any, Any], Any], task: Any) -> Any:
    return method(_state, task)


def write_stretch(root: Path, shard: Path, offset: int, samples: list[Sample]) -> tuple[int, int]:
    """Write samples into a shard that is there, from `offset` on; returns (bytes, their CRC-32).

    Raises WorkError when a file is not what it was when it was checked, OSError as the disk does.
    """
    file = os.open(shard, os.O_WRONLY | os.O_CLOEXEC)
    out = _Out(file, offset)
    folder = f"{root}/"
    try:
        for sample in samples:
            key = f"{sample.number:08d}."
            out.add(header(key + "json", len(sample.payload)), sample.payload)
            for part, name, size in zip(sample.parts, sample.files, sample.sizes, strict=True):
                out.add(header(key + part, size))
                _copy(folder + name, size, sample, out)
        out.flush()
    finally:
        os.close(file)
    return out.at - offset, out.sum


class _Out:
    """Gathers buffers and writes them together, with a checksum of all."""

    def __init__(self, file: int, at: int) -> None:
        self.file, self.at, self.sum = file, at, 0
        self._buffers: list[bytes] = []
        self._pending = 0

    def add(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sum = zlib.crc32(piece, self.sum)
            self._buffers.append(piece)
            self._pending += len(piece)
        rest = -(self.at + self._pending) % BLOCK
        # members begin on blocks, and so does every stretch
        if rest:
            self._buffers.append(bytes(rest))
            self.sum = zlib.crc32(self._buffers[-1], self.sum)
            self._pending += rest
        if self._pending >= _AT_ONCE or len(self._buffers) >= _BUFFERS:
            self.flush()

    def flush(self) -> None:
        if not self._buffers:
            return
        done = write_at(self.file, self._buffers, self.at)
        if done < self._pending:
            rest = memoryview(b"".join(self._buffers))
            while done < self._pending:
                done += write_at(self.file, [rest[done:]], self.at + done)
        self.at += self._pending
        self._buffers, self._pending = [], 0


def write_at(file: int, buffers: list, offset: int) -> int:
    """Bytes written, as `os.pwritev`."""
    return os.pwritev(file, buffers, offset)


def _copy(path: str, size: int, sample: Sample, out: _Out) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            left = size
            while left:
                # whole blocks, so that nothing is padded in between
                data = os.read(file, min(left, _AT_ONCE))
                while data and len(data) < min(left, _AT_ONCE):
                    more = os.read(file, min(left, _AT_ONCE) - len(data))
                    if not more:
                        break
                    data += more
                if len(data) < min(left, _AT_ONCE):
                    break
                left -= len(data)
                out.add(data)
            longer = os.fstat(file).st_size != size
        finally:
            os.close(file)
    except OSError as error:
        if error.filename is None:
            # from the shard's disk, not from this file's
            raise
        raise WorkError(f"record {sample.number}: {path}: {error.strerror}; it was there before; run the prepare again") from error
    if left or longer:
        raise WorkError(f"record {sample.number}: {path} changed while it was read; run the prepare again")


def sum_stretch(shard: Path, offset: int, size: int) -> int:
    """CRC-32 of a stretch of a file; of what is there of it, when it is shorter."""
    made = 0
    with open(shard, "rb", buffering=0) as file:
        file.seek(offset)
        while size > 0:
            data = file.read(min(size, _AT_ONCE))
            if not data:
                break
            made = zlib.crc32(data, made)
            size -= len(data)
    return made
