"""Buckets of shapes: sizes that vary between micro batches, rounded up to few distinct values."""

from __future__ import annotations

STEPS = 32
"""Sizes between a power of two and the next: rounding up adds at most 2 / 32 of a size, about half as much on average."""
COARSE = 4
"""The same for trained tokens, whose padding is cheap."""
COUNTS = 8
"""The same for documents and frames: attention takes its time for empty ones, too."""
LEAST_ROW, LEAST_PATCHES, LEAST_TRAINED, LEAST_COUNT, LEAST_MAX_SEQLEN = 256, 512, 64, 8, 128


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def bucket(size: int, least: int, steps: int = STEPS) -> int:
    """`size` rounded up to a multiple of 1 / `steps` of the next power of two, and of `least`; 0 stays 0."""
    return round_up(size, max(least, next_power_of_two(size) // steps)) if size else 0


def power_of_two_bucket(size: int, least: int) -> int:
    """`size` rounded up to a power of two, and to at least `least`."""
    return max(least, next_power_of_two(size))


def packed_row(tokens: int, seq_length: int, multiple: int, *, whole: bool = False) -> int:
    """Length of a packed row of `tokens`: the sequence length, or, unless `whole`, the smallest half, quarter, ... of it that holds them.

    All rows but the last of a window of packing are nearly full. Raises ValueError for more tokens than a whole row holds.
    """
    length = round_up(max(seq_length, tokens), multiple)
    if whole and tokens > round_up(seq_length, multiple):
        raise ValueError(f"a packed row of {tokens} tokens, more than the {seq_length} that every rank expects")
    while not whole and tokens <= round_up(length // 2, multiple) < length and length // 2 >= LEAST_ROW:
        length = round_up(length // 2, multiple)
    return length
