"""Floating-point operations of an optimizer step, and its time at a given utilisation. Imports no torch.

Counted are multiplications and additions of matrix products: 2 m n k. Norms, rope, softmax and the optimizer are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

# a dense bf16 H100 or H200 by its datasheet
PEAK_TFLOPS = 989.0
# 0.35 with one step a micro batch and 0.47 with one in four were measured for a 2B language tower on one H100; eight layers of
# 8B size reached 0.52 in forward and backward only; loading, pictures of different sizes and other GPUs reduce it
DEFAULT_MFU = 0.40
# tensor parallel ranks exchange activations in every layer, experts their tokens: the share of a step that this costs for
# each doubling; a rule of thumb for ranking layouts, not a measurement
EXCHANGE = {"tp": 0.08, "cp": 0.06, "ep": 0.05}


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step over the whole run."""

    language: float
    """Matrix products of the language layers, forward and backward."""
    attention: float
    """Scores and weighted sums of the language tower, causal: half of the full matrix."""
    vocabulary: float
    vision: float
    """Vision tower and mergers, their attention too."""
    recompute: float
    """Recomputed in the backward pass; not part of the model's FLOPs, from which MFU is computed."""

    @property
    def model(self) -> float:
        return self.language + self.attention + self.vocabulary + self.vision


def language_forward(a: Architecture) -> tuple[float, float]:
    """(FLOPs of a token in all layers' matrix products, FLOPs of a token in the output layer)."""
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    attention = h * (q + 2 * k) + q * h
    mlp = h * a.num_experts + a.experts_per_token * 3 * h * a.expert_ffn_hidden_size if a.is_moe else 3 * h * a.ffn_hidden_size
    return 2.0 * a.num_layers * (attention + mlp), 2.0 * h * a.vocab_size


def mlp_forward(a: Architecture) -> float:
    """FLOPs of a token in all layers' MLPs or experts, which `--recompute sel` recomputes."""
    width = a.num_experts / 3 + a.experts_per_token * a.expert_ffn_hidden_size if a.is_moe else a.ffn_hidden_size
    return 6.0 * a.num_layers * a.hidden_size * width


def attention_forward(a: Architecture, length: int) -> float:
    """FLOPs of a row of `length` tokens in all layers' causal attention: 2 products of 2 length² q, half of each needed."""
    return 2.0 * length * length * a.num_heads * a.head_dim * a.num_layers


def vision_forward(a: Architecture, tokens: int) -> tuple[float, float]:
    """(vision tower, mergers): FLOPs of one picture of `tokens` tokens, every patch attending to every other."""
    v = a.vision
    patches, h = tokens * v.spatial_merge_size**2, v.hidden_size
    layer = 2.0 * patches * (4 * h * h + 2 * h * v.ffn_hidden_size) + 4.0 * patches * patches * h
    joined = h * v.spatial_merge_size**2
    mergers = 2.0 * tokens * (joined * joined + joined * v.out_hidden_size) * (1 + len(v.deepstack_layers))
    return v.num_layers * layer + 2.0 * patches * v.patch_dim * h, mergers


def passes(trained: bool, below: bool) -> int:
    """Passes with the FLOPs of one forward: forward, weight gradient if trained, input gradient if anything below or the part
    itself is trained (its own lower layers need it)."""
    return 1 + trained + (trained or below)


def step_flops(options: FinetuneOptions, architecture: Architecture, vision_tokens: int) -> StepFlops:
    """FLOPs of a global batch of rows as long as `--seq-length`, each with one picture of `vision_tokens` tokens (0: none)."""
    a, rows, length = architecture, options.global_batch_size, options.seq_length
    frozen, whole = set(options.untrained_parts()), not options.lora_rank
    matrices, vocabulary = language_forward(a)
    trained = "language" not in frozen
    below = not {"vision", "projector"} <= frozen and vision_tokens > 0
    times = passes(trained and whole, trained or below)
    tower, mergers = vision_forward(a, vision_tokens)
    tower_times = passes("vision" not in frozen and whole, "vision" not in frozen)
    attention = attention_forward(a, length) * (3 if times > 1 else 1)
    again = 0.0
    if options.recompute == "full":
        again = rows * (length * matrices + attention_forward(a, length) + (tower if "vision" not in frozen else 0.0))
    elif options.recompute == "sel":
        again = rows * length * mlp_forward(a)
    return StepFlops(
        language=rows * length * matrices * times,
        attention=rows * attention,
        vocabulary=rows * length * vocabulary * passes(trained and whole, True),
        vision=rows * (tower * tower_times + mergers * passes("projector" not in frozen and whole, not {"vision", "projector"} <= frozen)),
        recompute=again,
    )


def step_seconds(
    options: FinetuneOptions, architecture: Architecture, processes: int, vision_tokens: int,
    mfu: float = DEFAULT_MFU, peak_tflops: float = PEAK_TFLOPS,
) -> float:  # fmt: skip
    """Seconds of a step: FLOPs over achieved FLOPs per second, plus the pipeline bubble, (pp - 1) / (micro batches x vp), and
    EXCHANGE. mfu is that of one GPU without parallelism and recompute."""
    work = step_flops(options, architecture, vision_tokens)
    seconds = (work.model + work.recompute) / (processes * mfu * peak_tflops * 1e12)
    dp = processes // (options.tp * options.pp * options.cp)
    micro_batches = max(options.global_batch_size // (options.micro_batch_size * dp), 1)
    seconds *= 1 + (options.pp - 1) / (micro_batches * options.vp)
    for name, share in EXCHANGE.items():
        seconds *= 1 + share * (getattr(options, name).bit_length() - 1)
    # the vision tower is replicated on every context parallel rank
    return seconds * (1 + (options.cp - 1) * work.vision / (work.model or 1.0))
