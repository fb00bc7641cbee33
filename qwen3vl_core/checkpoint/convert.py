"""`qwen3vl convert`: Hugging Face safetensors <-> Megatron `torch_dist`, streamed tensor by tensor; no model is built."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qwen3vl_core.checkpoint.hf import Planned, copy_side_files, write_safetensors
from qwen3vl_core.checkpoint.names import Layout, Region, extra_states
from qwen3vl_core.checkpoint.source import Source, describe, open_source
from qwen3vl_core.checkpoint.torch_dist import RELEASE, TRACKER, RegionWriter
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_target, folder_made_whole, need_space
from qwen3vl_core.options import ConvertOptions
from qwen3vl_core.progress import Progress, duration, quantity
from qwen3vl_core.sizes import check_size

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OVERHEAD_BYTES = 4_000_000


def cast(tensor: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """The tensor in `dtype`. Raises WorkError where a finite number does not fit into fp16."""
    if dtype is None or tensor.dtype == dtype or tensor.dtype not in FLOATS:
        return tensor
    made = tensor.to(dtype)
    if dtype is torch.float16 and bool((~made.isfinite() & tensor.isfinite()).any()):
        raise WorkError(f"{where}: holds numbers beyond fp16's 65504; use --dtype bf16")
    return made


def written_dtype(source: Source, region: Region, dtype: torch.dtype | None) -> torch.dtype:
    there = source.dtype_of(region)
    return dtype if dtype is not None and there in FLOATS else there


def total_bytes(source: Source, table: list[Region], dtype: torch.dtype | None) -> int:
    """Bytes that the target's tensors will hold."""
    return sum(math.prod(region.size) * written_dtype(source, region, dtype).itemsize for region in table)


def one_dtype_a_tensor(source: Source, table: list[Region], dtype: torch.dtype | None) -> None:
    """Raises RequestError when the layers of one Megatron tensor, stacked, would disagree in dtype."""
    seen: dict[str, torch.dtype] = {}
    for region in table:
        here = {written_dtype(source, region, dtype)} | ({source.hf.entries[n].dtype for n in region.hf} if dtype is None and source.hf else set())
        first = seen.setdefault(region.key, next(iter(here)))
        if here != {first}:
            raise RequestError(
                f"{source.path}: {region.hf[0]} and its neighbours have different dtypes, Megatron stacks them into one tensor; "
                "choose one with --dtype"
            )


def megatron_common(source: Source) -> dict:
    """`common.pt` as Megatron-LM reads it; without `checkpoint_version` 3.0 it would reorder query, key and value."""
    a = source.architecture
    args = argparse.Namespace(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, num_layers=a.num_layers, hidden_size=a.hidden_size,
        num_attention_heads=a.num_heads, num_query_groups=a.num_kv_heads, kv_channels=a.head_dim, ffn_hidden_size=a.ffn_hidden_size,
        padded_vocab_size=a.vocab_size, untie_embeddings_and_output_weights=not a.tied, use_dist_ckpt=True, dist_ckpt_format="torch_dist",
    )  # fmt: skip
    return {"args": args, "checkpoint_version": 3.0, "iteration": 0, "content_metadata": {}}


def write_megatron(source: Source, folder: Path, layout: Layout, dtype: torch.dtype | None) -> int:
    """Write a `release` checkpoint and its side files into `folder`. Returns the bytes of its tensors."""
    table = source.regions(layout)
    # a Megatron source keeps its own names; regions of both layouts come in the same order
    own = source.regions() if source.megatron else table
    copy_side_files(source.side, folder, dtype)
    with RegionWriter(folder / RELEASE) as writer, Progress("convert", total_bytes(source, own, dtype), "B") as progress:
        for region, there in zip(table, own, strict=True):
            box = cast(source.read_box(there), dtype, region.hf[0]).reshape(region.size)
            writer.write(region.key, region.global_shape, region.offset, box)
            progress.update(box.nbytes, region.key.rsplit(".", 2)[-2])
        for key, index, count in extra_states(source.architecture, layout):
            writer.write_object(key, index, count, None)
        writer.finish(megatron_common(source))
    # last: a folder without it is no checkpoint
    (folder / TRACKER).write_text(RELEASE + "\n")
    return writer.bytes


