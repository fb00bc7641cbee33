"""LoRA for Megatron's parallel linear layers, those of the local spec and Transformer Engine's, experts included.

A linear layer keeps its name, its class's behaviour and its frozen weights; it gets a child `adapter` with
`linear_in.weight` (A) and `linear_out.weight` (B) and adds (alpha / r) B A x to its output. The two are split according to
how W is split, so that the ranks only exchange activations of width r:

- column parallel (qkv, fc1): A is replicated on every rank, B is split as W's rows are. With sequence parallelism A sees a part
  of the sequence and its r columns are gathered; its gradient is summed over the ranks by Megatron, as a norm's is.
- row parallel (proj, fc2): A is split as W's columns are, B is replicated; the r columns are all-reduced, or reduce-scattered.
- experts: the dispatcher has gathered full rows and sums the outputs of the ranks, so only the gradient of the replicated
  matrix is exchanged here.

The initial values do not depend on the layout: each A is drawn in full from its own seed and then split.

Source: LoRA (Hu et al., 2021, https://arxiv.org/abs/2106.09685), with the initial values of the authors' own code and of PEFT.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen3vl_core.model.experts import ALIGNED

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
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
"""In the name of every parameter of an adapter, and of no other."""


@dataclass(frozen=True)
class Target:
    """A linear layer that gets an adapter."""

    name: str
    """Its name in the whole model, counted over all stages and ranks."""
    module: Any
    """Megatron's layer, or Transformer Engine's."""
    config: Any
    kind: str
    gated: bool = False
    """The rows are those of a gate projection, then those of an up projection."""
    expert: bool = False
    experts: tuple[int, ...] = ()
    """The global indices of the experts, for a layer that holds several."""


class _Matrix(torch.nn.Module):
    """`weight` [out, in], or [experts, out, in]."""

    def __init__(self, matrices: list[Tensor], stacked: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.stack(matrices) if stacked else matrices[0])


class Adapter(torch.nn.Module):
    """A and B of one linear layer, this rank's part of them; those of several experts are one tensor.

    Qwen3-VL-30B-A3B has 24,576 matrices in its experts' adapters: as so many parameters an update took a second and a
    checkpoint minutes.
    """

    def __init__(self, adapters: Adapters, target: Target) -> None:
        super().__init__()
        base, self.kind, self.expert, self.gated = target.module, target.kind, target.expert, target.gated
        self.scale, self.dropout, self.experts = adapters.scale, adapters.dropout, target.experts
        self.group = getattr(base, "_tp_group", None) or base.tp_group
        self.size = self.group.size()
        self.sequence_parallel = target.config.sequence_parallel and self.size > 1 and not self.expert
        self.groups: Any = getattr(base, "_pg_collection", None)
        weights = [getattr(base, f"weight{i}") for i in range(len(target.experts))] if target.experts else [base.weight]
        names = [f"{target.name}.{e}" for e in target.experts] if target.experts else [target.name]
        into = [self._first(adapters, name, weight) for name, weight in zip(names, weights, strict=True)]
        out = [weight.new_zeros(weight.shape[0], adapters.rank, dtype=target.config.params_dtype) for weight in weights]
        into = [matrix.to(out[0]) for matrix in into]
        self.linear_in, self.linear_out = (_Matrix(m, bool(target.experts)) for m in (into, out))
        self._mark(getattr(weights[0], "allreduce", True))

    def _first(self, adapters: Adapters, name: str, weight: Tensor) -> Tensor:
        """A as `torch.nn.Linear` initializes it, uniform within 1 / sqrt(in), independent of the parallel layout."""
        width = weight.shape[1] * (self.size if self.kind == ROW else 1)
        seed = int.from_bytes(hashlib.sha256(f"{adapters.seed} {name}".encode()).digest()[:7], "little")
        drawn = torch.rand(adapters.rank, width, generator=torch.Generator().manual_seed(seed))
        full = (drawn * 2 - 1) * width**-0.5
        return full.chunk(self.size, dim=1)[self.group.rank()].contiguous() if self.kind == ROW else full

    def _mark(self, allreduce: bool) -> None:
        """Set the attributes that Megatron reads: how a weight is split, and over which ranks its gradient is summed."""
        inner: Any = self.linear_in.weight  # Megatron's attributes are not torch's
        outer: Any = self.linear_out.weight
        split, replicated, axis = (outer, inner, 0) if self.kind == COLUMN else (inner, outer, 1)
        stacked = bool(self.experts)
        split.allreduce = replicated.allreduce = allreduce
        set_tensor_model_parallel_attributes(split, True, axis + stacked, 1)
        replicated.sequence_parallel = self.sequence_parallel
        if self.expert:
            # for the gradient norm Megatron finds replicated weights by the dense layers' tensor parallel rank; an expert's
            # must be counted on the first rank of the expert group instead
            set_tensor_model_parallel_attributes(replicated, True, 1 - axis + stacked, 1)
            replicated.shared = self.group.rank() > 0

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout of x: ranks with different parts of x draw different masks, ranks with the same x draw the same mask."""
        if not self.dropout or not self.training:
            return x
        differs = self.expert or self.sequence_parallel or (self.kind == ROW and self.size > 1)
        name = (get_expert_parallel_rng_tracker_name(),) if self.expert else ()
        with get_cuda_rng_tracker().fork(*name) if differs else contextlib.nullcontext():
            return F.dropout(x, self.dropout)

    def _replicated(self, weight: Tensor) -> Tensor:
        """The replicated matrix of an expert, whose gradient is summed over the ranks: each has that of its part of the product."""
        return copy_to_tensor_model_parallel_region(weight, group=self.group) if self.size > 1 else weight

    def _exchanged(self, h: Tensor) -> Tensor:
        """The r columns as B needs them."""
        if self.size == 1 or self.expert:
            return h
        if self.kind == COLUMN:
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(h, tensor_parallel_output_grad=True, group=self.group)
            return copy_to_tensor_model_parallel_region(h, group=self.group)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(h, group=self.group)
        return reduce_from_tensor_model_parallel_region(h, group=self.group)

    def forward(self, x: Tensor, splits: list[int] | Tensor | None = None) -> Tensor:
        """(alpha / r) B A x: [..., in] -> [..., out]. splits: as `grouped` takes them, for a layer with several experts."""
        x = self._dropped(x)
        into: Tensor = self.linear_in.weight
        out: Tensor = self.linear_out.weight
        if self.expert:
            into, out = (self._replicated(into), out) if self.kind == COLUMN else (into, self._replicated(out))
        if splits is not None:
            return grouped(grouped(x, into, splits) * self.scale, out, splits)
        return F.linear(self._exchanged(F.linear(x, into)) * self.scale, out)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Laid out like the layer's own weight: stacked by layer, and by expert."""
        inner, outer = "linear_in.weight", "linear_out.weight"
        tensors = {inner: self.linear_in.weight, outer: self.linear_out.weight}
        axes = {outer: 0} if self.kind == COLUMN else {inner: 1}
        if self.experts:
            return {
                prefix + name: self._sharded_experts(prefix + name, tensor, axes.get(name), sharded_offsets, self.gated and name == outer)
                for name, tensor in tensors.items()
            }
        groups = dict(tp_group=self.group, dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"])
        sharded = make_sharded_tensors_for_checkpoint(tensors, prefix, axes, sharded_offsets, **groups)
        if self.gated:
            sharded[prefix + outer] = apply_swiglu_sharded_factory(sharded[prefix + outer], sharded_offsets)
        return sharded

    def _sharded_experts(
        self, key: str, weight: Tensor, axis: int | None, layers: tuple[Any, ...], gated: bool
    ) -> ShardedTensor | ShardedTensorFactory:
        """This rank's experts [n, out, in], and its part of `axis` of the matrix, None for a replicated one. gated: the rows of the
        gates of all ranks are followed by those of the up projections."""
        rank, size = self.group.rank(), self.group.size()
        experts = (len(layers), self.groups.ep.rank(), self.groups.ep.size())
        at = len(layers) + 1 + (axis or 0)
        replica = (0, rank if axis is None else 0, self.groups.expt_dp.rank())

        def of(name: str, part: Tensor, replica_id: Any, *offsets: tuple[int, int, int]) -> ShardedTensor:
            return ShardedTensor.from_rank_offsets(
                name, part, *layers, experts, *offsets, replica_id=replica_id, prepend_axis_num=len(layers)
            )

        def halves(name: str, whole: Tensor, replica_id: Any, *unused: Any) -> list[ShardedTensor]:
            gate, up = whole.chunk(2, dim=1)
            return [of(name, gate, replica_id, (at, rank, 2 * size)), of(name, up, replica_id, (at, size + rank, 2 * size))]

        if gated:
            return ShardedTensorFactory(key, weight, halves, functools.partial(torch.cat, dim=1), replica)
        return of(key, weight, replica, *([] if axis is None else [(at, rank, size)]))


def _padded(x: Tensor, *sizes: int) -> Tensor:
    """x with zeros up to these sizes of its last axes."""
    missing = [n - length for n, length in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    # padding by nothing would copy it
    return F.pad(x, [side for n in reversed(missing) for side in (0, n)]) if any(missing) else x


def _by_rows(weights: Tensor) -> Tensor:
    """Matrices [n, out, in] in the order of the rows, from the last to the first, with zeros up to sizes that `grouped_mm` takes."""
    return _padded(weights.flip(0), *(size + -size % ALIGNED for size in weights.shape[1:]))


class _GroupedAdapter(torch.autograd.Function):
    """See `grouped`; the reversed matrices are not kept for backward but copied again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, ends)
        matrices = _by_rows(weights)
        rows = _padded(x, matrices.shape[2])
        return F.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)[:, : weights.shape[1]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, ends = ctx.saved_tensors
        matrices, (out, into) = _by_rows(weights), weights.shape[1:]
        gradient, rows = _padded(gradient, matrices.shape[1]).contiguous(), _padded(x, matrices.shape[2])
        of_x = F.grouped_mm(gradient, matrices, offs=ends)[:, :into] if ctx.needs_input_grad[0] else None
        of_weights = F.grouped_mm(gradient.t(), rows, offs=ends)[:, :out, :into].flip(0) if ctx.needs_input_grad[1] else None
        return of_x, of_weights, None


def grouped(x: Tensor, weights: Tensor, splits: list[int] | Tensor) -> Tensor:
    """x [tokens, in], whose rows are split by `splits` over the weights [n, out, in] -> [tokens, out].

    splits: rows of each expert, or from the last expert to the first where its rows end, int32 on the device (`experts.product`).
    """
    if isinstance(splits, Tensor):
        return _GroupedAdapter.apply(x, weights, splits)
    out, into = weights.shape[1:]
    fast = x.is_cuda and x.dtype is torch.bfloat16 and hasattr(F, "grouped_mm") and out % ALIGNED == into % ALIGNED == 0
    if fast and x.shape[0]:
        ends = torch.tensor(splits, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x.device, non_blocking=True)
        return F.grouped_mm(x, weights.transpose(1, 2), offs=ends)
    return torch.cat([F.linear(rows, weight) for rows, weight in zip(x.split(splits), weights, strict=True)])


@functools.cache
def _adapted(base: type) -> type:
    """The class `base` with an adapter."""

    class Adapted(base):
        def forward(self, x: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
            result = super().forward(x, *arguments, **options)
            if getattr(self, "return_layernorm_output", False):
                # Transformer Engine's linear layer with a fused norm returns the norm's output too, after the bias if there is one
                if self.te_return_bias:
                    out, bias, x = result
                else:
                    (out, x), bias = result
            else:
                out, bias = result
            return out + self.adapter(x, *arguments), bias

        def sharded_state_dict(
            self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
        ) -> ShardedStateDict:
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
    candidates: list[tuple[str, Target]] = []
    for layer in model.language_model.decoder.layers:
        candidates += [("language", t) for t in _layer_targets(layer, f"language_model.decoder.layers.{layer.layer_number - 1}")]
    if model.vision_model is not None:
        vision = model.vision_model
        for layer in vision.decoder.layers:
            candidates += [("vision", t) for t in _layer_targets(layer, f"vision_model.decoder.layers.{layer.layer_number - 1}")]
        mergers = {"vision_model.merger": vision.merger}
        mergers |= {f"vision_model.decoder.deepstack_merger_list.{i}": m for i, m in enumerate(vision.decoder.deepstack_merger_list)}
        for name, merger in mergers.items():
            for fc, kind in (("linear_fc1", COLUMN), ("linear_fc2", ROW)):
                candidates.append(("projector", Target(f"{name}.{fc}", getattr(merger, fc), merger.config, kind)))
    for part, target in candidates:
        name = next(word for word in reversed(target.name.split(".")) if word.startswith("linear_"))
        if part in adapters.parts and name in adapters.targets:
            yield target


def attach(model: Any, adapters: Adapters) -> int:
    """Attach adapters to a model whose weights are loaded, and freeze everything else.

    Returns how many layers of this stage have one, and sets `model.adapters`.
    """
    model.requires_grad_(False)
    count = 0
    for target in list(targets(model, adapters)):
        module = target.module
        adapter = Adapter(adapters, target)
        module.__class__ = _adapted(module.__class__)
        module.adapter = adapter
        if hasattr(module, "return_layernorm_output"):
            module.return_layernorm_output = True
        count += 1
    model.adapters = adapters
    return count


def of_adapters(state: ShardedStateDict) -> ShardedStateDict:
    """The adapters' part of a model's sharded state."""
    return {key: value for key, value in state.items() if MARK in key}
