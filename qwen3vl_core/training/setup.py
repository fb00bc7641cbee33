"""Builds the model, optimizer and learning rate schedule of a run on this rank from its options."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.model import cpu
from qwen3vl_core.model.build import build_model
from qwen3vl_core.model.config import FP8_ROWS, transformer_config
from qwen3vl_core.model.experts import gather_tokens, join_experts
from qwen3vl_core.model.kernels import switched_off
from qwen3vl_core.model.lora import attach
from qwen3vl_core.model.patches.adam_in_parts import patch_large_adam
from qwen3vl_core.model.patches.master_weights import patch_copy_of_masters
from qwen3vl_core.model.patches.precision_aware import patch_precision_aware
from qwen3vl_core.model.qwen3vl import Qwen3VLModel
from qwen3vl_core.model.router import count_expert_tokens
from qwen3vl_core.model.specs import add_gradients_in_place, has_flash_attention, use_transformer_engine

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from qwen3vl_core.checkpoint.adapter_start import fill_adapters
from qwen3vl_core.checkpoint.common_pt import megatron_common
from qwen3vl_core.checkpoint.load import fill
from qwen3vl_core.checkpoint.lora_merge import MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.dtypes import DTYPES
from qwen3vl_core.layout.adapters import Adapters
from qwen3vl_core.layout.cuda_graphs import gathers_tokens, no_graph_because
from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.micro_batch import StructureRules
from qwen3vl_core.training.graphs import MicroBatchGraphs, finalize_gradients, prepare_capture
from qwen3vl_core.training.stage_graphs import StageGraphs
from qwen3vl_core.training.throughput import GpuClock

# parts of the model as `--freeze` names them -> prefixes of parameter names
PARTS = {
    "vision": ("vision_model.patch_embed.", "vision_model.pos_embed.", "vision_model.decoder.layers."),
    "projector": ("vision_model.merger.", "vision_model.decoder.deepstack_merger_list."),
    "language": ("language_model.",),
}
# cuDNN builds an attention plan for every new row length, which takes about a second, and keeps all plans: rows are padded to a
# multiple of this many tokens to limit their number. For packed rows and pictures Transformer Engine rounds the lengths itself
LENGTH_STEP = 128
# loss scale of fp16: Megatron's defaults, with a shorter window that recovers within a small run
FP16_SCALE = dict(initial_loss_scale=2.0**16, min_loss_scale=1.0, loss_scale_window=200, hysteresis=2)


@dataclass
class Training:
    """Everything that one rank trains with."""

    architecture: Architecture
    models: list[Qwen3VLModel]
    """The chunks of this pipeline stage; one, unless the schedule is interleaved."""
    wrapped: list[DistributedDataParallel]
    """`models` inside Megatron's precision and data-parallel wrappers."""
    optimizer: Any
    scheduler: OptimizerParamScheduler
    config: Any
    dtype: torch.dtype
    rules: StructureRules
    """How batches are laid out for this model."""
    frozen: tuple[str, ...] = ()
    """Parts that are not trained."""
    adapters: Adapters | None = None
    """LoRA adapters; None for a run that trains the weights themselves."""
    graphs: MicroBatchGraphs | StageGraphs | None = None
    """CUDA graphs of the micro batches, or of the stages of a pipeline; None where they run without graphs."""
    optimizer_clock: GpuClock = field(default_factory=GpuClock)


def multiple_of(options: FinetuneOptions) -> int:
    """The length of a row, or of each document of a packed row, must be a multiple of this: context parallelism splits it into
    2 x cp chunks, sequence parallelism splits a rank's share into tp, and fp8 GEMMs need a multiple of 16 rows."""
    rows = FP8_ROWS if options.precision == "fp8" else 1
    return (options.tp if options.sequence_parallel else 1) * (options.cp * max(rows, 2) if options.cp > 1 else rows)


def structure_rules(options: FinetuneOptions, architecture: Architecture) -> StructureRules:
    """How a run's batches are laid out on this rank. The process groups must be initialised."""
    step = LENGTH_STEP if use_transformer_engine() else 1
    return StructureRules(
        architecture, math.lcm(multiple_of(options), step), options.pad_length, options.cp,
        parallel_state.get_context_parallel_rank(), buckets=with_graphs(options, architecture), seq_length=options.seq_length,
        all_logits=switched_off("trained_logits"), equal_rows=gathers_tokens(options, architecture, this_machine()),
    )  # fmt: skip


