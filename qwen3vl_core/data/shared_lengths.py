"""Lengths of samples, measured once for all loader processes of a machine.

Packing needs the lengths of all samples of a window in every loader process of every rank. Each process measures samples that none has
claimed, and reads what the others have measured: a table in shared memory, without locks and without waiting. A length is a function
of the sample, so it does not matter who writes it, nor whether two do: what is not there when it is needed is measured again.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_UNKNOWN, _CLAIMED, _UNUSABLE = 0, 1, 2
"""Values of the table that are no length: a sample has at least one token."""
_TOKENS_AT = 32
"""Bits of an entry below its tokens: visual tokens. One word holds both, so that no process reads half of an entry."""


class Length(NamedTuple):
    """Of a sample that can be used."""

    tokens: int
    visual_tokens: int


class SharedLengths:
    """Lengths of the samples of a split. Processes forked from this one share it, and where the launcher has started several ranks on this
    machine, so do they.

    After a fork only: a pickled copy is the receiving process's own.
    """

    def __init__(self, samples: int, content: Any) -> None:
        """content: everything that a length depends on, as JSON: ranks with another one have another table."""
        self._file: Path | None = None
        self._table = np.frombuffer(self._memory(samples * 8, content), dtype=np.int64)

    def find(self, number: int) -> Length | bool | None:
        """The sample's length; False when it cannot be used; None when nobody has measured it yet."""
        entry = int(self._table[number])
        if entry > _UNUSABLE:
            return Length(entry >> _TOKENS_AT, entry & (1 << _TOKENS_AT) - 1)
        return False if entry == _UNUSABLE else None

    def claim(self, number: int) -> bool:
        """Whether this process is the one to measure the sample; two that claim it within microseconds both are."""
        if self._table[number] != _UNKNOWN:
            return False
        self._table[number] = _CLAIMED
        return True

    def set(self, number: int, length: Length | None) -> None:
        """length: None for a sample that cannot be used."""
        self._table[number] = _UNUSABLE if length is None else length.tokens << _TOKENS_AT | length.visual_tokens

    def unlink(self) -> None:
        """Remove the name by which the other ranks find the table: after the first step they have it."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _memory(self, size: int, content: Any) -> Any:
        """Zeros that processes share: a file of the launcher's ranks, or where there is one rank or no space, anonymous memory."""
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            with contextlib.suppress(OSError, ValueError):
                file = _file_of_launcher(content)
                opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    if os.fstat(opened).st_uid != os.getuid():
                        raise OSError("another user's file")
                    # memory is promised now: without it, writing to the table would end the process
                    os.posix_fallocate(opened, 0, size)
                    mapped = mmap.mmap(opened, size)
                finally:
                    os.close(opened)
                self._file = file
                # a run that fails in its first step
                weakref.finalize(self, file.unlink, missing_ok=True)
                return mapped
        return mmap.mmap(-1, size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": self._table.copy(), "_file": None}


def _file_of_launcher(content: Any) -> Path:
    """A name that the ranks of one torchrun agent compute alike, and no other process. Raises OSError where /proc is missing."""
    parent = os.getppid()
    started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    digest = hashlib.sha256(json.dumps([content, os.getuid(), parent, started], sort_keys=True).encode()).hexdigest()
    shared = Path("/dev/shm")
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"qwen3vl-lengths-{digest[:32]}"
