"""Estimates the peak memory of each GPU of a run, by kind, from formulas with their sources. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import activations as act
from qwen3vl_core.layout.adapters import Adapters, stage_parameters
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.layout.machine_rules import ASSUMED_GPU, Machine
from qwen3vl_core.layout.parameters import PipelineStage, stage_layers, stages
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

# bytes on the host for each offloaded weight: master copy, two moments and gradient, fp32 each
HOST_STATE = 16
# memory that no tensor holds: CUDA context and kernels, cuBLAS and cuDNN workspaces; with several ranks NCCL's buffers
CONTEXT_BYTES = int(1.5 * GIB)
NCCL_BYTES = int(0.6 * GIB)
# torch's allocator reuses blocks that the next tensor fills only in part: a share of the bytes that are allocated and freed in a step.
# Measured in eleven runs on one H100: 0.2 to 4.8 GiB, median 2.4, in steps that allocate and free 20 GiB
FRAGMENTATION = 0.12
# `patches.precision_aware` updates so many weights together
CAST_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one GPU of a pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """Their number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Activations of the language tower, of all micro batches in flight."""
    vision: int
    """Activations of the vision tower, the mergers and the deepstack features."""
    peak_extra: int
    """What the peak adds: logits and loss, or a recomputed layer and its gradients, whichever is larger; and what stands for gradients
    that were added in place."""
    logits: int
    """Logits and loss, on the last stage."""
    workspace: int
    """Memory that no tensor holds: CUDA context, NCCL, fragmentation."""
    host: int
    """Host memory: offloaded optimizer state and activations."""

    @property
    def allocated(self) -> int:
        """The peak of all tensors, as `torch.cuda.max_memory_allocated` counts it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.vision + self.peak_extra

    @property
    def total(self) -> int:
        """What nvidia-smi shows and has to fit on the GPU."""
        return self.allocated + self.workspace

    def as_gib(self) -> dict[str, float | int]:
        """The values for tables and JSON: in GiB, except the counts."""
        counts = ("stage", "layers", "parameters")
        record = {name: value if name in counts else round(value / GIB, 3) for name, value in asdict(self).items()}
        return record | {"allocated": round(self.allocated / GIB, 3), "total": round(self.total / GIB, 3)}


def static_bytes(
    options: FinetuneOptions, architecture: Architecture, stage: PipelineStage, processes: int, *, graphs: bool = False
) -> tuple[int, int, int]:  # fmt: skip
    """Bytes of (weights, gradients, optimizer state) of a stage on one GPU. In a LoRA run only adapters have the last two.

    Weights: b bytes each; with fp8, Transformer Engine also keeps two fp8 copies of the language layers' matrices, one of them
    transposed; with graphs each micro batch makes its own, which are no static memory (`fp8_of_micro_batches`). Gradients: Megatron's
    DDP has a buffer in `--main-grads-dtype` for each trained weight on every rank. Optimizer: Adam's two moments in `--exp-avg-dtype` and
    `--exp-avg-sq-dtype`, and an fp32 master copy where b is 2 (`Float16OptimizerWithFloat16Params`); `DistributedOptimizer` splits both
    over the ranks that hold the same weights: data x context parallel, for experts processes / (ep x etp x pp). The share of
    `--optimizer-offload` is not on the GPU.
    """
    b = act.BYTES[options.precision]
    state: float = act.BYTES[options.exp_avg_dtype] + act.BYTES[options.exp_avg_sq_dtype] + (0 if b == 4 else 4)
    ranks, expert_ranks = _optimizer_ranks(options, processes)
    state *= 1 - options.optimizer_offload
    trained = trained_parameters(options, architecture, stage)
    weights = stage.total * b + (sum(trained.values()) * b if options.lora_rank else 0)
    if options.precision == "fp8" and not graphs:
        weights += 2 * fp8_weights(options, architecture, stage)
    gradients = optimizer = 0
    for part, count in trained.items():
        gradients += count * act.BYTES[options.main_grads_dtype]
        optimizer += math.ceil(count * state / (expert_ranks if part == "experts" else ranks))
    return weights, gradients, optimizer


