"""`qwen3vl convert`: Hugging Face safetensors <-> Megatron `torch_dist`, streamed tensor by tensor; no model is built."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core import file_digests
from qwen3vl_core.checkpoint.bridge import RUN_CONFIG, run_config_text
from qwen3vl_core.checkpoint.common_pt import megatron_common
from qwen3vl_core.checkpoint.hf import copy_side_files, is_hf_folder
from qwen3vl_core.checkpoint.hf_writer import SafetensorsWriter, TensorSpec
from qwen3vl_core.checkpoint.lora_merge import AdaptedSource, MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource, describe
from qwen3vl_core.checkpoint.name_map import Layout, Region, extra_states
from qwen3vl_core.checkpoint.peft import base_name, note_source, write_peft
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.checkpoint.stream import Caster, Worker, box_blocks, hf_blocks, in_parallel, raw_bytes
from qwen3vl_core.checkpoint.torch_dist import RELEASE
from qwen3vl_core.checkpoint.torch_dist_writer import Box, RegionWriter
from qwen3vl_core.checkpoint.verify import compare, forward_parity
from qwen3vl_core.dtypes import DTYPES
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import atomic_folder, check_output_file, check_target, need_space, write_output
from qwen3vl_core.formats import duration, printable, quantity
from qwen3vl_core.options import ConvertOptions
from qwen3vl_core.progress import Progress
from qwen3vl_core.run_record import TRACKER
from qwen3vl_core.sizes import check_size

OVERHEAD_BYTES = 4_000_000


@dataclass
class ConversionReport:
    """What a conversion did; `--report` writes it as JSON."""

    source: str
    target: str
    source_kind: str
    target_kind: str
    model: str
    iteration: int
    layout: str
    """How the Megatron checkpoint names its mergers, be it source or target."""
    dtypes: list[str]
    tensors: int
    """How many, counted by their Hugging Face names."""
    bytes: int = 0
    seconds: float = 0.0
    """For reading and writing, without the verification."""
    not_finite: dict[str, int] = field(default_factory=dict)
    """Tensors that hold NaN or infinity -> how many such elements."""
    verified: int | None = None
    """Tensors read again and found bitwise equal; None: not requested."""
    adapters: dict[str, Any] | None = None
    """Of a LoRA run: rank, alpha, targets, parts."""
    forward: dict[str, Any] | None = None
    """`equal`, `logits` and `precision`, or `skipped` with the reason; None: not requested."""

    def as_json(self) -> str:
        rate = self.bytes / self.seconds if self.seconds else 0.0
        return json.dumps({"v": 1} | vars(self) | {"bytes_per_second": round(rate)}, indent=2) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """The table that is printed: (name, value)."""
        hf, megatron = "Hugging Face", "Megatron torch_dist"
        names = {"hf": hf, "megatron": megatron, "adapters": "LoRA run (torch_dist)", "peft": "PEFT adapter"}
        direction = f"{names[self.source_kind]} -> {names[self.target_kind]}"
        read_again = f"; {self.verified} read again, bitwise equal" if self.verified is not None else ""
        used = f"{self.tensors}, each used once{read_again}" if self.target_kind != "peft" else str(self.tensors)
        rows = [
            ("direction", direction),
            ("model", self.model + (f", iteration {self.iteration}" if self.iteration else "")),
            ("tensors", used),
            ("precision", ", ".join(self.dtypes)),
        ]
        if self.target_kind == "megatron":
            rows.append(("layout", self.layout))
        if self.adapters:
            merged = "" if self.target_kind == "peft" else "merged into the weights; "
            parts = f" of {', '.join(self.adapters['parts'])}" if "parts" in self.adapters else ""
            if self.target_kind == "peft":
                rows.append(("beside", f"{self.adapters['base']}: edit adapter_config.json where it is another model or place"))
            rows.append(("adapters", f"{merged}rank {self.adapters['rank']}, alpha {self.adapters['alpha']:g}, "
                         f"{', '.join(self.adapters['targets'])}{parts}"))  # fmt: skip
        if self.not_finite:
            worst = max(self.not_finite, key=self.not_finite.__getitem__)
            rows.append(("NaN", f"{sum(self.not_finite.values())} elements in {len(self.not_finite)} tensors, most in {worst}"))
        if self.forward is not None:
            rows.append(("forward", self.forward.get("skipped") or f"{self.forward['logits']} logits of one picture, bitwise equal"))
        rows.append(("written", f"{self.target} ({quantity(self.bytes, 'B')} in {duration(self.seconds)})"))
        return rows


def written_dtype(source: ModelSource, region: Region, dtype: torch.dtype | None, tensor: int = 0) -> torch.dtype:
    return dtype or source.dtype_of(region, tensor)


def total_bytes(source: ModelSource, table: list[Region], dtype: torch.dtype | None) -> int:
    """Bytes that the target's tensors will hold."""
    return sum(math.prod(region.size) * written_dtype(source, region, dtype).itemsize for region in table)


