"""FLOPs of an optimizer step, and its time at a given MFU. Imports no torch.

Only matrix products are counted, as 2 m n k. Norms, rope, softmax and the optimizer are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from qwen3vl_core.layout.activations import PICTURE_TOKENS, fullest_rank
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.layout.machine_rules import ASSUMED_GPU, Machine
from qwen3vl_core.layout.measured_mfu import expected_mfu
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

# dense bf16 of an H100 or H200, from the data sheet
PEAK_TFLOPS = 989.0
COMMUNICATION = {"tp": 0.31, "cp": 0.07, "ep": 0.05}
"""Communication in every layer: the share of a step that it costs for each doubling of the parallel size, at the width of 2B. tp and cp as
measured on two H200 (docs/speed.md), ep a rule of thumb. Wider layers compute more for each byte that they send."""
MEASURED_WIDTH = 2048


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step over all GPUs."""

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


def model_flops(
    a: Architecture, samples: Iterable[int], frames: Iterable[int], frozen: Collection[str] = (), *, low_rank: bool = False
) -> StepFlops:
    """Model FLOPs of forward and backward, of which MFU is made in the plan, a run's record and the benchmarks.

    samples: tokens of each sample, or document of a packed row, without padding; frames: patches of each frame of the pictures
    and videos. h: hidden size, d: head size, q and k: query and key/value heads, f FFN columns, V vocabulary; v, f_v the vision
    tower's; m its merge size. Forward, a multiplication and an addition counted as two, matrix products only:

    - each of the language layers on n tokens of a sample: n [2 h d (2 q + 2 k) + 6 h f] + 2 q d n^2: causal attention needs half
      of the square. With experts the FFN counts the chosen ones and the router. Output layer: 2 n h V.
    - each of the vision layers on the p patches of a frame: p (8 v^2 + 4 v f_v) + 4 v p^2; the embedding 2 p v x values of a patch.
    - each merger (one, and one for every deepstack layer) on p / m^2 tokens: 2 (m^2 v)^2 + 2 m^2 v h.

    Backward: once the forward for the weight gradients where the part is trained, and once for the activation gradients where it
    or a part before it is trained (attention: both). So full fine-tuning counts 3 times its forward, the patch embedding twice.
    Padding, the optimizer and activation recomputation do not count.
    low_rank: LoRA adapters are trained and the weights are frozen; the adapters' few FLOPs are left out.
    """
    frames = list(frames)
    vision, projector, language = ("vision" not in frozen, "projector" not in frozen, "language" not in frozen)
    below = bool(frames) and (vision or projector)
    times = passes(language and not low_rank, below or language)
    matrices, vocabulary = language_forward(a)
    total = StepFlops(0.0, 0.0, 0.0, 0.0, 0.0)
    for length in samples:
        total = replace(
            total, language=total.language + length * matrices * times, vocabulary=total.vocabulary + length * vocabulary * times,
            attention=total.attention + attention_forward(a, length) * (3 if below or language else 1),
        )  # fmt: skip
    seen = 0.0
    for patches in frames:
        tower, mergers = vision_forward(a, patches // a.vision.spatial_merge_size**2)
        seen += tower * passes(vision and not low_rank, vision) + mergers * passes(projector and not low_rank, vision or projector)
        if vision:
            # pixels are not trained
            seen -= 2.0 * patches * a.vision.patch_dim * a.vision.hidden_size
    return replace(total, vision=seen)


def picture_tokens(options: FinetuneOptions, vision_tokens: int) -> list[int]:
    """Tokens of each picture of a row with `vision_tokens`: one picture, or in a packed row several of at most PICTURE_TOKENS."""
    if not options.packing:
        return [vision_tokens] if vision_tokens else []
    whole, rest = divmod(vision_tokens, PICTURE_TOKENS)
    return [PICTURE_TOKENS] * whole + ([rest] if rest else [])


def step_flops(options: FinetuneOptions, architecture: Architecture, vision_tokens: int) -> StepFlops:
    """FLOPs of a global batch of rows of `--seq-length` tokens, `vision_tokens` of them of pictures (`picture_tokens`)."""
    a, rows, length = architecture, options.global_batch_size, options.seq_length
    frozen = options.untrained_parts()
    pictures = picture_tokens(options, vision_tokens)
    patches = [tokens * a.vision.spatial_merge_size**2 for tokens in pictures]
    row = model_flops(a, [length], patches, frozen, low_rank=options.lora_rank > 0)
    recomputed = 0.0
    if options.recompute == "full":
        tower = sum(vision_forward(a, tokens)[0] for tokens in pictures) if "vision" not in frozen else 0.0
        recomputed = length * language_forward(a)[0] + attention_forward(a, length) + tower
    elif options.recompute == "sel":
        recomputed = length * mlp_forward(a)
    return StepFlops(rows * row.language, rows * row.attention, rows * row.vocabulary, rows * row.vision, rows * recomputed)


def step_seconds(
    options: FinetuneOptions, architecture: Architecture, processes: int, vision_tokens: int,
    mfu: float = 0.0, peak_tflops: float = PEAK_TFLOPS, machine: Machine = ASSUMED_GPU,
) -> float:  # fmt: skip
    """Seconds of a step: FLOPs over achieved FLOP/s, plus the pipeline bubble, (pp - 1) / (micro batches x vp), plus COMMUNICATION. All
    ranks wait for the one whose experts get the most tokens (`activations.fullest_rank`).

    mfu: of one GPU without model parallelism and recomputation; 0: as measured (`measured_mfu`), with the graphs that `machine` allows.
    """
    mfu = mfu or expected_mfu(options, architecture, not no_graph_because(options, architecture, machine))
    step = step_flops(options, architecture, vision_tokens)
    work = step.model + step.recompute
    if architecture.is_moe:
        # forward and backward, as in `model_flops`
        experts = 3 * options.global_batch_size * options.seq_length * mlp_forward(architecture)
        work += (fullest_rank(options) - 1) * min(experts, step.language)
    seconds = work / (processes * mfu * peak_tflops * 1e12)
    dp = processes // (options.tp * options.pp * options.cp)
    micro_batches = max(options.global_batch_size // (options.micro_batch_size * dp), 1)
    seconds *= 1 + (options.pp - 1) / (micro_batches * options.vp)
    for name, share in COMMUNICATION.items():
        seconds *= 1 + share * MEASURED_WIDTH / architecture.hidden_size * (getattr(options, name).bit_length() - 1)
    return seconds