def _optimizer_ranks(options: FinetuneOptions, processes: int) -> tuple[int, int]:
    """Over how many ranks the optimizer state is split: (of all weights except the experts, of the experts)."""
    if not options.distributed_optimizer:
        return 1, 1
    return processes // (options.tp * options.pp), max(processes // (options.ep * options.etp * options.pp), 1)


def trained_parameters(options: FinetuneOptions, a: Architecture, stage: PipelineStage) -> dict[str, int]:
    """Trained parameters of a stage on one GPU, by part; in a LoRA run those of the adapters."""
    adapters = Adapters.of(options)
    if adapters is not None:
        return stage_parameters(adapters, options, a, stage.index)
    frozen = options.frozen_parts()
    return {part: count for part, count in stage.counts.items() if ("language" if part == "experts" else part) not in frozen}


def update_bytes(options: FinetuneOptions, a: Architecture, stage: PipelineStage, processes: int) -> int:
    """Bytes that exist during the optimizer's update alone. The plain optimizer copies bf16 gradients to fp32; the precision-aware one
    casts bf16 moments to fp32, of CAST_AT_ONCE weights at a time or of the largest one, if it is larger."""
    ranks, expert_ranks = _optimizer_ranks(options, processes)
    trained = trained_parameters(options, a, stage)
    share = math.ceil(sum(count / (expert_ranks if part == "experts" else ranks) for part, count in trained.items()))
    if not options.use_precision_aware_optimizer:
        return 0 if options.main_grads_dtype == "fp32" else 4 * share
    casts = 4 * sum(moment == "bf16" for moment in (options.exp_avg_dtype, options.exp_avg_sq_dtype))
    # a data parallel rank updates a range of all weights, which can hold the whole of the largest: an embedding
    embedding = (stage.first or stage.last) and "language" not in options.frozen_parts() and not options.lora_rank
    largest = a.vocab_size * a.hidden_size // options.tp if embedding else 0
    return casts * min(max(CAST_AT_ONCE, largest), share)


def fp8_weights(options: FinetuneOptions, a: Architecture, stage: PipelineStage) -> int:
    """Weights of a stage on one GPU that fp8 GEMMs read: the matrices of its language layers."""
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    dense = h * (q + 2 * k) + q * h + (0 if a.is_moe else 3 * h * a.ffn_hidden_size)
    return stage.layers * dense // options.tp + stage.counts["experts"]


def fp8_of_micro_batches(options: FinetuneOptions, a: Architecture, layers: float) -> tuple[float, float]:
    """With graphs, bytes of the fp8 copies of weights: (of `layers` that a micro batch in flight keeps from its forward pass to its
    backward pass, of those that are recomputed at once). Elsewhere zeros."""
    if options.precision != "fp8":
        return 0.0, 0.0
    attention, mlp = act.fp8_copies(a, options)
    if options.recompute == "full":
        return 0.0, max(options.recompute_layers, 1) * (attention + mlp)
    return (layers * attention, mlp) if options.recompute == "sel" else (layers * (attention + mlp), 0.0)


