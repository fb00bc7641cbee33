"""How a process that writes a checkpoint tells the one that started it what it has written.

Upstream: Megatron-Core's queue for it is one of a manager process that is spawned (`_get_write_results_queue`). That process
dies of the signal that asks a whole process group to stop, and the checkpoint at the end with it; and starting it takes longer
than writing a small checkpoint.
Unnecessary from: unknown; 0.19.2 still spawns it.
"""

from __future__ import annotations

import os
import pickle
import queue
import tempfile
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async


class Written:
    """One message through a nameless file: from a forked process to its parent, or within one process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def put(self, value: Any) -> None:
        """Leave the message. Its length comes last, so that half a message is none."""
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
        wanted, parts, at = int.from_bytes(length, "little"), [], 8
        while wanted:
            part = os.pread(self._file.fileno(), min(wanted, 1 << 26), at)
            if not part:
                raise queue.Empty
            parts.append(part)
            wanted, at = wanted - len(part), at + len(part)
        os.pwrite(self._file.fileno(), bytes(8), 0)
        os.ftruncate(self._file.fileno(), 0)
        return pickle.loads(b"".join(parts))


def patch_next_save() -> None:
    """The next save has a message of its own, so that one that failed leaves nothing for it."""
    filesystem_async._results_queue = Written()
