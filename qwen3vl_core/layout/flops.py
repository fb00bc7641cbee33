"""FLOPs of an optimizer step, and its time at a given MFU. Imports no torch.

Only matrix products are counted, as 2 m n k. Norms, rope, softmax and the optimizer are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

# dense bf16 of an H100 or H200, from the data sheet
PEAK_TFLOPS = 989.0
# measured on one H100: 0.35 for a 2B language tower with an optimizer step after every micro batch, 0.47 after every fourth; 0.52 for
# forward and backward alone of eight layers of 8B size. Data loading, pictures of different sizes and other GPUs reduce it
DEFAULT_MFU = 0.40
# communication in every layer: the share of a step that it costs for each doubling of the parallel size; a rule of thumb for
# ranking layouts, not a measurement
COMMUNICATION = {"tp": 0.08, "cp": 0.06, "ep": 0.05}


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step over the trains_weights run."""

    language: float
    """Matrix products of the language layers, forward and backward."""
    attention: float
    """Scores and weighted sums of the language tower: causal, so half of the full matrix."""
    vocabulary: float
    """The output layer."""
    vision: float
    """Vision tower and mergers, including attention."""
    recompute: float
    """Recomputed in the backward pass; not part of the model FLOPs, from which MFU is computed."""

    @property
    def model(self) -> float:
        return self.language + self.attention + self.vocabulary + self.vision


def language_forward(a: Architecture) -> tuple[float, float]:
    """Forward FLOPs per token: (linear layers of all language layers, output layer)."""
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    attention = h * (q + 2 * k) + q * h
    mlp = h * a.num_experts + a.experts_per_token * 3 * h * a.expert_ffn_hidden_size if a.is_moe else 3 * h * a.ffn_hidden_size
    return 2.0 * a.num_layers * (attention + mlp), 2.0 * h * a.vocab_size


def mlp_forward(a: Architecture) -> float:
    """Forward FLOPs per token in the MLPs or experts of all layers, which `--recompute sel` recomputes."""
    width = a.num_experts / 3 + a.experts_per_token * a.expert_ffn_hidden_size if a.is_moe else a.ffn_hidden_size
    return 6.0 * a.num_layers * a.hidden_size * width


def attention_forward(a: Architecture, length: int) -> float:
    """Forward FLOPs of causal attention in all layers for a row of `length` tokens: two products of 2 length² q, half of each."""
    return 2.0 * length * length * a.num_heads * a.head_dim * a.num_layers


def vision_forward(a: Architecture, tokens: int) -> tuple[float, float]:
    """Forward FLOPs of one picture of `tokens` tokens with full attention: (vision tower, mergers)."""
    v = a.vision
    patches, h = tokens * v.spatial_merge_size**2, v.hidden_size
    layer = 2.0 * patches * (4 * h * h + 2 * h * v.ffn_hidden_size) + 4.0 * patches * patches * h
    merged = h * v.spatial_merge_size**2
    mergers = 2.0 * tokens * (merged * merged + merged * v.out_hidden_size) * (1 + len(v.deepstack_layers))
    return v.num_layers * layer + 2.0 * patches * v.patch_dim * h, mergers


def passes(trained: bool, below: bool) -> int:
    """FLOPs of forward and backward as a multiple of the forward: the forward, the weight gradients if the part is trained, and the
    input gradients if the part or something before it (`below`) is trained."""
    return 1 + trained + (trained or below)


def step_flops(options: FinetuneOptions, architecture: Architecture, vision_tokens: int) -> StepFlops:
    """FLOPs of a global batch of rows of `--seq-length` tokens, each with one picture of `vision_tokens` tokens (0: none)."""
    a, rows, length = architecture, options.global_batch_size, options.seq_length
    frozen, trains_weights = set(options.untrained_parts()), not options.lora_rank
    matrices, vocabulary = language_forward(a)
    trained = "language" not in frozen
    below = not {"vision", "projector"} <= frozen and vision_tokens > 0
    language_passes = passes(trained and trains_weights, trained or below)
    tower, mergers = vision_forward(a, vision_tokens)
    tower_passes = passes("vision" not in frozen and trains_weights, "vision" not in frozen)
    attention = attention_forward(a, length) * (3 if language_passes > 1 else 1)
    recomputed = 0.0
    if options.recompute == "full":
        recomputed = rows * (length * matrices + attention_forward(a, length) + (tower if "vision" not in frozen else 0.0))
    elif options.recompute == "sel":
        recomputed = rows * length * mlp_forward(a)
    merger_passes = passes("projector" not in frozen and trains_weights, not {"vision", "projector"} <= frozen)
    return StepFlops(
        language=rows * length * matrices * language_passes,
        attention=rows * attention,
        vocabulary=rows * length * vocabulary * passes(trained and trains_weights, True),
        vision=rows * (tower * tower_passes + mergers * merger_passes),
        recompute=recomputed,
    )


def step_seconds(
    options: FinetuneOptions, architecture: Architecture, processes: int, vision_tokens: int,
    mfu: float = DEFAULT_MFU, peak_tflops: float = PEAK_TFLOPS,
) -> float:  # fmt: skip
    """Seconds of a step: FLOPs over achieved FLOP/s, plus the pipeline bubble, (pp - 1) / (micro batches x vp), plus COMMUNICATION.

    mfu: of one GPU without model parallelism and recomputation.
    """
    step = step_flops(options, architecture, vision_tokens)
    seconds = (step.model + step.recompute) / (processes * mfu * peak_tflops * 1e12)
    dp = processes // (options.tp * options.pp * options.cp)
    micro_batches = max(options.global_batch_size // (options.micro_batch_size * dp), 1)
    seconds *= 1 + (options.pp - 1) / (micro_batches * options.vp)
    for name, share in COMMUNICATION.items():
        seconds *= 1 + share * (getattr(options, name).bit_length() - 1)
    # the vision tower is replicated on every context parallel rank
    return seconds * (1 + (options.cp - 1) * step.vision / (step.model or 1.0))