def hf_order(table: list[Region]) -> list[tuple[Region, int]]:
    """(region, which of its tensors), in the order of the regions: those of one region are read together."""
    return [(region, i) for region in table for i in range(len(region.hf))]


def write_hf(source: Source, folder: Path, dtype: torch.dtype | None) -> int:
    """Write safetensors and the side files into `folder`. Returns the bytes of its tensors."""
    table = source.regions()
    order = hf_order(table)
    planned = [Planned(r.hf[i], r.hf_shapes[i], written_dtype(source, r, dtype)) for r, i in order]
    stated = {p.dtype for p in planned}
    copy_side_files(source.side, folder, stated.pop() if len(stated) == 1 else dtype)
    with Progress("convert", sum(p.bytes for p in planned), "B") as progress:

        def stream() -> Iterator[Tensor]:
            for region in table:
                for name, tensor in zip(region.hf, source.read_hf(region), strict=True):
                    made = cast(tensor, dtype, name).contiguous()
                    progress.update(made.nbytes, name.split(".")[-2])
                    yield made

        return write_safetensors(folder, planned, stream())


def verify(source: Source, target: Path, dtype: torch.dtype | None) -> int:
    """Read the target again and compare each tensor bitwise, through the name map. Returns how many there are.

    Raises WorkError for the first that differs.
    """
    made = open_source(target)
    made.check()
    own, other = source.regions(), made.regions()
    count = 0
    with Progress("verify", total_bytes(made, other, None), "B") as progress:
        for here, there in zip(own, other, strict=True):
            expected = [cast(t, dtype, here.hf[0]) for t in source.read_hf(here)]
            for name, a, b in zip(here.hf, expected, made.read_hf(there), strict=True):
                if a.dtype != b.dtype or a.shape != b.shape or not _same_bits(a, b):
                    raise WorkError(f"{target}: {name} differs from the source; the disk may be failing: convert again to another disk")
                progress.update(b.nbytes)
                count += 1
    return count


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # as bytes: NaN equals itself, and 0.0 does not equal -0.0
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def run(options: ConvertOptions) -> None:
    """Convert as asked. Raises RequestError for what cannot be converted, WorkError for what fails on the way."""
    started = time.monotonic()
    target = Path(options.target).expanduser()
    source = open_source(options.source, options.hf)
    if options.size:
        check_size(options.size, source.architecture, str(source.path))
    check_target(target, overwrite=options.overwrite, what="checkpoint")
    if target.resolve() == source.path.resolve() or source.path.resolve().is_relative_to(target.resolve()):
        raise RequestError(f"{target}: the source is in it; choose another folder")
    source.check()
    dtype = DTYPES.get(options.dtype)
    layout = Layout.named(options.layout)
    to_megatron = source.kind == "hf"
    table = source.regions(layout if to_megatron else None)
    if to_megatron:
        one_dtype_a_tensor(source, table, dtype)
    need_space(target, round(total_bytes(source, table, dtype) * 1.01) + OVERHEAD_BYTES, "checkpoint")
    with folder_made_whole(target, what="conversion") as folder:
        size = write_megatron(source, folder, layout, dtype) if to_megatron else write_hf(source, folder, dtype)
        verified = verify(source, folder, dtype) if options.verify else 0
    direction = "Hugging Face -> Megatron torch_dist" if to_megatron else "Megatron torch_dist -> Hugging Face"
    tensors = sum(len(region.hf) for region in table)
    dtypes = sorted({str(written_dtype(source, r, dtype)).removeprefix("torch.") for r in table})
    rows = [
        ("direction", direction),
        ("model", describe(source.architecture) + (f", iteration {source.iteration}" if source.iteration else "")),
        ("tensors", f"{tensors}, each used once" + (f"; {verified} read again, bitwise equal" if options.verify else "")),
        ("precision", ", ".join(dtypes)),
        *([("layout", options.layout)] if to_megatron else []),
        ("written", f"{target} ({quantity(size, 'B')} in {duration(time.monotonic() - started)})"),
    ]
    for name, value in rows:
        print(f"{name:10s} {value}")
