"""All rows of a run's metrics as columns, for data frames: a million rows in seconds, in blocks, so that memory is that of the columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from console.runs.tail import FileFollower, parsed
from qwen3vl_core import limits
from qwen3vl_core.run_record import ROW_FIELDS

BLOCK = 8 << 20
"""Bytes of the file that are parsed at once."""
STEP, TIME = "step", "time"
LAST_STEP = 1 << 62


def read_columns(path: Path, kind: str) -> dict[str, np.ndarray]:
    """`step` (int64 [n], ascending), `time` (Unix seconds) and every metric (float64 [n]) of the rows of a kind.

    NaN where a row lacks a value. A step that was trained again after a resume has its last values. Empty without rows.
    """
    blocks = [columns for block in _blocks(path) if len((columns := _columns(block, kind)).get(STEP, ()))]
    if not blocks:
        return {}
    names = dict.fromkeys(name for block in blocks for name in block)
    sizes = [len(block[STEP]) for block in blocks]
    whole = {}
    for name in names:  # one after the other, so that only one is there twice
        parts = [block.pop(name, None) for block in blocks]
        whole[name] = np.concatenate([np.full(n, np.nan) if part is None else part for part, n in zip(parts, sizes, strict=True)])
    step = whole[STEP]
    # a row counts until a later one goes back to its step, or before it
    kept = np.append(step[:-1] < np.minimum.accumulate(step[::-1])[::-1][1:], True)
    return whole if kept.all() else {name: values[kept] for name, values in whole.items()}


def _blocks(path: Path) -> Iterator[bytes]:
    """The complete lines of a file, some megabytes at a time; a line longer than any row of ours is left out."""
    follower, rest, overlong = FileFollower(path), b"", False
    while data := follower.read(BLOCK)[0]:
        lines, newline, end = data.rpartition(b"\n")
        if newline:
            block = lines.partition(b"\n")[2] if overlong else rest + lines
            rest, overlong = end, False
            if block:
                yield block
        elif not overlong:
            rest += data
        if len(rest) > limits.RUN_ROW:
            rest, overlong = b"", True


def _columns(block: bytes, kind: str) -> dict[str, np.ndarray]:
    """The columns of the rows of a kind in a block of lines."""
    try:
        table = pa.json.read_json(pa.BufferReader(block))
        types = {name: table.schema.field(name).type for name in table.column_names}
        if not (pa.types.is_string(types["kind"]) and pa.types.is_int64(types[STEP])):
            raise pa.ArrowInvalid("a row without a kind or a step")
    except (pa.ArrowException, KeyError):
        return _columns_of_rows(block, kind)  # something in it is no row of ours
    table = table.filter(pa.compute.equal(table.column("kind"), kind))
    step = table.column(STEP)
    if step.null_count or (len(step) and not 0 <= pa.compute.min(step).as_py() <= pa.compute.max(step).as_py() < LAST_STEP):
        return _columns_of_rows(block, kind)
    columns = {STEP: step.to_numpy()}
    for name, of in types.items():
        values = table.column(name)
        numeric = pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_boolean(of) or pa.types.is_null(of)
        # without any value it is a field of other kinds of rows, unless it is null in all of them
        if numeric and (name == TIME or name not in ROW_FIELDS) and (values.null_count < len(values) or pa.types.is_null(of)):
            columns[name] = _finite(values.cast(pa.float64()).to_numpy())
    return columns


def _columns_of_rows(block: bytes, kind: str) -> dict[str, np.ndarray]:
    """The same of a block that holds lines of other shapes, which are left out; slower."""
    steps: list[int] = []
    columns: dict[str, list[float]] = {}
    for line in block.split(b"\n"):
        try:
            row = parsed(line)
        except (ValueError, RecursionError):
            continue
        step = row.get(STEP) if isinstance(row, dict) and row.get("kind") == kind else None
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < LAST_STEP:
            continue
        for name, value in row.items():
            if (name == TIME or name not in ROW_FIELDS) and (value is None or isinstance(value, int | float)):
                column = columns.setdefault(name, [])
                column += [math.nan] * (len(steps) - len(column))
                column.append(_number(value))
        steps.append(step)
    filled = {name: np.array([*column, *[math.nan] * (len(steps) - len(column))]) for name, column in columns.items()}
    return {STEP: np.array(steps, np.int64), **{name: _finite(values) for name, values in filled.items()}}


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan


def _finite(values: np.ndarray) -> np.ndarray:
    return values if np.isfinite(values.sum()) else np.where(np.isfinite(values), values, np.nan)
