"""Loads weights into a model, from a Hugging Face folder or a Megatron checkpoint of any parallel layout."""

from __future__ import annotations

from pathlib import Path

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.build import build_model
from qwen3vl_core.model.config import transformer_config
from qwen3vl_core.model.qwen3vl import Qwen3VLModel

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from qwen3vl_core.checkpoint.lora_merge import MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import Layout, Region
from qwen3vl_core.checkpoint.source import open_source, side_folder
from qwen3vl_core.errors import RequestError

__all__ = ["build_filled", "fill", "load", "side_folder"]


class _Boxes:
    """Reads boxes of Megatron tensors from either kind of source; the last region is cached, as successive boxes often share one."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.layout = Layout()
        self.by_key: dict[str, list[tuple[Region, Region]]] = {}
        for region, stored in zip(source.regions(self.layout), source.regions(), strict=True):
            self.by_key.setdefault(region.key, []).append((region, stored))
        self._by_leading: dict[tuple[str, int], dict[tuple[int, ...], list[tuple[Region, Region]]]] = {}
        self._last: tuple[Region, Tensor] | None = None

    def _near(self, key: str, leading: tuple[int, ...]) -> list[tuple[Region, Region]]:
        """Regions of `key` at the indices `leading` of its layer and expert axes, cached: a large model has thousands of regions."""
        by_leading = self._by_leading.get((key, len(leading)))
        if by_leading is None:
            by_leading = self._by_leading[key, len(leading)] = {}
            for pair in self.by_key[key]:
                by_leading.setdefault(pair[0].offset[: len(leading)], []).append(pair)
        return by_leading.get(leading, [])

    def _region(self, region: Region, stored: Region) -> Tensor:
        if self._last is None or self._last[0] is not region:
            self._last = region, self.source.read_box(stored).reshape(region.size)
        return self._last[1]

    def copy_into(self, key: str, offset: tuple[int, ...], destination: Tensor, leading: int) -> None:
        """Fill `destination`, the box of `key` at `offset`, cut from the regions that it touches.

        leading: axes that count layers and experts, of length 1 in the destination.
        """
        filled = 0
        for region, stored in self._near(key, offset[:leading]):
            low = [max(a, b) for a, b in zip(offset, region.offset, strict=True)]
            high = [
                min(a + n, b + m) for a, n, b, m in zip(offset, destination.shape, region.offset, region.size, strict=True)
            ]  # fmt: skip
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
            box = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, region.offset, strict=True))
            part = self._region(region, stored)[box]
            destination[inside].copy_(part)
            filled += part.numel()
        if filled != destination.numel():
            raise RequestError(f"{self.source.path}: {key} at {offset} is not in the checkpoint; it is of another size")


@torch.no_grad()
def fill(model: MegatronModule, source: ModelSource) -> None:
    """Copy this rank's part of the weights into a model built by `build_model`, for any tensor and pipeline parallel size.

    Raises RequestError unless every parameter is filled: no parameter silently keeps its initial values.
    """
    boxes = _Boxes(source)
    state = model.sharded_state_dict()
    # a stage that holds the tied embedding only for its output layer asks for it under the embedding's name
    sharded = {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}
    apply_factories(sharded)
    for value in nested_values(sharded):
        if not isinstance(value, ShardedTensor):
            continue
        if value.key not in boxes.by_key:
            raise RequestError(f"{source.path}: nothing in the name map fills {value.key}; the checkpoint is of another kind")
        data = value.data
        for _ in range(value.prepend_axis_num):
            data = data[None]
        boxes.copy_into(value.key, tuple(value.global_offset), data, value.prepend_axis_num)


def load(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None, base: str | None = None
) -> Qwen3VLModel:  # fmt: skip
    """The model in a Hugging Face folder or a Megatron checkpoint, in one process, ready to be called.

    dtype: fp32 on a CPU, bf16 on a GPU unless given. device: the GPU where there is one. base: the model of adapters, if it was
    moved. Raises RequestError for a path that holds no Qwen3-VL, or one whose tensors do not fit its config.
    """
    source = open_source(path, base=base)
    source.check()
    return build_filled(source, dtype, device)


def build_filled(source: ModelSource, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Qwen3VLModel:
    """Like `load`, from a source that is open and checked."""
    cuda = torch.cuda.is_available() and str(device or "cuda").startswith("cuda")
    dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
    process_groups.initialize()
    config = transformer_config(source.architecture, dtype=dtype)
    if isinstance(source, MergedSource):
        source.merge_in(dtype)
    model = build_model(source.architecture, config, parallel_output=False)
    fill(model, source)
    return model.to(device or ("cuda" if cuda else "cpu")).eval()
