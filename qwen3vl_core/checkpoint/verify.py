"""Verifies a conversion: reads every tensor again, and computes the logits of one picture with source and target."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from torch import Tensor

from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import Region
from qwen3vl_core.checkpoint.stream import Caster, Worker, box_blocks, hf_blocks, in_parallel
from qwen3vl_core.errors import WorkError
from qwen3vl_core.formats import quantity
from qwen3vl_core.progress import Progress
from qwen3vl_core.sizes import Architecture

PATCHES = 8
"""Of the parity picture, along each side."""
# compared as bits: NaN equals itself, and 0.0 does not equal -0.0
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def compare(source: ModelSource, target: ModelSource, caster: Caster) -> int:
    """Read the target again and compare each tensor bitwise, through the name map. Returns how many tensors there are.

    The map is walked against the direction of the conversion, so that a wrong map does not agree with itself. Raises
    WorkError for the first tensor that differs.
    """
    target.check()
    if target.hf:
        # the layout's names are the source's; the Hugging Face names are those of the files
        own, other, blocks = source.regions(), target.regions(source.layout), None
    else:
        target.experts = source.experts
        own, other, blocks = source.regions(), target.regions(), "hf"
    pairs = list(zip(own, other, strict=True))
    tasks = [(a, b, None) for a, b in pairs] if blocks is None else [(a, b, i) for a, b in pairs for i in range(len(a.hf))]
    total = sum(target.dtype_of(b).itemsize * torch.Size(b.size).numel() for _, b in pairs)

    def check(task: tuple[Region, Region, int | None], worker: Worker) -> None:
        own_region, target_region, tensor = task
        second = worker.second
        if tensor is None:
            walks = box_blocks(source, own_region, worker.buffers), box_blocks(target, target_region, second)
        else:
            walks = hf_blocks(source, own_region, tensor, worker.buffers), hf_blocks(target, target_region, tensor, second)
        for (values, parts), (written, _) in zip(*walks, strict=True):
            expected = caster.cast(values, parts, worker.buffers)
            if not _same_bits(expected, written):
                advice = "the disk may be failing: convert again to another disk"
                raise WorkError(f"{target.path}: {parts[0][0]} differs from the source; {advice}")
            worker.advance(written.nbytes, "")

    with Progress("verify", total, "B") as progress:
        in_parallel(tasks, check, progress)
    return len({name for region in own for name in region.hf})


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.numel() != b.numel():
        return False
    bits = BITS[a.dtype.itemsize]
    return torch.equal(a.view(bits), b.view(bits))


def free_memory() -> int:
    """Bytes that a model may take: of the GPU where there is one, else of this machine; 0 where it is unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as table:
            for line in table:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return 0
    except OSError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return 0


def picture_inputs(architecture: Architecture) -> dict[str, Tensor]:
    """One picture of random patches between two words: input_ids [1, s], pixel_values [n, patch_dim], image_grid_thw [1, 3]."""
    a, merge = architecture, architecture.vision.spatial_merge_size
    random = torch.Generator().manual_seed(0)
    side = PATCHES // merge * merge
    ids = [1, a.vision_start_token_id, *[a.image_token_id] * (side // merge) ** 2, a.vision_end_token_id, 2, 3]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(side * side, a.vision.patch_dim, generator=random),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }


def forward_parity(source: ModelSource, target: ModelSource, dtype: torch.dtype | None) -> dict[str, Any]:
    """Compute one picture with source and target, both in the target's precision, and compare the logits bitwise.

    Returns `{"equal": True, "logits": n, "precision": name}`, or `{"skipped": sentence}` where the model is larger than half
    of the free memory. Raises WorkError when they differ.
    """
    table = source.regions()
    precision = dtype or source.dtype_of(table[-1])
    need = sum(torch.Size(region.size).numel() for region in table) * precision.itemsize
    free = free_memory()
    if need > free / 2:
        sizes = f"{quantity(need, 'B')}, more than half of the {quantity(free, 'B')} of memory that is free"
        return {"skipped": f"not computed: the model takes {sizes}"}
    from qwen3vl_core.checkpoint.load import build_filled

    inputs = picture_inputs(source.architecture)

    def logits(of: ModelSource) -> Tensor:
        model = build_filled(of, precision)
        device = next(model.parameters()).device
        arguments = {k: v.to(device, precision if v.is_floating_point() else None) for k, v in inputs.items()}
        with torch.no_grad():
            computed = model(**arguments).cpu()
        del model
        gc.collect()
        return computed.contiguous().view(-1)

    expected, actual = logits(source), logits(target)
    if not _same_bits(expected, actual):
        gap = float((expected.float() - actual.float()).abs().max())
        difference = f"{target.path}: its logits of one picture differ from the source's"
        raise WorkError(f"{difference} by up to {gap:.3g}; convert again and report this")
    return {"equal": True, "logits": expected.numel(), "precision": str(precision).removeprefix("torch.")}
