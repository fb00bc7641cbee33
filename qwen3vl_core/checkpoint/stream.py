"""The elements of a region, block by block, in the order in which they will be written, and the threads that write them.

A block is about two megabytes: it is read, checked for NaN, cast and written while it is in the CPU cache. Nothing larger than
one expert's matrix is ever in memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import Region
from qwen3vl_core.checkpoint.transforms import Span, rows_of, spans
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.progress import Progress

BLOCK = 1024 * 1024
"""Elements in a block."""
THREADS = 4
"""More threads do not make a single disk faster."""
POLL_SECONDS = 0.1
# infinity and NaN have all exponent bits set
EXPONENTS = {
    torch.bfloat16: (torch.int16, 0x7F80), torch.float16: (torch.int16, 0x7C00), torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}  # fmt: skip

Block = tuple[Tensor, list[tuple[str, int]]]
"""Elements, 1-D, and the Hugging Face tensors that they belong to: [(name, elements), …]."""


class Buffers:
    """Memory that one thread reuses."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """`count` elements of `dtype`; the previous contents of `name` are overwritten."""
        buffer, size = self._buffers.get(name), count * dtype.itemsize
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype)


def _in_rows(source: ModelSource, region: Region, spans_to_read: Iterable[Span], width: int, buffers: Buffers) -> Iterator[Block]:
    """Blocks of complete rows of `width` elements, in the order of `spans_to_read`; all rows of a block have one precision."""
    limit = max(1, BLOCK // width)
    filled, dtype = 0, None
    parts: list[tuple[str, int]] = []
    buffer = torch.empty(0)
    for span in spans_to_read:
        done = 0
        span_dtype = source.dtype_of(region, span.tensor)
        while done < span.rows:
            if filled and (filled == limit or span_dtype != dtype):
                yield buffer[: filled * width], parts
                filled, parts = 0, []
            if not filled:
                dtype, buffer = span_dtype, buffers.get("rows", limit * width, span_dtype)
            rows = min(span.rows - done, limit - filled)
            source.rows(region, span.tensor, span.row + done, span.at + done, rows, buffer[filled * width : (filled + rows) * width])
            parts.append((region.hf[span.tensor], rows * width))
            filled, done = filled + rows, done + rows
    if filled:
        yield buffer[: filled * width], parts


def _transposed(source: ModelSource, region: Region, shape: tuple[int, int], buffers: Buffers) -> Iterator[Block]:
    """Blocks of the transpose of the matrix [rows, columns] that the source holds."""
    rows, columns = shape
    dtype = source.dtype_of(region, 0)
    matrix = buffers.get("matrix", rows * columns, dtype)
    source.rows(region, 0, 0, 0, rows, matrix)
    matrix = matrix.view(rows, columns)
    limit = max(1, BLOCK // rows)
    buffer = buffers.get("rows", limit * rows, dtype)
    for first in range(0, columns, limit):
        count = min(limit, columns - first)
        # torch is fast at transposing contiguous data only: the columns are first copied into a panel
        panel = buffers.get("panel", count * rows, dtype).view(rows, count).copy_(matrix[:, first : first + count])
        block = buffer[: count * rows]
        block.view(count, rows).copy_(panel.t())
        yield block, [(region.hf[0], block.numel())]


def box_blocks(source: ModelSource, region: Region, buffers: Buffers) -> Iterator[Block]:
    """The elements of a region's Megatron box, block by block, from either kind of source."""
    rows, width = rows_of(region)
    if region.transform != "transposed":
        return _in_rows(source, region, spans(region), width, buffers)
    if source.hf:
        return _transposed(source, region, (width, rows), buffers)
    return _in_rows(source, region, [Span(0, 0, 0, rows)], width, buffers)


def hf_blocks(source: ModelSource, region: Region, tensor: int, buffers: Buffers) -> Iterator[Block]:
    """The elements of one of a region's Hugging Face tensors (or of one expert's slice of it), block by block, from either kind."""
    rows, width = region.hf_shapes[tensor][0], math.prod(region.hf_shapes[tensor][1:])
    if region.transform != "transposed":
        of_tensor = sorted((span for span in spans(region) if span.tensor == tensor), key=lambda span: span.row)
        return _in_rows(source, region, of_tensor, width, buffers)
    if source.hf:
        return _in_rows(source, region, [Span(0, 0, 0, rows)], width, buffers)
    return _transposed(source, region, (width, rows), buffers)