def with_graphs(options: FinetuneOptions, architecture: Architecture) -> bool:
    """Whether this run captures its micro batches as CUDA graphs."""
    return not no_graph_because(options, architecture, this_machine())


def device() -> torch.device:
    """The device of this rank."""
    return torch.device("cpu") if cpu.on_cpu() else torch.device("cuda", torch.cuda.current_device())


def freeze(model: Qwen3VLModel, parts: list[str]) -> None:
    """Freeze the parameters of these parts."""
    frozen = tuple(prefix for part in parts for prefix in PARTS[part])
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)


def build(options: FinetuneOptions, source: ModelSource, first: MergedSource | None = None) -> Training:
    """Build the model with the source's weights, the optimizer and the schedule. The process groups must be initialised. first: has the
    first values of the adapters.

    Gradients are reduced in `--main-grads-dtype`; bf16 and fp16 models keep fp32 master weights in the optimizer.
    """
    rules = structure_rules(options, source.architecture)
    if rules.buckets:
        prepare_capture(options.seed)
    dtype = DTYPES[options.precision]
    config = transformer_config(
        source.architecture, dtype=dtype, tp=options.tp, pp=options.pp, cp=options.cp, ep=options.ep, etp=options.etp, vp=options.vp,
        first_stage_layers=options.pp0_layers, sequence_parallel=options.sequence_parallel, recompute=options.recompute,
        recompute_layers=options.recompute_layers, attention=options.attention,
        fp8_recipe=options.fp8_recipe if options.precision == "fp8" else None, calculate_per_token_loss=True,
        # Megatron casts weights to fp8 in the first micro batch of a step only, which a graph of every micro batch cannot
        disable_parameter_transpose_cache=rules.buckets and options.precision == "fp8",
        **({} if options.aux_loss_coeff is None else {"moe_aux_loss_coeff": options.aux_loss_coeff}),
    )  # fmt: skip
    if rules.equal_rows:
        gather_tokens(config)
    models = [_chunk(source, config, chunk if options.vp > 1 else None, options, first) for chunk in range(options.vp)]
    cpu.suit_threads(sum(p.numel() for model in models for p in model.parameters()))
    wrapped: list[Any] = models if dtype is torch.float32 else [Float16Module(config, model) for model in models]
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=options.main_grads_dtype == "fp32", use_distributed_optimizer=options.distributed_optimizer,
        overlap_grad_reduce=options.overlap_grad_reduce, overlap_param_gather=options.overlap_param_gather,
    )  # fmt: skip
    if options.overlap_grad_reduce:
        # a bucket is reduced once all its gradients are ready, and Megatron waits for every bucket
        for model in models:
            model.vision_in_every_batch = not {"vision", "projector"} <= set(options.untrained_parts())
    # gradients of later chunks are ready first: like Megatron, bucket the first chunk only
    wrapped = [DistributedDataParallel(config, ddp, model, disable_bucketing=i > 0) for i, model in enumerate(wrapped)]
    optimizer = get_megatron_optimizer(_optimizer_config(options, dtype), wrapped)
    if options.optimizer_offload:
        # Megatron builds its optimizer twice, and the first one, in a reference cycle, holds a copy of every weight
        gc.collect()
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if options.use_precision_aware_optimizer:
            patch_precision_aware(part)
        elif part.init_state_fn is not None:  # the offloaded optimizer creates its state in its first step
            # so that a checkpoint has a state to save even when fp16's loss scaling skipped every step so far
            part.init_state_fn(part.optimizer, part.config)
            patch_large_adam(part.optimizer)
        patch_copy_of_masters(part)
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=options.lr, min_lr=options.min_lr, lr_warmup_steps=options.lr_warmup_iters,
        lr_decay_steps=options.lr_decay_iters or options.train_iters,
        lr_decay_style="cosine", start_wd=options.weight_decay, end_wd=options.weight_decay,
        wd_incr_steps=options.train_iters, wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )  # fmt: skip
    if config.num_moe_experts:
        count_expert_tokens(config, device())
    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finalize_gradients
    no_sync = [model.no_sync for model in wrapped]
    config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    if options.overlap_grad_reduce and options.vp > 1:
        config.grad_sync_func = [model.start_grad_sync for model in wrapped]
    if options.overlap_param_gather and options.vp > 1:
        config.param_sync_func = [model.start_param_sync for model in wrapped]
    graphs: MicroBatchGraphs | StageGraphs | None = None
    if rules.buckets:
        graphs = StageGraphs(wrapped, dtype) if options.pp > 1 else MicroBatchGraphs(wrapped[0], config, dtype)
    return Training(
        source.architecture, models, wrapped, optimizer, scheduler, config, dtype, rules, tuple(options.untrained_parts()),
        Adapters.of(options), graphs,
    )  # fmt: skip


