"""What each GPU of a run holds at its fullest, by kind. An estimate from formulas, each with its source. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qwen3vl_core.layout import activations as act
from qwen3vl_core.layout.parameters import Stage, stage_layers, stages
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

GIB = 1024**3
# outside the tensors: CUDA context and kernels, cuBLAS and cuDNN workspaces; NCCL's buffers where ranks talk
CONTEXT_BYTES = int(1.5 * GIB)
NCCL_BYTES = int(0.6 * GIB)
# torch's allocator hands out blocks that fit the next tensor only in part; of what comes and goes in a step. Measured on one
# H200: 2.9 GiB outside the tensors, where 34 came and went
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one GPU of a pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """Number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of the language tower, all micro batches in flight."""
    vision: int
    """Activations of the vision tower, the mergers and the deepstack features."""
    peak_extra: int
    """What stands beside all that at the fullest moment: the logits of the loss, or a layer being computed again and its
    gradients, whichever is more."""
    logits: int
    """Of them the vocabulary's, where this is the last stage."""
    workspace: int
    """Outside torch's tensors: CUDA context, NCCL, fragmentation."""

    @property
    def allocated(self) -> int:
        """The peak of torch's tensors, as `torch.cuda.max_memory_allocated` counts it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.vision + self.peak_extra

    @property
    def total(self) -> int:
        """What nvidia-smi shows, and what must fit."""
        return self.allocated + self.workspace

    def as_gib(self) -> dict[str, float | int]:
        """For people and JSON: GiB, but for the counts."""
        counts = ("stage", "layers", "parameters")
        found = {name: value if name in counts else round(value / GIB, 3) for name, value in asdict(self).items()}
        return found | {"allocated": round(self.allocated / GIB, 3), "total": round(self.total / GIB, 3)}


def static_bytes(options: FinetuneOptions, architecture: Architecture, stage: Stage, processes: int) -> tuple[int, int, int]:
    """(weights, gradients, optimizer) of a stage on one GPU.

    Weights b bytes each. Gradients: Megatron's DDP has a buffer in fp32, 4 bytes for each trained weight on every rank
    (`grad_reduce_in_fp32`). Optimizer: Adam's two moments in fp32, and an fp32 master copy where b is 2
    (`Float16OptimizerWithFloat16Params`); `DistributedOptimizer` cuts both by the ranks that hold the same weights: data x context
    parallel, for experts processes / (ep x etp x pp).
    """
    b = act.BYTES[options.precision]
    state = 8 if b == 4 else 12
    frozen = set(options.frozen_parts())
    copies, expert_copies = 1, 1
    if options.distributed_optimizer:
        copies = processes // (options.tp * options.pp)
        expert_copies = max(processes // (options.ep * options.etp * options.pp), 1)
    weights = gradients = optimizer = 0
    for part, count in stage.counts.items():
        weights += count * b
        if ("language" if part == "experts" else part) not in frozen:
            gradients += count * 4
            optimizer += -(-count * state // (expert_copies if part == "experts" else copies))
    return weights, gradients, optimizer


def stage_memory(
    options: FinetuneOptions, architecture: Architecture, stage: Stage, *, processes: int, vision_tokens: int
) -> StageMemory:
    """One stage's estimate. vision_tokens: of the pictures of one row (0: text only). The layout must be valid."""
    a, b = architecture, act.BYTES[options.precision]
    dp = processes // (options.tp * options.pp * options.cp)
    micro_batches = max(options.global_batch_size // (options.micro_batch_size * dp), 1)
    sample = act.Sample.of(options, a, vision_tokens)
    tokens = sample.tokens / options.cp
    weights, gradients, optimizer = static_bytes(options, a, stage, processes)
    first_chunk, passes = act.in_flight(options, stage.index, micro_batches)
    full = options.recompute == "full"
    each = act.checkpoint_bytes(a, options) if full else act.layer_bytes(a, options)
    language = passes * stage.layers / options.vp * tokens * each
    if options.pp > 1:
        # what came from the stage before and what went to the next, of every pass
        language += passes * tokens * 2 * a.hidden_size * b / (options.tp if options.sequence_parallel else 1)
    if stage.last:
        # input and output of the final norm
        language += tokens * 2 * a.hidden_size * b / (options.tp if options.sequence_parallel else 1)
    vision = first_chunk * act.vision_bytes(a, options, sample) if stage.first else 0
    logits = act.logits_bytes(a, options, tokens) if stage.last else 0
    again = tokens * (act.layer_backward_bytes(a, options) + (act.layer_bytes(a, options) if full else 0))
    if stage.first and stage.last and a.tied and "language" not in options.frozen_parts():
        # the output layer's gradient of the table waits for the embedding's
        again += a.vocab_size * a.hidden_size // options.tp * b
    if stage.first and full and sample.patches and "vision" not in options.frozen_parts():
        again = max(again, sample.patches * 2 * act.vision_layer_bytes(a, options))
    moving = language + vision + max(logits, again)
    workspace = CONTEXT_BYTES + (NCCL_BYTES if processes > 1 else 0) + FRAGMENTATION * moving
    return StageMemory(
        stage=stage.index, layers=stage.layers, parameters=stage.total, weights=weights, gradients=gradients, optimizer=optimizer,
        activations=int(language), vision=int(vision), peak_extra=int(max(logits, again)), logits=int(logits), workspace=int(workspace),
    )  # fmt: skip


def default_vision_tokens(options: FinetuneOptions) -> int:
    """Tokens of pictures that a row is taken to have where nothing is said: a picture of 1024 x 1024 pixels, which is 1024
    tokens, and at most half of the row."""
    return min(1024, options.seq_length // 2)


def estimate(
    options: FinetuneOptions, architecture: Architecture, processes: int, vision_tokens: int | None = None
) -> list[StageMemory]:
    """Every pipeline stage's memory on one GPU. The layout must be valid (`rules.layout_faults`)."""
    given = default_vision_tokens(options) if vision_tokens is None else vision_tokens
    assert len(stage_layers(options, architecture.num_layers)) == options.pp
    return [
        stage_memory(options, architecture, stage, processes=processes, vision_tokens=given) for stage in stages(options, architecture)
    ]


def fullest(found: list[StageMemory]) -> StageMemory:
    """The stage that needs the most."""
    return max(found, key=lambda s: s.total)