def any_not_finite(values: Tensor, buffers: Buffers) -> bool:
    """Whether `values` hold a NaN or an infinity. Looks at the exponent bits, which is faster than `isfinite`."""
    if values.dtype not in EXPONENTS:
        return False
    # a sum is finite only if each of its terms is, and is ten times faster than looking at the bits; a large sum is no proof
    if math.isfinite(values.sum(dtype=torch.float32 if values.dtype is torch.float16 else None).item()):
        return False
    integer, exponent = EXPONENTS[values.dtype]
    bits = buffers.get("bits", values.numel(), integer)
    torch.bitwise_and(values.view(integer), exponent, out=bits)
    return int(bits.amax()) == exponent


def not_finite(values: Tensor, parts: list[tuple[str, int]]) -> dict[str, int]:
    """How many elements of each tensor in a block are NaN or infinite."""
    counts: dict[str, int] = {}
    for (name, _), piece in zip(parts, values.split([count for _, count in parts]), strict=True):
        count = int((~piece.isfinite()).sum())
        if count:
            counts[name] = counts.get(name, 0) + count
    return counts


class Caster:
    """Checks and casts a block between reading and writing."""

    def __init__(self, source: str, dtype: torch.dtype | None, allow_nan: bool = True, device: str = "cpu") -> None:
        self.source, self.dtype, self.allow_nan, self.device = source, dtype, allow_nan, device
        self.not_finite: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Tensor, parts: list[tuple[str, int]], buffers: Buffers) -> Tensor:
        """The block as it will be written. Raises RequestError for NaN, WorkError for what does not fit into fp16."""
        if any_not_finite(values, buffers):
            counts = not_finite(values, parts)
            if not self.allow_nan:
                raise RequestError(
                    f"{self.source}: {next(iter(counts))} holds NaN or infinity; the checkpoint is damaged: take an earlier one, or "
                    "add --allow-nan to convert it as it is"
                )
            with self._lock:
                for name, count in counts.items():
                    self.not_finite[name] = self.not_finite.get(name, 0) + count
        return self.cast(values, parts, buffers)

    def cast(self, values: Tensor, parts: list[tuple[str, int]], buffers: Buffers) -> Tensor:
        """The block in the requested precision."""
        if self.dtype is None or values.dtype == self.dtype or values.dtype not in EXPONENTS:
            return values
        cast = buffers.get("cast", values.numel(), self.dtype)
        cast.copy_(values if self.device == "cpu" else values.to(self.device).to(self.dtype))
        if self.dtype is torch.float16 and any_not_finite(cast, buffers) and bool((~cast.isfinite() & values.isfinite()).any()):
            names = ", ".join(dict.fromkeys(name for name, _ in parts))
            raise WorkError(f"{self.source}: {names}: holds values beyond fp16's 65504; use --dtype bf16")
        return cast


def raw_bytes(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return values.view(torch.uint8).numpy().data


class _StreamStopped(Exception):
    """Another thread failed, or the user pressed Ctrl-C."""


class Worker:
    """One thread's buffers (two sets, for tasks that compare) and its count of bytes done."""

    def __init__(self, stop: threading.Event) -> None:
        self.buffers, self.second = Buffers(), Buffers()
        self.done = 0
        self.note = ""
        self._stop = stop

    def advance(self, size: int, note: str) -> None:
        """Count bytes as done. Raises when another thread failed."""
        self.done += size
        self.note = note
        if self._stop.is_set():
            raise _StreamStopped


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _single_threaded_operations() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(tasks: Sequence[Any], do: Callable[[Any, Worker], None], progress: Progress) -> None:
    """Run all tasks, each taken in order by the next free thread. Raises the error of the first task that failed.

    After Ctrl-C or an error in a task, every thread has ended when this returns.
    """
    stop, lock = threading.Event(), threading.Lock()
    waiting = iter(enumerate(tasks))
    failures: list[tuple[int, BaseException]] = []

    def work(worker: Worker) -> None:
        while not stop.is_set():
            with lock:
                number, task = next(waiting, (-1, None))
            if number < 0:
                return
            try:
                do(task, worker)
            except _StreamStopped:
                return
            except BaseException as error:
                failures.append((number, error))
                stop.set()

    workers = [Worker(stop) for _ in range(min(THREADS, _cpu_count(), len(tasks)))]
    threads = [threading.Thread(target=work, args=(worker,), name=f"convert-{i}", daemon=True) for i, worker in enumerate(workers)]
    counted = 0
    with _single_threaded_operations():
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(POLL_SECONDS)
                    done = sum(worker.done for worker in workers)
                    progress.update(done - counted, workers[0].note)
                    counted = done
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if failures:
        raise min(failures, key=lambda item: item[0])[1]
