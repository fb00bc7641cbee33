"""LoRA beside Megatron's parallel linear layers, those of the local spec and Transformer Engine's, experts included.

A linear layer keeps its name, its class's behaviour and its weights, which stay as they are; it gets a child `adapter` with
`linear_in.weight` (A) and `linear_out.weight` (B) and adds (alpha / r) B A x to its output. How the two are split follows
from how W is, so that what the ranks exchange is only r wide:

- column parallel (qkv, fc1): A is whole on every rank, B is split as W's rows are. With sequence parallelism A sees a part of
  the sequence and its r columns are gathered; its gradient is summed over the ranks by Megatron, as a norm's is.
- row parallel (proj, fc2): A is split as W's columns are, B is whole; the r columns are summed, or summed and scattered.
- experts: the dispatcher has brought whole rows and sums what the ranks return, so nothing is exchanged here but the gradient
  of the part that is whole.

The first numbers do not depend on the layout: each A is drawn whole from a seed of its own and then cut.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_expert_parallel_rng_tracker_name
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor

from qwen3vl_core.layout.adapters import Adapters

COLUMN, ROW = "column", "row"
MARK = ".adapter."
"""In the name of every number of an adapter, and of no other."""
# torch's grouped product wants rows of whole 16 bytes
_ALIGNED = 8


@dataclass(frozen=True)
class Target:
    """A linear layer that gets an adapter."""

    name: str
    """Its name in the whole model, counted over all stages and ranks."""
    module: torch.nn.Module
    config: Any
    kind: str
    gated: bool = False
    """The rows are those of a gate and an up projection, one below the other."""
    expert: bool = False
    experts: tuple[int, ...] = ()
    """Of a layer that holds several: their numbers in the whole model."""


class _Matrices(torch.nn.Module):
    """`weight`, or `weight0`, `weight1`, … of several experts."""

    def __init__(self, matrices: list[Tensor], numbered: bool) -> None:
        super().__init__()
        self.numbered = numbered
        for i, matrix in enumerate(matrices):
            self.register_parameter(f"weight{i}" if numbered else "weight", torch.nn.Parameter(matrix))

    def all(self) -> list[torch.nn.Parameter]:
        return list(self.parameters())


class Adapter(torch.nn.Module):
    """A and B of one linear layer, this rank's part of them."""

    def __init__(self, adapters: Adapters, target: Target) -> None:
        super().__init__()
        base, self.kind, self.expert, self.gated = target.module, target.kind, target.expert, target.gated
        self.scale, self.dropout, self.experts = adapters.scale, adapters.dropout, target.experts
        self.group = getattr(base, "_tp_group", None) or base.tp_group
        self.size = self.group.size()
        self.sequence_parallel = target.config.sequence_parallel and self.size > 1 and not self.expert
        self.groups = getattr(base, "_pg_collection", None)
        weights = [getattr(base, f"weight{i}") for i in range(len(target.experts))] if target.experts else [base.weight]
        names = [f"{target.name}.{e}" for e in target.experts] if target.experts else [target.name]
        into = [self._first(adapters, name, weight) for name, weight in zip(names, weights, strict=True)]
        out = [weight.new_zeros(weight.shape[0], adapters.rank, dtype=target.config.params_dtype) for weight in weights]
        into = [matrix.to(out[0]) for matrix in into]
        self.linear_in, self.linear_out = (_Matrices(m, bool(target.experts)) for m in (into, out))
        self._mark(getattr(weights[0], "allreduce", True))

    def _first(self, adapters: Adapters, name: str, weight: Tensor) -> Tensor:
        """A as `torch.nn.Linear` draws it, uniform within 1 / sqrt(in), whichever ranks hold it."""
        width = weight.shape[1] * (self.size if self.kind == ROW else 1)
        seed = int.from_bytes(hashlib.sha256(f"{adapters.seed} {name}".encode()).digest()[:7], "little")
        drawn = torch.rand(adapters.rank, width, generator=torch.Generator().manual_seed(seed))
        whole = (drawn * 2 - 1) * width**-0.5
        return whole.chunk(self.size, dim=1)[self.group.rank()].contiguous() if self.kind == ROW else whole

    def _mark(self, allreduce: bool) -> None:
        """What Megatron reads from a weight: how it is split, and over whom its gradient is summed."""
        split, whole, axis = (self.linear_out, self.linear_in, 0) if self.kind == COLUMN else (self.linear_in, self.linear_out, 1)
        for parameter in (*split.all(), *whole.all()):
            parameter.allreduce = allreduce
        for parameter in split.all():
            set_tensor_model_parallel_attributes(parameter, True, axis, 1)
        for parameter in whole.all():
            parameter.sequence_parallel = self.sequence_parallel
            if self.expert:
                # what only the first tensor parallel rank holds of the norm of the gradient is told by the groups of the dense
                # layers: an expert's is counted by the first rank of its own group
                set_tensor_model_parallel_attributes(parameter, True, 1 - axis, 1)
                parameter.shared = self.group.rank() > 0

    def _dropped(self, x: Tensor) -> Tensor:
        """Ranks that hold different numbers of x draw differently, those that hold the same draw alike."""
        if not self.dropout or not self.training:
            return x
        apart = self.expert or self.sequence_parallel or (self.kind == ROW and self.size > 1)
        name = (get_expert_parallel_rng_tracker_name(),) if self.expert else ()
        with get_cuda_rng_tracker().fork(*name) if apart else contextlib.nullcontext():
            return F.dropout(x, self.dropout)

    def _whole(self, weight: Tensor) -> Tensor:
        """Of an expert, the matrix that is not split: each rank has the gradient of its part of the work."""
        return copy_to_tensor_model_parallel_region(weight, group=self.group) if self.size > 1 else weight

    def _exchanged(self, h: Tensor) -> Tensor:
        """The r columns as B wants them."""
        if self.size == 1 or self.expert:
            return h
        if self.kind == COLUMN:
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(h, tensor_parallel_output_grad=True, group=self.group)
            return copy_to_tensor_model_parallel_region(h, group=self.group)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(h, group=self.group)
        return reduce_from_tensor_model_parallel_region(h, group=self.group)

    def forward(self, x: Tensor, splits: list[int] | None = None) -> Tensor:
        """(alpha / r) B A x: [..., in] -> [..., out]. splits: of a layer with several experts, the rows of each."""
        x = self._dropped(x)
        into, out = self.linear_in.all(), self.linear_out.all()
        if self.expert:
            into, out = ([self._whole(w) for w in into], out) if self.kind == COLUMN else (into, [self._whole(w) for w in out])
        if splits is not None:
            return grouped(grouped(x, into, splits) * self.scale, out, splits)
        return F.linear(self._exchanged(F.linear(x, into[0])) * self.scale, out[0])

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> ShardedStateDict:
        """As the layer's own weight is kept: stacked by layer, and by expert."""
        groups = dict(tp_group=self.group, dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"])
        inner, outer = "linear_in.weight", "linear_out.weight"
        axes = {outer: 0} if self.kind == COLUMN else {inner: 1}

        def of(one: Tensor, other: Tensor, offsets: tuple) -> ShardedStateDict:
            made = make_sharded_tensors_for_checkpoint({inner: one, outer: other}, prefix, axes, offsets, **groups)
            if self.gated:
                made[prefix + outer] = apply_swiglu_sharded_factory(made[prefix + outer], offsets)
            return made

        pairs = list(zip(self.linear_in.all(), self.linear_out.all(), strict=True))
        if not self.experts:
            return of(*pairs[0], sharded_offsets)
        state, total = {}, len(self.experts) * self.groups.ep.size()
        for i, (pair, expert) in enumerate(zip(pairs, self.experts, strict=True)):
            for key, tensor in of(*pair, (*sharded_offsets, (len(sharded_offsets), expert, total))).items():
                tensor.replica_id = (*tensor.replica_id[:2], self.groups.expt_dp.rank())
                state[f"{key}{i}"] = tensor
        return state


def grouped(x: Tensor, weights: list[Tensor], splits: list[int]) -> Tensor:
    """Rows of x [tokens, in], `splits` of them for each weight [out, in] -> [tokens, out]."""
    out, into = weights[0].shape
    fast = x.is_cuda and x.dtype is torch.bfloat16 and hasattr(F, "grouped_mm") and out % _ALIGNED == into % _ALIGNED == 0
    if fast and x.shape[0]:
        ends = torch.tensor(splits, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x.device, non_blocking=True)
        return F.grouped_mm(x, torch.stack(weights).transpose(1, 2), offs=ends)
    parts = zip(x.split(splits), weights, strict=True)
    return torch.cat([F.linear(part, weight) for part, weight in parts])


@functools.cache
def _adapted(base: type) -> type:
    """The class `base` with an adapter beside it."""

    class Adapted(base):
        def forward(self, x: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
            made = super().forward(x, *arguments, **options)
            if getattr(self, "return_layernorm_output", False):
                # Transformer Engine's linear layer with the norm in it gives what it normed, after the bias if there is one
                if self.te_return_bias:
                    out, bias, x = made
                else:
                    (out, x), bias = made
            else:
                out, bias = made
            return out + self.adapter(x, *arguments), bias

        def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> ShardedStateDict:
            adapter = self._modules.pop("adapter")
            try:
                state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
            finally:
                self._modules["adapter"] = adapter
            return state | adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)

    Adapted.__name__, Adapted.__qualname__ = f"Lora{base.__name__}", f"Lora{base.__name__}"
    return Adapted


def _layer_targets(layer: Any, name: str) -> Iterator[Target]:
    """The linear layers of one transformer layer."""
    attention, mlp, config = layer.self_attention, layer.mlp, layer.config
    yield Target(f"{name}.self_attention.linear_qkv", attention.linear_qkv, config, COLUMN)
    yield Target(f"{name}.self_attention.linear_proj", attention.linear_proj, config, ROW)
    gated = config.gated_linear_unit
    experts = getattr(mlp, "experts", None)
    if experts is None:
        yield Target(f"{name}.mlp.linear_fc1", mlp.linear_fc1, config, COLUMN, gated)
        yield Target(f"{name}.mlp.linear_fc2", mlp.linear_fc2, config, ROW)
        return
    numbers = tuple(mlp.local_expert_indices)
    if not hasattr(experts, "local_experts"):
        yield Target(f"{name}.mlp.experts.linear_fc1", experts.linear_fc1, config, COLUMN, gated, True, numbers)
        yield Target(f"{name}.mlp.experts.linear_fc2", experts.linear_fc2, config, ROW, False, True, numbers)
        return
    for number, expert in zip(numbers, experts.local_experts, strict=True):
        yield Target(f"{name}.mlp.experts.linear_fc1.{number}", expert.linear_fc1, config, COLUMN, gated, True)
        yield Target(f"{name}.mlp.experts.linear_fc2.{number}", expert.linear_fc2, config, ROW, False, True)


def targets(model: Any, adapters: Adapters) -> Iterator[Target]:
    """The linear layers of this stage that get an adapter."""
    found: list[tuple[str, Target]] = []
    for layer in model.language_model.decoder.layers:
        found += [("language", t) for t in _layer_targets(layer, f"language_model.decoder.layers.{layer.layer_number - 1}")]
    if model.vision_model is not None:
        vision = model.vision_model
        for layer in vision.decoder.layers:
            found += [("vision", t) for t in _layer_targets(layer, f"vision_model.decoder.layers.{layer.layer_number - 1}")]
        mergers = {"vision_model.merger": vision.merger}
        mergers |= {f"vision_model.decoder.deepstack_merger_list.{i}": m for i, m in enumerate(vision.decoder.deepstack_merger_list)}
        for name, merger in mergers.items():
            for fc, kind in (("linear_fc1", COLUMN), ("linear_fc2", ROW)):
                found.append(("projector", Target(f"{name}.{fc}", getattr(merger, fc), merger.config, kind)))
    for part, target in found:
        name = next(word for word in reversed(target.name.split(".")) if word.startswith("linear_"))
        if part in adapters.parts and name in adapters.targets:
            yield target


def attach(model: Any, adapters: Adapters) -> int:
    """Put adapters beside the layers of a model that has its weights, and take everything else out of training.

    Returns how many layers of this stage have one. `model.adapters` then says what they are.
    """
    model.requires_grad_(False)
    count = 0
    for target in list(targets(model, adapters)):
        module = target.module
        adapter = Adapter(adapters, target)
        module.__class__ = _adapted(type(module))
        module.adapter = adapter
        if hasattr(module, "return_layernorm_output"):
            module.return_layernorm_output = True
        count += 1
    model.adapters = adapters
    return count


def of_adapters(state: ShardedStateDict) -> ShardedStateDict:
    """Of a model's sharded state, the numbers of its adapters."""
    return {key: value for key, value in state.items() if MARK in key}