def one_dtype_a_tensor(source: ModelSource, table: list[Region], dtype: torch.dtype | None) -> None:
    """Raises RequestError when the stacked layers of one Megatron tensor differ in dtype."""
    seen: dict[str, torch.dtype] = {}
    for region in table:
        dtypes = {written_dtype(source, region, dtype, i) for i in range(len(region.hf))}
        first = seen.setdefault(region.key, next(iter(dtypes)))
        if dtypes != {first}:
            raise RequestError(
                f"{source.path}: {region.hf[0]} and its neighbours have different dtypes, Megatron stacks them into one tensor; "
                "choose one with --dtype"
            )


def _in_file_order(source: ModelSource, tasks: list[tuple[Region, Box]]) -> list[tuple[Region, Box]]:
    """Sort tasks, whose first item is a region, by their offset in the files of a Hugging Face source, so that a disk reads forwards."""
    if not source.hf:
        return tasks
    entries = source.hf.entries

    def file_offset(task: tuple[Region, Box]) -> tuple[str, int]:
        region = task[0]
        entry = entries[region.hf[0]]
        size = (entry.end - entry.start) // region.stack if region.stack else 0
        return entry.file.name, entry.start + size * (region.at or 0)

    return sorted(tasks, key=file_offset)


def write_megatron(source: ModelSource, folder: Path, layout: Layout, caster: Caster) -> int:
    """Write a `release` checkpoint and its side files into `folder`. Returns the bytes of its tensors."""
    table = source.regions(layout)
    # a Megatron source keeps its own names; regions of both layouts come in the same order
    own = source.regions() if source.megatron else table
    with RegionWriter(folder / RELEASE) as writer, Progress("convert", total_bytes(source, own, caster.dtype), "B") as progress:
        tasks = []
        for region, own_region in zip(table, own, strict=True):
            dtype = written_dtype(source, own_region, caster.dtype)
            tasks.append((own_region, writer.add(region.key, region.global_shape, region.offset, region.size, dtype)))
        for state in extra_states(source.architecture, layout):
            writer.add_empty(*state)

        def write(task: tuple[Region, Box], worker: Worker) -> None:
            region, box = task
            at = 0
            for values, parts in box_blocks(source, region, worker.buffers):
                data = raw_bytes(caster(values, parts, worker.buffers))
                writer.write(box, at, data)
                at += len(data)
                worker.advance(len(data), region.key.rsplit(".", 2)[-2])
            assert at == box.record.data_bytes, region

        with source.files.checked_in_passing():
            in_parallel(_in_file_order(source, tasks), write, progress)
        writer.finish(megatron_common(source.architecture) | {"iteration": 0, "content_metadata": {}})
    if layout.mergers == "bridge":
        precision = str(written_dtype(source, own[0], caster.dtype)).removeprefix("torch.")
        (folder / RELEASE / RUN_CONFIG).write_text(run_config_text(source.architecture, precision))
    note_source(folder / RELEASE, source.path)
    copy_side_files(source.side, folder, caster.dtype)
    # last: a folder without the tracker is not a checkpoint
    (folder / TRACKER).write_text(RELEASE + "\n")
    return writer.bytes


