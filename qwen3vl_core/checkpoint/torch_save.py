"""The zip archive that `torch.save` writes for one tensor, without the tensor's data, which is written and read separately.

`torch.save` copies the whole tensor and computes a checksum that `torch.load` never verifies, which takes longer than the
write itself. The archives made here hold the same entries, and `torch.load(weights_only=True)` reads them.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from qwen3vl_core.checkpoint.pickle_scan import check_pickle

# the storage class that denotes a precision in the pickle
STORAGES = {torch.float64: "DoubleStorage", torch.float32: "FloatStorage", torch.float16: "HalfStorage", torch.bfloat16: "BFloat16Storage"}
_DTYPE_OF_STORAGE = {name: dtype for dtype, name in STORAGES.items()}
ALIGNMENT = 64
_LOCAL, _CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_BIG = 0xFFFFFFFF
_MOST_DIRECTORY = 1 << 20
"""Bytes of an archive's directory: of one tensor it has five entries."""
# file names are UTF-8: the flag that torch sets too
_FLAGS = 0x800


@dataclass(frozen=True)
class TensorRecord:
    """The archive's bytes before and after a tensor's data."""

    head: bytes
    tail: bytes
    data_bytes: int

    @property
    def bytes(self) -> int:
        return len(self.head) + self.data_bytes + len(self.tail)


class _PickledTensor:
    """Pickled as a tensor over storage 0, which is written separately."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape

    def __reduce__(self) -> tuple[Any, ...]:
        stride = [1]
        for extent in reversed(self.shape[1:]):
            stride.insert(0, stride[0] * extent)
        return torch._utils._rebuild_tensor_v2, (self._Storage(self), 0, self.shape, tuple(stride[: len(self.shape)]), False, OrderedDict())

    @dataclass
    class _Storage:
        of: _PickledTensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if isinstance(value, _PickledTensor._Storage):
            return ("storage", getattr(torch, STORAGES[value.of.dtype]), "0", "cpu", math.prod(value.of.shape))
        return None


@lru_cache(maxsize=512)
def record(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorRecord:
    """The archive around a contiguous tensor. KeyError for a precision that is not in `STORAGES`."""
    size = math.prod(shape) * dtype.itemsize
    table = io.BytesIO()
    _Pickler(table, protocol=2).dump(_PickledTensor(dtype, shape))
    head, central = bytearray(), bytearray()

    def entry(name: str, data: bytes | None, at: int, out: bytearray) -> None:
        """Append an entry to `out`, which begins at `at` in the archive. data None: the tensor, whose data follows `out`."""
        encoded = f"archive/{name}".encode()
        length = size if data is None else len(data)
        crc = 0 if data is None else zlib.crc32(data)
        wide = struct.pack("<2H2Q", 1, 16, length, length) if length >= _BIG else b""
        field = _BIG if wide else length
        extra = wide
        if data is None:
            # torch maps storages into memory: they begin at a multiple of 64
            free = -(at + len(out) + _LOCAL.size + len(encoded) + len(wide) + 4) % ALIGNMENT
            extra += struct.pack("<2s1H", b"FB", free) + b"Z" * free
        position = at + len(out)
        out += _LOCAL.pack(b"PK\3\4", 0, _FLAGS, 0, 0, 0, crc, field, field, len(encoded), len(extra)) + encoded + extra + (data or b"")
        # only entries after a large tensor have offsets that need 64 bits
        wide = struct.pack("<2HQ", 1, 8, position) if position >= _BIG else wide
        central_position = min(position, _BIG)
        central.extend(
            _CENTRAL.pack(b"PK\1\2", 0, 0, _FLAGS, 0, 0, 0, crc, field, field, len(encoded), len(wide), 0, 0, 0, 0, central_position)
            + encoded
            + wide
        )

    entry("data.pkl", table.getvalue(), 0, head)
    entry("byteorder", b"little", 0, head)
    entry("data/0", None, 0, head)
    tail, begin = bytearray(), len(head) + size
    entry("version", b"3\n", begin, tail)
    at = begin + len(tail)
    tail += central
    tail += _END64.pack(b"PK\6\6", _END64.size - 12, 0, 45, 0, 0, 4, 4, len(central), at)
    tail += _LOCATOR.pack(b"PK\6\7", 0, at + len(central), 1)
    tail += _END.pack(b"PK\5\6", 0, 0, 4, 4, len(central), min(at, _BIG), 0)
    return TensorRecord(bytes(head), bytes(tail), size)


@dataclass(frozen=True)
class TensorLocation:
    """The offset of a contiguous tensor's data from the start of its archive."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """Reads the pickle that describes a tensor into plain tuples; never calls what the pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *values: values
        if module == "torch" and name in _DTYPE_OF_STORAGE:
            return _DTYPE_OF_STORAGE[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, value: Any) -> Any:
        return value


