"""The adapters of a PEFT folder or of a LoRA run as the first values of a run's own, in any parallel layout (`--init-adapter`).

Each rank reads what it holds. Adapters of one matrix with different A are put below each other (`layout.init_adapter`); what the run has
beyond them keeps the values that it is made with: A is drawn, B is zero, so that nothing is added to the output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen3vl_core.model.lora import of_adapters

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from qwen3vl_core.checkpoint import transforms
from qwen3vl_core.checkpoint.lora_merge import INNER, OUTER, AdaptedSource, MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import Layout, Region
from qwen3vl_core.checkpoint.peft_source import PeftSource
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.adapters import Adapters


def open_adapter(path: str, base: ModelSource) -> MergedSource:
    """The adapters at `path`, beside `base`. Raises RequestError unless they were trained beside that model."""
    source = open_source(path, option="--init-adapter", base=str(base.origin))
    if not isinstance(source, PeftSource | AdaptedSource):
        raise RequestError(f"--init-adapter {path}: holds a model, not adapters; give it as --load")
    source.check()
    return source


class _FusedAdapters:
    """A and B of each matrix of Megatron's, unscaled; the last ones are cached, as the boxes of one matrix come after each other."""

    def __init__(self, source: MergedSource, adapters: Adapters) -> None:
        self.source, self.adapters = source, adapters
        self.stored: dict[tuple[str, tuple[int, ...]], list[tuple[Region, Region]]] = {}
        """Of a matrix, by its name and its layer or expert: its regions, one below the other, here and in the base."""
        for own, stored in zip(source.base.regions(Layout()), source.base.regions(), strict=True):
            if own.key.endswith(".weight") and len(own.size) >= 2:
                place = own.key.removesuffix(".weight"), own.offset[: len(own.size) - 2]
                self.stored.setdefault(place, []).append((own, stored))
        self._last: tuple[Any, tuple[Tensor, Tensor] | None] = (None, None)

    def of(self, name: str, at: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        """(A [n, in], B [out, n]) in fp32; None where this matrix has no adapter."""
        if self._last[0] != (name, at):
            if (name, at) not in self.stored:
                raise RequestError(f"{self.source.path}: nothing is known of {name}; the adapter is of another model")
            regions = sorted(self.stored[name, at], key=lambda pair: pair[0].offset)
            source = self.source
            matrices = _of_run(source, regions) if isinstance(source, AdaptedSource) else self._of_peft(regions)
            if matrices is not None and matrices[0].shape[0] > self.adapters.rank:
                rank = f"rank {matrices[0].shape[0]}, the run's adapters have {self.adapters.rank}"
                raise RequestError(f"{self.source.path}: {name}: {rank}; give --init-adapter without --lora-rank")
            self._last = (name, at), matrices
        return self._last[1]

    def _of_peft(self, regions: list[tuple[Region, Region]]) -> tuple[Tensor, Tensor] | None:
        source = self.source
        assert isinstance(source, PeftSource)
        matrices = [[source.megatron_matrices(stored, i) for i in range(len(stored.hf))] for _, stored in regions]
        inner: list[Tensor] = []
        for a, _, _ in (pair for pairs in matrices for pair in pairs if pair is not None):
            if not any(torch.equal(a, other) for other in inner):
                inner.append(a)
        if not inner:
            return None
        begins = [sum(len(other) for other in inner[:i]) for i in range(len(inner))]
        width = sum(map(len, inner))
        below: list[Tensor] = []
        for (own, stored), pairs in zip(regions, matrices, strict=True):
            parts = []
            for shape, pair in zip(stored.hf_shapes, pairs, strict=True):
                # a transposed tensor's columns are the rows of Megatron's matrix
                part = torch.zeros(shape[1] if stored.transform == "transposed" else shape[0], width)
                if pair is not None:
                    a, b, scale = pair
                    begin = next(at for at, other in zip(begins, inner, strict=True) if torch.equal(a, other))
                    part[:, begin : begin + len(a)] = b if scale == self.adapters.scale else b * (scale / self.adapters.scale)
                parts.append(part)
            if stored.transform != "transposed":
                narrow = replace(own, size=(*own.size[:-1], width), hf_shapes=tuple((shape[0], width) for shape in own.hf_shapes))
                parts = [transforms.to_megatron(narrow, parts).reshape(-1, width)]
            below += parts
        return torch.cat(inner), torch.cat(below)


def _of_run(source: AdaptedSource, regions: list[tuple[Region, Region]]) -> tuple[Tensor, Tensor] | None:
    pairs = [source.matrices(stored) for _, stored in regions]
    if any(pair is None for pair in pairs):
        return None
    return pairs[0][0].float(), torch.cat([outer.float() for _, outer in filter(None, pairs)])  # type: ignore[index]


@torch.no_grad()
def fill_adapters(model: Any, source: MergedSource) -> int:
    """Copy this rank's part of the adapters into a model that has its own. Returns how many matrices got values.

    Raises RequestError where a matrix of the source has no adapter in the model, or one of a smaller rank.
    """
    boxes, count = _FusedAdapters(source, model.adapters), 0
    state = dict(of_adapters(model.sharded_state_dict()))
    apply_factories(state)
    for value in nested_values(state):
        if not isinstance(value, ShardedTensor):
            continue
        inner, (*lead, first, second) = value.key.endswith(INNER), value.global_offset
        name, (rows, columns) = value.key.removesuffix(INNER if inner else OUTER), value.local_shape[-2:]
        # the experts of a rank are one tensor, or one each
        stacked = len(value.local_shape) == 3
        for i, data in enumerate(value.data if stacked else [value.data]):
            pair = boxes.of(name, (*lead[:-1], lead[-1] + i) if stacked else tuple(lead))
            if pair is None:
                continue
            matrix = pair[0 if inner else 1]
            if inner:
                data[: len(matrix)].copy_(matrix[:, second : second + columns])
            else:
                data[:, : matrix.shape[1]].copy_(matrix[first : first + rows])
            count += inner
    return count
