"""How a process that writes a checkpoint returns its write results, and the digests of its files, to its parent process.

Upstream: Megatron-Core's queue for them belongs to a spawned manager process (`_get_write_results_queue`). A signal that asks
the process group to stop terminates that process, and the final checkpoint then fails; starting it also takes longer than
writing a small checkpoint.
Unnecessary from: unknown; 0.19.2 still spawns it.
"""

from __future__ import annotations

import os
import pickle
import queue
import tempfile
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

from qwen3vl_core.digested_file import DigestedFile, WrittenDigests


class Written:
    """A queue of one message in an unnamed temporary file: from a forked process to its parent, or within one process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def put(self, value: Any) -> None:
        """Write the message. Its length is written last, so that an incomplete message is not read."""
        message = pickle.dumps(value)
        descriptor, at = self._file.fileno(), 8
        while message:
            count = os.pwrite(descriptor, message, at)
            message, at = message[count:], at + count
        os.pwrite(descriptor, (at - 8).to_bytes(8, "little"), 0)

    def get_nowait(self) -> Any:
        """The message; raises queue.Empty when there is none. Only what this program wrote itself can be in the file."""
        length = os.pread(self._file.fileno(), 8, 0)
        if len(length) < 8:
            raise queue.Empty
        remaining, chunks, at = int.from_bytes(length, "little"), [], 8
        while remaining:
            chunk = os.pread(self._file.fileno(), min(remaining, 1 << 26), at)
            if not chunk:
                raise queue.Empty
            chunks.append(chunk)
            remaining, at = remaining - len(chunk), at + len(chunk)
        os.pwrite(self._file.fileno(), bytes(8), 0)
        os.ftruncate(self._file.fileno(), 0)
        return pickle.loads(b"".join(chunks))


def patch_next_save() -> WrittenDigests:
    """Give the next save a fresh message, so that a failed save leaves no results for it, and have its files digested while they are
    written. Returns where the digests will be."""
    filesystem_async._results_queue = Written()
    digests = WrittenDigests()
    # it opens its files by the built-in function's name, for nothing but to write a new file
    filesystem_async.open = lambda path, mode: DigestedFile(path, digests)
    return digests