@lru_cache(maxsize=512)
def _described(table: bytes) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """(dtype, shape) from a record's pickle, or None for anything but one complete contiguous tensor."""
    try:
        check_pickle(table)
        (kind, dtype, _, _, count), offset, shape, stride, *_ = _Reader(io.BytesIO(table)).load()
        shape, expected = tuple(shape), 1
        if kind != "storage" or not isinstance(dtype, torch.dtype) or offset != 0 or count != math.prod(shape):
            return None
        for extent, step in zip(reversed(shape), reversed(stride), strict=True):
            if extent != 1 and step != expected:
                return None
            expected *= extent
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, AttributeError, IndexError, KeyError):
        return None
    return dtype, shape


def locate(read: Callable[[int, int], bytes], length: int) -> TensorLocation | None:
    """Find the tensor's data in an archive of `length` bytes. read: called with (offset, count).

    None for an archive that `torch.save` did not write for a single contiguous tensor: it has to be loaded as a whole.
    """

    def piece(offset: int, count: int) -> bytes:
        if not 0 <= offset <= offset + count <= length or count > _MOST_DIRECTORY:
            raise ValueError
        return read(offset, count)

    try:
        # usually contains the central directory; otherwise the directory is read below
        tail_start = max(0, length - 2048)
        end = piece(tail_start, length - tail_start)
        end_record = end.rfind(b"PK\5\6")
        *_, entries, _, start, _ = _END.unpack_from(end, end_record)
        locator = end_record - _LOCATOR.size
        if locator >= 0 and end[locator : locator + 4] == b"PK\6\7":
            end64 = _LOCATOR.unpack_from(end, locator)[2]
            *_, entries, _, start = _END64.unpack_from(end, end64 - tail_start)
        if start > length:
            return None
        if start < tail_start:
            end, tail_start = piece(start, length - start), start
        members, cursor = {}, start - tail_start
        for _ in range(entries):
            fields = _CENTRAL.unpack_from(end, cursor)
            method, size, name_length, extra_length, comment_length, header = fields[4], *fields[9:13], fields[-1]
            name = end[cursor + _CENTRAL.size : cursor + _CENTRAL.size + name_length].decode()
            extra = end[cursor + _CENTRAL.size + name_length : cursor + _CENTRAL.size + name_length + extra_length]
            if size == _BIG:
                size = struct.unpack_from("<Q", extra, 4)[0]
            members[name.split("/", 1)[-1]] = header, size, method
            cursor += _CENTRAL.size + name_length + extra_length + comment_length

        def data_of(header: int) -> int:
            """Where an entry's data begins, from the offset of its local header."""
            local = _LOCAL.unpack(piece(header, _LOCAL.size))
            return header + _LOCAL.size + local[-2] + local[-1]

        header, size, method = members["data.pkl"]
        described = _described(piece(data_of(header), size)) if method == 0 and size <= 4096 else None
        byteorder_header, byteorder_size, byteorder_method = members.get("byteorder", (None, 0, 0))
        if described is None or byteorder_method:
            return None
        if byteorder_header is not None and piece(data_of(byteorder_header), byteorder_size) != b"little":
            return None
        (dtype, shape), (header, size, method) = described, members["data/0"]
        if method != 0 or size != math.prod(shape) * dtype.itemsize:
            return None
        offset = data_of(header)
        return TensorLocation(offset, dtype, shape) if offset + size <= length else None
    except (struct.error, ValueError, KeyError, OverflowError):
        return None