def stage_memory(
    options: FinetuneOptions, architecture: Architecture, stage: PipelineStage, *, processes: int, vision_tokens: int,
    machine: Machine = ASSUMED_GPU,
) -> StageMemory:  # fmt: skip
    """The estimate of one stage. vision_tokens: picture tokens in a row (0: text only). machine: decides on graphs and kernels. The
    layout must be valid."""
    a, b = architecture, act.BYTES[options.precision]
    graphs, on_device = not no_graph_because(options, a, machine), act.experts_on_device(options, a, machine)
    dp = processes // (options.tp * options.pp * options.cp)
    micro_batches = max(options.global_batch_size // (options.micro_batch_size * dp), 1)
    sample = act.ActivationSample.of(options, a, vision_tokens, graphs=graphs)
    tokens = sample.tokens / options.cp
    weights, gradients, optimizer = static_bytes(options, a, stage, processes, graphs=graphs)
    first_chunk, passes = act.in_flight(options, stage.index, micro_batches)
    full, language_trained = options.recompute == "full", "language" not in options.frozen_parts() and not options.lora_rank
    layers, offloaded_activations = stage.layers / options.vp, 0.0
    fp8_kept, fp8_recomputed = fp8_of_micro_batches(options, a, layers) if graphs else (0.0, 0.0)
    if full:
        language = passes * layers / max(options.recompute_layers, 1) * tokens * act.checkpoint_bytes(a, options)
    else:
        language = passes * (layers * tokens * act.layer_bytes(a, options, on_device) + fp8_kept)
    if options.recompute == "offload":
        offloaded_layers = options.recompute_layers or a.num_layers - 1
        offloaded_activations = language * offloaded_layers / layers
        # one layer is in transfer, in addition to those that stay on the GPU
        language *= min(layers - offloaded_layers + 1, layers) / layers
    if options.pp > 1:
        # the tensors received from the previous stage and sent to the next one, for every pass
        language += passes * tokens * 2 * a.hidden_size * b / (options.tp if options.sequence_parallel else 1)
    if stage.last:
        # input and output of the final norm
        language += tokens * 2 * a.hidden_size * b / (options.tp if options.sequence_parallel else 1)
    vision = first_chunk * act.vision_bytes(a, options, sample) if stage.first else 0
    tied = a.tied and stage.first and stage.last
    logits = act.logits_bytes(a, options, sample.logits, gradient_is_last=not tied) if stage.last else 0
    backward = tokens * (act.layer_backward_bytes(a, options, on_device) + act.recomputed_bytes(a, options, on_device)) + fp8_recomputed
    backward += act.expert_gradients(a, options, on_device)
    embedding = a.vocab_size * a.hidden_size // options.tp * b if stage.first and language_trained else 0
    if tied and options.tp > 1:
        # the gradient that the output layer adds to a tied embedding is kept until the embedding's own
        backward += embedding
    if stage.first and full and sample.patches and "vision" not in options.untrained_parts():
        backward = max(backward, sample.patches * (1 + act.vision_recompute_layers(a, options)) * act.vision_layer_bytes(a, options))
    # the embedding's gradient, or what stands for it, is alive when the layers' activations no longer are
    peak_extra = max(logits, backward, embedding - language) + act.unused_gradients(a, options, first=stage.first)
    passing = language + vision + peak_extra
    # at the update no activation is alive; graphs keep the memory of theirs, though
    update = update_bytes(options, a, stage, processes)
    peak_extra = max(peak_extra, update - language - vision)
    kept_by_graphs = min(update, passing) if graphs else 0
    workspace = CONTEXT_BYTES + (NCCL_BYTES if processes > 1 else 0) + FRAGMENTATION * passing + kept_by_graphs
    ranks, expert_ranks = _optimizer_ranks(options, processes)
    trained = trained_parameters(options, a, stage)
    optimized = sum(count / (expert_ranks if part == "experts" else ranks) for part, count in trained.items())
    offloaded_weights = optimized * options.optimizer_offload
    host = offloaded_activations + HOST_STATE * offloaded_weights
    return StageMemory(
        stage=stage.index, layers=stage.layers, parameters=stage.total, weights=weights, gradients=gradients, optimizer=optimizer,
        activations=int(language), vision=int(vision), peak_extra=int(peak_extra), logits=int(logits), workspace=int(workspace),
        host=int(host),
    )  # fmt: skip


def default_vision_tokens(options: FinetuneOptions) -> int:
    """The number of picture tokens in a row that is assumed by default: one picture of 1024 x 1024 pixels, which is 1024 tokens,
    but at most half of the row."""
    return min(act.PICTURE_TOKENS, options.seq_length // 2)


def estimate(
    options: FinetuneOptions, architecture: Architecture, processes: int, vision_tokens: int | None = None, machine: Machine = ASSUMED_GPU
) -> list[StageMemory]:
    """The memory of every pipeline stage on one GPU of `machine`. The layout must be valid (`rules.layout_problems`)."""
    tokens = default_vision_tokens(options) if vision_tokens is None else vision_tokens
    assert len(stage_layers(options, architecture.num_layers)) == options.pp
    return [
        stage_memory(options, architecture, stage, processes=processes, vision_tokens=tokens, machine=machine)
        for stage in stages(options, architecture)
    ]


def fullest(stages: Sequence[StageMemory]) -> StageMemory:
    """The stage that needs the most."""
    return max(stages, key=lambda s: s.total)
