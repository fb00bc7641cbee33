"""The fraction of a GPU's peak that a step reaches (MFU): figures measured on GPUs, with interpolation between them. Imports no torch.

MFU is that of the run's record (`mfu`) and of the benchmarks: model FLOPs of `layout.flops`, without padding and recomputation,
over the seconds of a whole step and the GPU's dense bf16 peak. A step of four micro batches, one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import SIZES, Architecture


@dataclass(frozen=True)
class MeasuredMfu:
    """One figure."""

    size: str
    tokens: int
    """Of a micro batch."""
    mfu: float
    packed: bool = True
    graph: bool = True
    """Whether micro batches were CUDA graphs; without, Python sets the pace of short ones."""
    precision: str = "bf16"
    lora: bool = False


MEASURED = (
    # NVIDIA H200; python benchmarks/finetune.py llava
    MeasuredMfu("2B", 8192, 0.519),
    MeasuredMfu("2B", 8192, 0.581, precision="fp8"),
    MeasuredMfu("2B", 4096, 0.477),
    MeasuredMfu("2B", 4100, 0.469, packed=False),
    # NVIDIA H200; python benchmarks/finetune.py rows: 16 layers
    MeasuredMfu("8B", 8192, 0.517, packed=False),
    MeasuredMfu("8B", 8192, 0.639, packed=False, precision="fp8"),
    # NVIDIA H200; python benchmarks/finetune.py lora
    MeasuredMfu("4B", 8192, 0.469, lora=True),
    # two NVIDIA H200, EP2; python benchmarks/finetune.py expert_layouts: 8 layers; taken for one GPU, too, which was not measured
    MeasuredMfu("A3B", 8192, 0.294),
    # NVIDIA H200, kernel by kernel; forward and backward by hand before there were graphs, the middle of 227 to 304 and 320 to 406 ms
    MeasuredMfu("2B", 4096, 0.226, graph=False),
    MeasuredMfu("2B", 8192, 0.330, graph=False),
    # the same, 8 layers, the middle of 383 to 472 ms
    MeasuredMfu("8B", 8192, 0.361, graph=False),
    # NVIDIA H200, 4 layers with 128 experts; two rows of 4096 by hand
    MeasuredMfu("A3B", 8192, 0.175, packed=False, graph=False),
)
"""A new figure is one line with its GPU and command above it. Of two that differ in nothing but `mfu` the last one counts."""


def expected_mfu(options: FinetuneOptions, architecture: Architecture, graph: bool, measured: Sequence[MeasuredMfu] = MEASURED) -> float:
    """MFU of a step, before what a parallel layout costs. graph: whether micro batches are CUDA graphs.

    Figures of the same kind of model and of the same way to launch kernels come first, then those of the same precision and of
    adapters or not; what was never measured takes what is nearest. Widths between two measured sizes are interpolated.
    """
    a = architecture
    rows = [m for m in measured if _is_moe(m.size) == a.is_moe]
    rows = [m for m in rows if m.graph == graph] or rows
    # the curve with the most points has the shape that a single figure lacks
    shape = max(_curves(rows, "size", "packed", "precision", "lora").values(), key=lambda of: len({m.tokens for m in of}))
    precision = "fp8" if options.precision == "fp8" else "bf16"
    for name, value in (("precision", precision), ("lora", options.lora_rank > 0)):
        rows = [m for m in rows if getattr(m, name) == value] or rows
    # tensor and context parallel ranks share a micro batch, and each launches all of its kernels
    tokens = options.micro_batch_size * options.seq_length / (options.tp * options.cp)
    curves = _curves(rows, "size", "packed")
    sizes = {m.size: _width(m.size) for m in rows}
    at_width = [
        (math.log(width), _at(tokens, curves.get((size, options.packing)) or curves[size, not options.packing], shape))
        for size, width in sorted(sizes.items(), key=lambda item: item[1])
    ]
    # a layout of more ranks than any machine has would round to 0
    return max(round(_between(math.log(a.hidden_size), at_width), 4), 1e-4)


def _is_moe(size: str) -> bool:
    return SIZES[size].num_experts > 0


def _width(size: str) -> int:
    return SIZES[size].hidden_size


def _curves(rows: Sequence[MeasuredMfu], *same: str) -> dict[tuple[Any, ...], list[MeasuredMfu]]:
    """Figures that are the same in these fields."""
    curves: dict[tuple[Any, ...], list[MeasuredMfu]] = {}
    for m in rows:
        curves.setdefault(tuple(getattr(m, name) for name in same), []).append(m)
    return curves


def _at(tokens: float, rows: Sequence[MeasuredMfu], shape: Sequence[MeasuredMfu]) -> float:
    """MFU at so many tokens a micro batch; above the longest that was measured it stays, for what is slow there was not."""
    tokens = min(tokens, max(m.tokens for m in rows))
    if len({m.tokens for m in rows}) > 1:
        return _on_curve(tokens, rows)
    return rows[-1].mfu * _on_curve(tokens, shape) / _on_curve(rows[-1].tokens, shape)


def _on_curve(tokens: float, rows: Sequence[MeasuredMfu]) -> float:
    """A micro batch takes a fixed time and one for each token, so 1 / MFU is linear in 1 / tokens between two measured ones."""
    points = sorted({1 / m.tokens: 1 / m.mfu for m in rows}.items())
    if len(points) == 1:
        return 1 / points[0][1]
    at = max(1 / tokens, points[0][0])
    upper = next((i for i, (x, _) in enumerate(points) if x >= at and i), len(points) - 1)
    (x0, y0), (x1, y1) = points[upper - 1], points[upper]
    # a fixed time is never negative
    slope = max((y1 - y0) / (x1 - x0), 0.0)
    return 1 / (y0 + slope * (at - x0))


def _between(x: float, points: Sequence[tuple[float, float]]) -> float:
    """Linear between points in ascending order, constant beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def longest(architecture: Architecture, measured: Sequence[MeasuredMfu] = MEASURED) -> int:
    """Tokens of the longest packed row that was measured of this kind of model; 0 where none was."""
    return max((m.tokens for m in measured if m.packed and _is_moe(m.size) == architecture.is_moe), default=0)