def this_machine() -> Machine:
    """The GPUs and kernels of this host, as torch sees them."""
    if cpu.on_cpu():
        return Machine(gpus=0)
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return Machine(
        gpus=len(capabilities), capability=min(major + minor / 10 for major, minor in capabilities),
        transformer_engine=use_transformer_engine(), flash_attention=has_flash_attention(),
    )  # fmt: skip


def _optimizer_config(options: FinetuneOptions, dtype: torch.dtype) -> OptimizerConfig:
    """Megatron's config of the optimizer."""
    config = OptimizerConfig(
        optimizer="adam", lr=options.lr, min_lr=options.min_lr, weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1, adam_beta2=options.adam_beta2, adam_eps=options.adam_eps, clip_grad=options.clip_grad,
        bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16, params_dtype=dtype,
        use_distributed_optimizer=options.distributed_optimizer, overlap_param_gather=options.overlap_param_gather,
        **(FP16_SCALE if dtype is torch.float16 else {}), **_offload_fields(options),
    )  # fmt: skip
    if options.use_precision_aware_optimizer:
        # set here, as the constructor insists on Transformer Engine's Adam, which another one stands for on a CPU
        config.use_precision_aware_optimizer = config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
        config.main_grads_dtype = DTYPES[options.main_grads_dtype]
        config.exp_avg_dtype, config.exp_avg_sq_dtype = DTYPES[options.exp_avg_dtype], DTYPES[options.exp_avg_sq_dtype]
        # a master weight is fp32, not the 16 bits that its bf16 weight lacks: checkpoints hold it, for any other optimizer to read
        config.store_param_remainders = False
    return config


def _offload_fields(options: FinetuneOptions) -> dict[str, Any]:
    """Options of Megatron's `HybridDeviceOptimizer`: for this share of the weights, master weights and moments are on the host, which
    also updates them. Precision-aware, as otherwise a second master copy would stay on the GPU."""
    if not options.optimizer_offload:
        return {}
    return dict(
        optimizer_cpu_offload=True, optimizer_offload_fraction=options.optimizer_offload, use_precision_aware_optimizer=True,
        overlap_cpu_optimizer_d2h_h2d=True,
    )  # fmt: skip


def settle(training: Training) -> None:
    """Wait for the pending parameter all-gather, before anything but the next training step reads the weights."""
    for model in training.wrapped:
        if model.ddp_config.overlap_param_gather:
            model.start_param_sync(force_sync=True)


def _chunk(source: ModelSource, config: Any, chunk: int | None, options: FinetuneOptions, first: MergedSource | None) -> Qwen3VLModel:
    """One model chunk of this pipeline stage with the source's weights."""
    stage = {} if chunk is None else {"ignore_virtual": False, "vp_stage": chunk}
    model = build_model(
        source.architecture, config, vp_stage=chunk,
        pre_process=parallel_state.is_pipeline_first_stage(**stage), post_process=parallel_state.is_pipeline_last_stage(**stage),
    )  # fmt: skip
    fill(model, source)
    adapters = Adapters.of(options)
    if adapters is not None:
        attach(model, adapters)
        if first is not None:
            fill_adapters(model, first)
    model.to(device())
    freeze(model, options.frozen_parts())
    if use_transformer_engine():
        add_gradients_in_place(model)
        join_experts(model)
    return model


def common_state(architecture: Architecture, options: FinetuneOptions) -> dict[str, Any]:
    """What Megatron-LM expects in a checkpoint besides the weights."""
    o = options
    return megatron_common(architecture, tp=o.tp, pp=o.pp, vp=o.vp, cp=o.cp, ep=o.ep, etp=o.etp, sequence_parallel=o.sequence_parallel)
