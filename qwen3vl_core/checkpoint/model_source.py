"""A model to read, region by region, and the accounting of its tensors against the name map: none missing, none unused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, dtype

from qwen3vl_core.checkpoint import torch_dist, transforms
from qwen3vl_core.checkpoint.hf import HFReader
from qwen3vl_core.checkpoint.name_map import HF_EMBEDDING, HF_OUTPUT, Experts, Layout, Region, regions
from qwen3vl_core.checkpoint.torch_save import STORAGES
from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import Architecture, size_of

# saved by a training run beside the model's weights; not part of the model
NOT_WEIGHTS = ("optimizer", "chained_", "rng_state", "rerun_state_machine_state", "extra.")
_ROWS = 1024


@dataclass
class ModelSource:
    """A model to read, region by region: a Hugging Face folder or a Megatron checkpoint."""

    path: Path
    side: Path
    """Folder with config.json and tokenizer."""
    architecture: Architecture
    hf: HFReader | None = None
    megatron: torch_dist.RegionReader | None = None
    layout: Layout = Layout()
    iteration: int = 0
    experts: Experts | None = None
    """How the files store the experts; None: as published."""

    @property
    def kind(self) -> str:
        return "hf" if self.hf else "megatron"

    @property
    def origin(self) -> Path:
        """The folder that a checkpoint of adapters names as the model beside them: a run's step, not the newest one."""
        return self.megatron.data if self.megatron else self.path

    @property
    def files(self) -> HFReader | torch_dist.RegionReader:
        """What reads the weights; of a model with adapters those of the base model."""
        return self.hf or self.boxes

    @property
    def boxes(self) -> torch_dist.RegionReader:
        """The reader of a Megatron checkpoint."""
        assert self.megatron is not None, f"{self.path} is a Hugging Face folder"
        return self.megatron

    def regions(self, layout: Layout | None = None) -> list[Region]:
        """The name map of this model. The regions of every layout come in the same order."""
        return regions(self.architecture, layout or self.layout, self.experts)

    def read_hf(self, region: Region) -> list[Tensor]:
        """The Hugging Face tensors of a region, or its slices of stacked experts."""
        if self.hf:
            return [self.hf.read(name, region.at) for name in region.hf]
        return transforms.to_hf(region, self.boxes.read(region.key, region.offset, region.size))

    def read_box(self, region: Region) -> Tensor:
        """The Megatron box of a region (of this source's own layout, where it is a Megatron checkpoint)."""
        if self.hf:
            return transforms.to_megatron(region, self.read_hf(region))
        return self.boxes.read(region.key, region.offset, region.size)

    def rows(self, region: Region, tensor: int, row: int, at: int, rows: int, out: Tensor) -> None:
        """Fill `out`, 1-D, with contiguous rows: from `row` on in a Hugging Face source, from `at` on in the box of a Megatron source."""
        if self.hf:
            self.hf.read_rows(region.hf[tensor], region.at, row, out)
            return
        axis = len(region.size) - len(region.hf_shapes[0])
        offset, size = list(region.offset), list(region.size)
        offset[axis], size[axis] = offset[axis] + at, rows
        self.boxes.read(region.key, tuple(offset), tuple(size), out.view(size))

    def dtype_of(self, region: Region, tensor: int = 0) -> dtype:
        if self.hf:
            return self.hf.entries[region.hf[tensor]].dtype
        return self.boxes.tensors[region.key].properties.dtype

    def check(self) -> None:
        """Raises RequestError unless the tensors are exactly those that the architecture needs, each of them complete."""
        for line in problems(self):
            raise RequestError(line)


def describe(architecture: Architecture) -> str:
    """`size 4B`, or the shape of a custom model."""
    size = size_of(architecture)
    if size:
        return f"size {size}"
    experts = f", {architecture.num_experts} experts" if architecture.is_moe else ""
    return f"a model of {architecture.num_layers} layers, hidden size {architecture.hidden_size}{experts}"


