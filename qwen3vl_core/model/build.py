"""Making a model: the one place that puts architecture, config and pipeline stage together."""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig

from qwen3vl_core.errors import RequestError
from qwen3vl_core.model.qwen3vl import Qwen3VLModel
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
    """A model, or one pipeline stage of it, whose weights are still undefined: fill them from a checkpoint.

    parallel_output: logits stay split over the tensor parallel ranks, as the loss wants them. Needs
    `qwen3vl_core.model.parallel.initialize` first. Raises RequestError for what this version does not build.
    """
    if architecture.is_moe:
        raise RequestError(
            f"a model of {architecture.num_experts} experts: mixture-of-experts models are not built by this version; "
            "use a dense size (2B, 4B, 8B, 32B)"
        )
    return Qwen3VLModel(
        architecture, config, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage, parallel_output=parallel_output
    )
