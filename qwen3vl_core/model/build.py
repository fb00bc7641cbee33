"""Builds a model, or one pipeline stage of it, from architecture and config."""

from __future__ import annotations

from qwen3vl_core.model.qwen3vl import Qwen3VLModel

from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen3vl_core.sizes import Architecture


def build_model(
    architecture: Architecture,
    config: TransformerConfig,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    parallel_output: bool = True,
) -> Qwen3VLModel:
    """A model, or one pipeline stage of it, with uninitialized weights: load them from a checkpoint.

    pre_process, post_process: the first and the last stage; vp_stage: number of this model chunk of the stage, None for the only
    one. parallel_output: logits stay split over the tensor parallel ranks, as the loss expects them. Needs
    `qwen3vl_core.model.process_groups.initialize` first.
    """
    model = Qwen3VLModel(
        architecture, config, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage, parallel_output=parallel_output
    )
    _mark_split_weights(model)
    _mark_expert_weights(model, config)
    return model


def _mark_split_weights(model: Qwen3VLModel) -> None:
    """Megatron marks split weights in their random initialization, which is skipped here; the gradient norm counts an
    unmarked weight on one tensor parallel rank only."""
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            dimension = 0
        elif isinstance(module, RowParallelLinear):
            dimension = 1
        else:
            continue
        if module.weight is not None:
            if hasattr(module.weight, "tensor_model_parallel"):
                del module.weight.tensor_model_parallel, module.weight.partition_dim, module.weight.partition_stride
            set_tensor_model_parallel_attributes(module.weight, True, dimension, 1)


def _mark_expert_weights(model: Qwen3VLModel, config: TransformerConfig) -> None:
    """Experts that are split differently from the dense layers are replicated on different ranks, so their gradients are
    summed over their own data parallel group. Megatron does so with expert parallelism only; with an expert tensor parallel
    size that differs from the dense one, each rank would keep the gradient of its own tokens."""
    if not config.num_moe_experts or config.expert_tensor_parallel_size == config.tensor_model_parallel_size:
        return
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            parameter.allreduce = False