def listed(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def problems(source: ModelSource) -> Iterator[str]:
    """A line for each problem of a model's tensors; the most serious first."""
    yield from _of_hf(source, source.hf) if source.hf else _of_megatron(source, source.boxes)
    for region in source.regions():
        for i, name in enumerate(region.hf):
            stored = name if source.hf else region.key
            if stored in (source.hf.entries if source.hf else source.boxes.tensors) and source.dtype_of(region, i) not in STORAGES:
                dtype = str(source.dtype_of(region, i)).removeprefix("torch.")
                yield f"{source.path}: {stored} is {dtype}: quantised weights are not converted; get the model in bf16"
                return


def _other_size(source: ModelSource, name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"{source.path}: {name} is {list(actual)}, but {source.side / 'config.json'} ({describe(source.architecture)}) asks for "
        f"{list(expected)}: weights and config are of different sizes; take both from one checkpoint"
    )


def _of_hf(source: ModelSource, reader: HFReader) -> Iterator[str]:
    entries = reader.entries
    expected = {name: shape for region in source.regions() for name, shape in zip(region.hf, region.stored_shapes, strict=True)}
    for name, shape in expected.items():
        if name in entries and entries[name].shape != shape:
            yield _other_size(source, name, entries[name].shape, shape)
            break
    missing = [name for name in expected if name not in entries]
    unused = [name for name in entries if name not in expected]
    if reason := _other_form(source, missing, unused):
        yield reason
        return
    if HF_OUTPUT in unused and source.architecture.tied and HF_EMBEDDING in entries:
        # some writers store the tied matrix twice; it is written once, if it really is the same
        if not _equal(reader, HF_OUTPUT, HF_EMBEDDING):
            yield (
                f"{source.path}: config.json ties the embeddings, but {HF_OUTPUT} differs from {HF_EMBEDDING}; "
                "set tie_word_embeddings to what the weights are"
            )
        unused.remove(HF_OUTPUT)
    yield from _missing_and_unused(source, missing, unused)


# what quantisers put beside or in place of a weight
_QUANTISED = (".weight_scale_inv", ".weight_scale", ".qweight", ".qzeros", ".weight_packed", ".weight.absmax", ".SCB")


def _other_form(source: ModelSource, missing: list[str], unused: list[str]) -> str:
    """Why a folder's tensors are not those of its config, where the names tell: quantised, renamed or saved without the head."""
    quantised = source.architecture.raw.get("quantization_config")
    marks = [name for name in unused if name.endswith(_QUANTISED)]
    if isinstance(quantised, dict) or marks:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        seen = f"config.json says {method}" if method else f"it holds {marks[0]}" if marks else "config.json has a quantization_config"
        return f"{source.path}: quantised weights are not converted ({seen}); get the model in bf16"
    if missing == [HF_OUTPUT]:
        return (
            f"{source.path}: {HF_OUTPUT} is missing, and config.json does not tie it to {HF_EMBEDDING}: saved without its head, or "
            "tie_word_embeddings is wrong; save it with AutoModelForImageTextToText"
        )
    known = {re.sub(r"^(model\.)?(language_model\.|visual\.)?(model\.)?", "", name) for name in missing}
    renamed = [name for name in unused if re.sub(r"^(module\.|model\.)*(language_model\.|visual\.)?(model\.)?", "", name) in known]
    if missing and len(renamed) >= min(len(missing), len(unused)) / 2 > 0:
        headless = HF_OUTPUT in missing and "lm_head.weight" not in unused
        how = "saved by AutoModel, without its head" if headless else "written by another program or an older transformers"
        return (
            f"{source.path}: its tensors have other names ({renamed[0]} and {len(renamed) - 1} more): {how}; load it with "
            "AutoModelForImageTextToText and save it again"
        )
    return ""


def _equal(reader: HFReader, one: str, other: str) -> bool:
    """Whether two tensors hold the same bits; compared block by block, because the vocabulary is large."""
    a, b = reader.entries[one], reader.entries[other]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    for row in range(0, a.shape[0], _ROWS):
        halves = [torch.empty((min(_ROWS, a.shape[0] - row), *a.shape[1:]), dtype=a.dtype) for _ in range(2)]
        for name, half in zip((one, other), halves, strict=True):
            reader.read_rows(name, None, row, half)
        if not torch.equal(*(half.view(torch.uint8) for half in halves)):
            return False
    return True


def _of_megatron(source: ModelSource, reader: torch_dist.RegionReader) -> Iterator[str]:
    tensors = reader.tensors
    expected = {region.key: region.global_shape for region in source.regions()}
    vocabulary = {key for key in expected if key.endswith(("word_embeddings.weight", "output_layer.weight"))}
    for key, shape in expected.items():
        if key not in tensors:
            continue
        actual = tuple(tensors[key].size)
        # Megatron-LM pads the vocabulary to a round number of rows
        if actual != shape and not (key in vocabulary and actual[1:] == shape[1:] and actual[0] > shape[0]):
            yield _other_size(source, key, actual, shape)
            break
    yield from reader.damage()
    missing = [key for key in expected if key not in tensors]
    unused = [key for key in tensors if key not in expected and not key.startswith(NOT_WEIGHTS) and not key.endswith("_extra_state")]
    yield from _missing_and_unused(source, missing, unused)


def _missing_and_unused(source: ModelSource, missing: list[str], unused: list[str]) -> Iterator[str]:
    config = f"{source.side / 'config.json'} ({describe(source.architecture)})"
    if missing:
        yield (
            f"{source.path}: {len(missing)} tensors that {config} asks for are missing: {listed(missing)}; "
            "the checkpoint is of another size or incomplete"
        )
    if unused:
        yield f"{source.path}: {len(unused)} tensors do not belong to {config}: {listed(unused)}; the checkpoint is of another size or kind"
