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

from qwen3vl_core.model.experts import ALIGNED, aligned, product

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


class _Matrices(torch.nn.Module):
    """`weight`, or `weight0`, `weight1`, … for several experts."""

    def __init__(self, matrices: list[Tensor], numbered: bool) -> None:
        super().__init__()
        self.numbered = numbered
        for i, matrix in enumerate(matrices):
            self.register_parameter(f"weight{i}" if numbered else "weight", torch.nn.Parameter(matrix))

    def all(self) -> list[Tensor]:
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
        self.groups: Any = getattr(base, "_pg_collection", None)
        weights = [getattr(base, f"weight{i}") for i in range(len(target.experts))] if target.experts else [base.weight]
        names = [f"{target.name}.{e}" for e in target.experts] if target.experts else [target.name]
        into = [self._first(adapters, name, weight) for name, weight in zip(names, weights, strict=True)]
        out = [weight.new_zeros(weight.shape[0], adapters.rank, dtype=target.config.params_dtype) for weight in weights]
        into = [matrix.to(out[0]) for matrix in into]
        self.linear_in, self.linear_out = (_Matrices(m, bool(target.experts)) for m in (into, out))
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
        parameter: Any  # Megatron's attributes are not torch's
        split, replicated, axis = (self.linear_out, self.linear_in, 0) if self.kind == COLUMN else (self.linear_in, self.linear_out, 1)
        for parameter in (*split.all(), *replicated.all()):
            parameter.allreduce = allreduce
        for parameter in split.all():
            set_tensor_model_parallel_attributes(parameter, True, axis, 1)
        for parameter in replicated.all():
            parameter.sequence_parallel = self.sequence_parallel
            if self.expert:
                # for the gradient norm Megatron finds replicated weights by the dense layers' tensor parallel rank; an expert's
                # must be counted on the first rank of the expert group instead
                set_tensor_model_parallel_attributes(parameter, True, 1 - axis, 1)
                parameter.shared = self.group.rank() > 0

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
        into, out = self.linear_in.all(), self.linear_out.all()
        if self.expert:
            into, out = ([self._replicated(w) for w in into], out) if self.kind == COLUMN else (into, [self._replicated(w) for w in out])
        if splits is not None:
            return grouped(grouped(x, into, splits) * self.scale, out, splits)
        return F.linear(self._exchanged(F.linear(x, into[0])) * self.scale, out[0])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Laid out like the layer's own weight: stacked by layer, and by expert."""
        groups = dict(tp_group=self.group, dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"])
        inner, outer = "linear_in.weight", "linear_out.weight"
        axes = {outer: 0} if self.kind == COLUMN else {inner: 1}

        def of(a: Tensor, b: Tensor, offsets: tuple[Any, ...]) -> ShardedStateDict:
            sharded = make_sharded_tensors_for_checkpoint({inner: a, outer: b}, prefix, axes, offsets, **groups)
            if self.gated:
                sharded[prefix + outer] = apply_swiglu_sharded_factory(sharded[prefix + outer], offsets)
            return sharded

        pairs = list(zip(self.linear_in.all(), self.linear_out.all(), strict=True))
        if not self.experts:
            return of(*pairs[0], sharded_offsets)
        state, total = {}, len(self.experts) * self.groups.ep.size()
        for i, (pair, expert) in enumerate(zip(pairs, self.experts, strict=True)):
            for key, tensor in of(*pair, (*sharded_offsets, (len(sharded_offsets), expert, total))).items():
                tensor.replica_id = (*tensor.replica_id[:2], self.groups.expt_dp.rank())
                state[f"{key}{i}"] = tensor
        return state


def grouped(x: Tensor, weights: list[Tensor], splits: list[int] | Tensor) -> Tensor:
    """x [tokens, in], whose rows are split by `splits` over the weights [out, in] -> [tokens, out].

    splits: rows of each expert, or from the last expert to the first where its rows end, int32 on the device (`experts.product`).
    """
    out, into = weights[0].shape
    if isinstance(splits, Tensor):
        if out % ALIGNED == into % ALIGNED == 0:
            return product(x, splits, weights[::-1], in_place=hasattr(weights[0], "main_grad"))
        matrices = aligned(weights[::-1])
        # padding by nothing would copy the rows
        rows = x if matrices.shape[2] == into else F.pad(x, (0, matrices.shape[2] - into))
        return F.grouped_mm(rows, matrices.transpose(1, 2), offs=splits)[:, :out]
    fast = x.is_cuda and x.dtype is torch.bfloat16 and hasattr(F, "grouped_mm") and out % ALIGNED == into % ALIGNED == 0
    if fast and x.shape[0]:
        ends = torch.tensor(splits, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x.device, non_blocking=True)
        return F.grouped_mm(x, torch.stack(weights).transpose(1, 2), offs=ends)
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
