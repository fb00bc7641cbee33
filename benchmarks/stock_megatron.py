"""Megatron-Core's own GPTModel around the language tower, as its pretrain_gpt builds it: the peer of `finetune.py` for text.

Nothing of this project is in it but the shape: Transformer Engine's layer spec, Megatron's defaults of a `TransformerConfig` with
every fusion on that the installed packages have, its DDP and schedule, its optimizer with fp32 masters. `settings` are further fields
of the config; those to try: `cuda_graph_impl=local` (a graph for each layer), the same with `cuda_graph_scope=full_iteration` (one for
all micro batches of a step), `cross_entropy_fusion_impl=te`; and `overlap=on`: the distributed optimizer, reduction and gathering
overlapped, of which one GPU need not profit.

The fusion of a weight gradient with its addition needs APEX in Megatron's output layer; without APEX it is on in the layers of
Transformer Engine, which have their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.specs import add_linear_gradients_in_place, use_transformer_engine

import random_run
import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.full_cuda_graph import FullCudaGraphWrapper
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from padded_rows import DEVICE, MICRO_BATCHES

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.micro_batch import IGNORED

try:
    import fused_weight_gradient_mlp_cuda  # noqa: F401

    HAS_APEX = True
except ImportError:
    HAS_APEX = False


def transformer_config(a: Architecture, settings: dict[str, str]) -> TransformerConfig:
    """As pretrain_gpt makes it of its arguments for this shape in bf16."""
    on_gpu = use_transformer_engine()
    fusions = dict(
        bias_activation_fusion=True, bias_dropout_fusion=True, masked_softmax_fusion=True, apply_rope_fusion=True, persist_layer_norm=True,
        gradient_accumulation_fusion=HAS_APEX, cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="native",
    )  # fmt: skip
    values = dict(
        num_layers=a.num_layers, hidden_size=a.hidden_size, num_attention_heads=a.num_heads, num_query_groups=a.num_kv_heads,
        kv_channels=a.head_dim, ffn_hidden_size=a.ffn_hidden_size, normalization="RMSNorm", gated_linear_unit=True, activation_func=F.silu,
        add_bias_linear=False, qk_layernorm=True, layernorm_epsilon=a.rms_norm_eps, hidden_dropout=0.0, attention_dropout=0.0,
        params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, bf16=True, attention_softmax_in_fp32=False,
        use_cpu_initialization=not on_gpu, **(fusions if on_gpu else {}),
    )  # fmt: skip
    return TransformerConfig(**(values | settings))


def scheduler_of(optimizer: Any) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=1e-5, min_lr=1e-6, lr_warmup_steps=0, lr_decay_steps=1000, lr_decay_style="cosine", start_wd=0.01,
        end_wd=0.01, wd_incr_steps=1000, wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )  # fmt: skip


def wrapped(a: Architecture, config: TransformerConfig, length: int, overlap: bool) -> DistributedDataParallel:
    """The model with random weights, in Megatron's wrappers for bf16 and data parallelism."""
    on_gpu = use_transformer_engine()
    spec = (
        get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True) if on_gpu
        else get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    )  # fmt: skip
    model = GPTModel(
        config=config, transformer_layer_spec=spec, vocab_size=a.vocab_size, max_sequence_length=length, position_embedding_type="rope",
        rotary_base=int(a.rope_theta), share_embeddings_and_output_weights=a.tied,
    ).to(DEVICE)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, random_run.SPREAD) if parameter.dim() > 1 else parameter.fill_(1.0)
    if on_gpu and not HAS_APEX:
        add_linear_gradients_in_place(model)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, overlap_param_gather=overlap, use_distributed_optimizer=overlap,
        check_for_nan_in_grad=False,
    )  # fmt: skip
    return DistributedDataParallel(config, ddp, Float16Module(config, model))


def loss_of(labels: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Mean over a micro batch's trained tokens."""
    trained = labels != IGNORED
    loss = (losses.float() * trained).sum() / trained.sum().clamp(min=1)
    # the schedule divides the other one in place
    return loss, {"loss": loss.detach().clone()}


def forward_step(rows: Iterator[dict[str, Any]], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    row = next(rows)
    labels = row["labels"].to(DEVICE, non_blocking=True)
    ids, positions = (row[name].to(DEVICE, non_blocking=True) for name in ("ids", "positions"))
    return model(ids, positions, None, labels=labels.clamp(min=0)), functools.partial(loss_of, labels)


def rows_of(micro_batches: list[Batch], length: int) -> list[dict[str, Any]]:
    """Padded to `length`: graphs and buffers need equal shapes."""
    rows = []
    for batch in micro_batches:
        padding = (0, length - batch.input_ids.shape[1])
        ids, labels = F.pad(batch.input_ids, padding), F.pad(batch.labels, padding, value=IGNORED)
        rows.append({"ids": ids, "labels": labels, "positions": torch.arange(length).expand_as(ids).contiguous()})
    return rows


def trainer(config: dict[str, Any], length: int, settings: dict[str, str]) -> Callable[[list[Batch]], float]:
    """Runs a step of micro batches of text, rows padded to `length`, and returns their mean loss."""
    a = Architecture.from_config(config)
    process_groups.initialize()
    overlap = settings.get("overlap") == "on"
    megatron = transformer_config(a, {name: value for name, value in settings.items() if name != "overlap"})
    if megatron.cuda_graph_impl != "none":
        model_parallel_cuda_manual_seed(1234, te_rng_tracker=True, force_reset_rng=True)
    if DEVICE == "cuda":
        # as pretrain_gpt: gradients are accumulated on the stream of the capture, not on the legacy one
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model = wrapped(a, megatron, length, overlap)
        torch.cuda.current_stream().wait_stream(stream)
    else:
        model = wrapped(a, megatron, length, overlap)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-5, min_lr=1e-6, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.95, clip_grad=1.0, bf16=True,
            params_dtype=torch.bfloat16, use_distributed_optimizer=overlap, overlap_param_gather=overlap,
        ),
        [model],
    )  # fmt: skip
    scheduler = scheduler_of(optimizer)
    megatron.grad_scale_func, megatron.finalize_model_grads_func = optimizer.scale_loss, finalize_model_grads
    megatron.no_sync_func = model.no_sync
    forward_backward = get_forward_backward_func()
    if "full_iteration" in settings.get("cuda_graph_scope", ""):
        forward_backward = FullCudaGraphWrapper(forward_backward, cuda_graph_warmup_steps=1)
    model.train()

    def train(micro_batches: list[Batch]) -> float:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        results = forward_backward(
            forward_step_func=forward_step, data_iterator=iter(rows_of(micro_batches, length)), model=[model],
            num_microbatches=MICRO_BATCHES, seq_length=length, micro_batch_size=micro_batches[0].input_ids.shape[0], forward_only=False,
        )  # fmt: skip
        optimizer.step()
        scheduler.step(increment=1)
        return float(torch.stack([result["loss"] for result in results]).mean())

    return train
