"""The demo's weights as a wheel holds them: the low byte of every bf16 number, then the high byte of every one.

High bytes, sign and most of the exponent, are much alike: together they deflate to two fifths, mixed with the low ones hardly. `setup.py`
packs the file when a wheel is built, `Workspace.make` unpacks it. Standard library only, as it runs in a build.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS, PACKED = "model.safetensors", "model.safetensors.bytes"


def _header(data: bytes) -> int:
    """Bytes before the numbers of a safetensors file."""
    return 8 + int.from_bytes(data[:8], "little")


def packed(data: bytes) -> bytes:
    """The packed form of a safetensors file of bf16 tensors, of the same length."""
    begin = _header(data)
    return data[:begin] + data[begin::2] + data[begin + 1 :: 2]


def unpacked(data: bytes) -> bytes:
    """The file that was packed."""
    begin = _header(data)
    middle = begin + (len(data) - begin + 1) // 2
    numbers = bytearray(len(data) - begin)
    numbers[::2], numbers[1::2] = data[begin:middle], data[middle:]
    return data[:begin] + numbers


def pack(folder: Path) -> None:
    """Replace the weights in a model's folder by their packed form. Raises OSError."""
    (folder / PACKED).write_bytes(packed((folder / WEIGHTS).read_bytes()))
    (folder / WEIGHTS).unlink()


def unpack(folder: Path) -> None:
    """Undo `pack`; nothing where the weights are not packed, as in a checkout. Raises OSError."""
    if (folder / PACKED).exists():
        (folder / WEIGHTS).write_bytes(unpacked((folder / PACKED).read_bytes()))
        (folder / PACKED).unlink()