def write_hf(source: ModelSource, folder: Path, caster: Caster) -> int:
    """Write safetensors and the side files into `folder`. Returns the bytes of its tensors."""
    planned: dict[str, TensorSpec] = {}
    tasks = []
    for region in source.regions():
        dtype = written_dtype(source, region, caster.dtype)
        for i, (name, shape) in enumerate(zip(region.hf, region.stored_shapes, strict=True)):
            planned.setdefault(name, TensorSpec(name, shape, dtype))
            tasks.append((region, i, (region.at or 0) * math.prod(region.hf_shapes[i]) * dtype.itemsize))
    dtypes = {p.dtype for p in planned.values()}
    total = sum(p.bytes for p in planned.values())
    with SafetensorsWriter(folder, list(planned.values())) as writer, Progress("convert", total, "B") as progress:

        def write(task: tuple[Region, int, int], worker: Worker) -> None:
            region, tensor, start = task
            at = start
            for values, parts in hf_blocks(source, region, tensor, worker.buffers):
                data = raw_bytes(caster(values, parts, worker.buffers))
                writer.write(region.hf[tensor], at, data)
                at += len(data)
                worker.advance(len(data), region.hf[tensor].split(".")[-2])
            assert at - start == math.prod(region.hf_shapes[tensor]) * planned[region.hf[tensor]].dtype.itemsize, region

        with source.files.checked_in_passing():
            in_parallel(tasks, write, progress)
        writer.finish()
    # last: a folder without config.json is not a model
    copy_side_files(source.side, folder, dtypes.pop() if len(dtypes) == 1 else caster.dtype)
    return writer.bytes


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model or checkpoint, which a conversion may replace."""
    return is_hf_folder(folder) or any((folder / name).exists() for name in (TRACKER, ".metadata", "config.json"))


def run(options: ConvertOptions) -> None:
    """Convert. Raises RequestError for what cannot be converted, WorkError for what fails during the work."""
    target = Path(options.target).expanduser()
    report_file = check_output_file("--report", options.report)
    _check_device(options)
    source = open_source(options.source, options.hf, base=options.base)
    merged = source if isinstance(source, MergedSource) else None
    adapted = source if isinstance(source, AdaptedSource) else None
    if (merged is None and options.base) or (adapted is None and options.adapter):
        flag, what = ("--adapter", "a LoRA run") if options.adapter else ("--base", "a LoRA run or a PEFT adapter")
        raise RequestError(f"{flag}: {source.path} is not {what}; leave it out")
    if options.size:
        check_size(options.size, source.architecture, str(source.path))
    check_target(target, overwrite=options.overwrite, what="checkpoint")
    if target.is_dir() and any(target.iterdir()) and not holds_checkpoint(target):
        raise RequestError(f"{target}: holds no model or checkpoint, and --overwrite replaces nothing else; choose another folder")
    if target.resolve() == source.path.resolve() or source.path.resolve().is_relative_to(target.resolve()):
        raise RequestError(f"{target}: the source is in it; choose another folder")
    source.check()
    if adapted and options.adapter:
        _export_adapter(adapted, options, target, report_file)
        return
    to_megatron = source.kind == "hf"
    layout = Layout.named(options.layout) if to_megatron else source.layout
    if merged:
        merged.merge_in(DTYPES.get(options.dtype))
    caster = Caster(str(source.path), DTYPES.get(options.dtype), options.allow_nan, options.device)
    table = source.regions(layout)
    if to_megatron:
        one_dtype_a_tensor(source, table, caster.dtype)
    need_space(target, round(total_bytes(source, table, caster.dtype) * 1.01) + OVERHEAD_BYTES, "checkpoint")
    report = ConversionReport(
        str(source.path), str(target), source.kind, "megatron" if to_megatron else "hf", describe(source.architecture), source.iteration,
        layout.mergers, sorted({str(written_dtype(source, r, caster.dtype)).removeprefix("torch.") for r in table}),
        len({name for region in table for name in region.hf}), not_finite=caster.not_finite,
        adapters=merged.summary() if merged else None,
    )  # fmt: skip
    with atomic_folder(target, what="conversion") as folder:
        started = time.monotonic()
        report.bytes = write_megatron(source, folder, layout, caster) if to_megatron else write_hf(source, folder, caster)
        report.seconds = round(time.monotonic() - started, 3)
        if options.verify:
            converted = open_source(folder)
            report.verified = compare(source, converted, caster)
            report.forward = forward_parity(source, converted, caster.dtype)
        for written_to in (folder / RELEASE, folder) if to_megatron else (folder,):
            file_digests.add(written_to)
    _report(report, report_file)


def _check_device(options: ConvertOptions) -> None:
    """Raises RequestError for a GPU that is missing or would be unused."""
    if options.device == "cpu":
        return
    if options.dtype == "keep" or options.adapter:
        why = "--adapter writes a few small tensors" if options.adapter else "--dtype keep casts nothing"
        raise RequestError(f"--device {options.device}: {why}, so a GPU is not used; leave --device out")
    if not torch.cuda.is_available():
        raise RequestError(f"--device {options.device}: torch finds no CUDA GPU here; leave it out, the CPU writes the same bytes")


def _report(report: ConversionReport, file: Path | None) -> None:
    if file:
        write_output(file, report.as_json())
    for name, value in report.rows():
        print(printable(f"{name:10s} {value}"))


def _export_adapter(source: AdaptedSource, options: ConvertOptions, target: Path, report_file: Path | None) -> None:
    """`--adapter`: write only the adapters, as a PEFT adapter."""
    if options.verify:
        raise RequestError("--verify: compares whole models; leave it out with --adapter")
    dtype = DTYPES.get(options.dtype)
    report = ConversionReport(
        str(source.path), str(target), source.kind, "peft", describe(source.architecture), source.iteration, source.layout.mergers, [], 0,
        adapters=source.summary(),
    )  # fmt: skip
    with atomic_folder(target, what="conversion") as folder:
        started = time.monotonic()
        base = base_name(source, options.hf)
        tensors = write_peft(source, folder, dtype, base)
        file_digests.add(folder)
        report.seconds = round(time.monotonic() - started, 3)
    report.adapters = source.summary() | {"base": base}
    report.tensors, report.bytes = len(tensors), sum(tensor.nbytes for tensor in tensors.values())
    report.dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    _report(report, report_file)
