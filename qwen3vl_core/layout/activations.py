"""Bytes that a forward pass keeps for the backward pass, tensor by tensor. Imports no torch.

The counts follow Megatron-Core 0.16's modules with Transformer Engine's layer spec, as `qwen3vl_core.model` builds them:
fused attention (scores are never stored), no dropout, no fused activation, no fused rope. They differ from Megatron-LM's
`theoretical_memory_usage.py` (sbh (18 + 4 FFN / h) for a layer of GPT), which counts biases, dropout masks and a fused
SwiGLU that this model does not have. h hidden, q and k width of all query and key heads, f FFN, b bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.layout.rules import vision_layers_per_recompute
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 2}
# log-sum-exp of fused attention, one fp32 a head and token
STATISTIC = 4


@dataclass(frozen=True)
class ActivationSample:
    """Size of one micro batch."""

    tokens: int
    """Of all its rows, padding included."""
    patches: int
    """Of all its pictures."""

    @classmethod
    def of(cls, options: FinetuneOptions, architecture: Architecture, vision_tokens: int) -> ActivationSample:
        """A micro batch of rows as long as `--seq-length` (or `--pad-length`), each with `vision_tokens` tokens of pictures."""
        merge = architecture.vision.spatial_merge_size**2
        length = max(options.seq_length, options.pad_length)
        return cls(options.micro_batch_size * length, options.micro_batch_size * vision_tokens * merge)


@dataclass(frozen=True)
class InputBytes:
    """Bytes kept per element of a matrix product's input, by its source."""

    normed: int
    """Output of a norm fused into the product's module."""
    plain: int
    """Any other input."""
    copy: int = 0
    """In addition to an input that is kept anyway, as the output of attention is."""

    @classmethod
    def of(cls, options: FinetuneOptions) -> InputBytes:
        """In fp8 only the transposed fp8 copy. Adapters read the input itself; a product with a frozen weight keeps none, except
        the fp8 copy of its fused norm's output."""
        b = BYTES[options.precision]
        if options.precision != "fp8":
            return cls(b, b)
        return cls(b + 1, b) if options.lora_rank else cls(1, 1, 1)


def attention_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes) -> float:
    """A token's share of a language layer's attention.

    TELayerNormColumnParallelLinear keeps its input and the normed input: 2 h b, split by sequence parallelism only. Split by tp: the
    fused output of qkv, of which v and the inputs of the norms of q and k are views, (q + 2 k) b; rotated q and k, (q + k) b, by
    a kernel that keeps only the angles, which all layers share; the output, which is the projection's input too, q b; its
    statistic. fp8 keeps its own of the two inputs of products (`InputBytes`).
    """
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    whole = h * (b + kept.normed) / (tp if sp else 1)
    return whole + (3 * (q + k) * b + q * kept.copy + STATISTIC * a.num_heads) / tp


def mlp_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes) -> float:
    """A token's share of a dense language layer's MLP: input and normed input 2 h b; split by tp the output of fc1 2 f b, the
    activated half f b, the other half f b, which Megatron copies (it adds its offset of 0), and their product, fc2's input, f b;
    fp8 keeps its own of the two inputs of products (`InputBytes`)."""
    return a.hidden_size * (b + kept.normed) / (tp if sp else 1) + a.ffn_hidden_size * (4 * b + kept.plain) / tp


def experts_bytes(a: Architecture, b: int, tp: int, etp: int, kept: InputBytes) -> float:
    """A token's share of a layer with experts, with the tokens evenly distributed over experts.

    Norm's input and output 2 h b and the router's fp32 logits and probabilities, over tp (sequence parallel). Each of the
    k copies of a token: the sorted copy, fc1's input, h b; split by etp fc1's output 2 f b, the activated half f b, the product
    f b, and fc2's input weighted by the router f b. An expert tensor parallel rank gathers the tokens of its whole group.
    """
    h, f, k = a.hidden_size, a.expert_ffn_hidden_size, a.experts_per_token
    routed = k * (h * kept.plain * etp + f * (4 * b + kept.plain)) / tp
    return (2 * h * b + 2 * 4 * a.num_experts) / tp + routed


def halves(a: Architecture, options: FinetuneOptions) -> tuple[float, float]:
    """A token's share of one language layer without recompute: (attention, MLP or experts)."""
    b, tp, sp, kept = BYTES[options.precision], options.tp, options.sequence_parallel, InputBytes.of(options)
    attention = attention_bytes(a, b, tp, sp, kept)
    return attention, experts_bytes(a, b, tp, options.etp, kept) if a.is_moe else mlp_bytes(a, b, tp, sp, kept)


def layer_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """A token's share of what is kept of one language layer that is not recomputed as a whole.

    `--recompute sel` keeps the MLP's input only, h b; of experts, whose norm is a separate module, that and the normed input.
    """
    attention, mlp = halves(a, options)
    if options.recompute == "sel":
        mlp = a.hidden_size * BYTES[options.precision] * (2 if a.is_moe else 1) / (options.tp if options.sequence_parallel else 1)
    return attention + mlp


def recomputed_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """A token's share of what the backward pass recomputes at once: layers of `--recompute-layers`, or an MLP."""
    if options.recompute == "full":
        return max(options.recompute_layers, 1) * sum(halves(a, options))
    return halves(a, options)[1] if options.recompute == "sel" else 0.0


def layer_backward_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """A token's share of the gradients that are alive at once in a layer's backward pass: fc1's output's 2 f b, the product's f b,
    of the residual stream 2 h b."""
    b, tp = BYTES[options.precision], options.tp
    width = a.experts_per_token * a.expert_ffn_hidden_size if a.is_moe else a.ffn_hidden_size
    return 2 * a.hidden_size * b / (tp if options.sequence_parallel else 1) + 3 * width * b / tp


def checkpoint_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """A token's share of what `--recompute full` keeps of a layer: its input, h b."""
    return a.hidden_size * BYTES[options.precision] / (options.tp if options.sequence_parallel else 1)


def vision_layer_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """A patch's share of one vision layer: inputs and normed inputs of both halves 4 h b; split by tp q, k, v and the output of
    attention 4 h b and its statistic, the biased output of fc1 f b and the activated one f b. Never sequence parallel, never
    fp8, and never selective recompute."""
    v, b, tp = a.vision, BYTES[options.precision], options.tp
    return 4 * v.hidden_size * b + (4 * v.hidden_size * b + STATISTIC * v.num_heads + 2 * v.ffn_hidden_size * b) / tp


def vision_recompute_layers(a: Architecture, options: FinetuneOptions) -> int:
    """Vision layers that full recompute recomputes at once."""
    return vision_layers_per_recompute(max(options.recompute_layers, 1), a.vision.num_layers)


def vision_bytes(a: Architecture, options: FinetuneOptions, sample: ActivationSample) -> float:
    """What the vision tower, the mergers and the embeddings keep of one micro batch.

    Context parallel ranks each see every picture. A frozen tower without recompute keeps nothing: nothing below it is trained.
    """
    v, b, tp = a.vision, BYTES[options.precision], options.tp
    frozen = set(options.untrained_parts())
    merge = v.spatial_merge_size**2
    tokens, deep = sample.patches / merge, len(v.deepstack_layers)
    kept = 0.0
    if sample.patches:
        if "vision" not in frozen:
            # patches [patch_dim]; collected deepstack outputs, the lists of 1, 2, … of them
            kept += sample.patches * v.patch_dim * b
            if options.recompute == "full":
                kept += sample.patches * v.hidden_size * b * (v.num_layers / vision_recompute_layers(a, options) + deep * (deep + 1) / 2)
            else:
                kept += sample.patches * (v.num_layers * vision_layer_bytes(a, options) + deep * v.hidden_size * b)
        if not {"vision", "projector"} <= frozen:
            joined = v.hidden_size * merge
            # norm's input, fc1's input; split by tp the gelu's input and fc2's
            kept += (1 + deep) * tokens * joined * b * (2 + 2 / tp)
        # deepstack features for the full sequence, and the embeddings with the features inserted
        kept += (1 + deep) * sample.tokens * a.hidden_size * b / (tp if options.sequence_parallel else 1) / options.cp
    return kept


def logits_bytes(a: Architecture, options: FinetuneOptions, tokens: float) -> float:
    """Peak bytes of logits and loss of one micro batch on the last stage.

    `vocab_parallel_cross_entropy` keeps the softmax in fp32, 4 V a token; in forward together with the logits, in backward with
    their gradient, b V each (in fp32 all three are one tensor). Later the gradient is alive with that of the weight, b h V.
    """
    b, vocabulary = BYTES[options.precision], a.vocab_size / options.tp
    loss = tokens * vocabulary * (4 if b == 4 else 4 + b)
    weight = 0 if "language" in options.frozen_parts() or options.lora_rank else a.hidden_size * vocabulary * b
    return max(loss, tokens * vocabulary * b + weight)


def in_flight(options: FinetuneOptions, stage: int, micro_batches: int) -> tuple[int, int]:
    """(micro batches in chunk 0, chunk passes in all) that pipeline stage `stage` holds at its peak.

    One forward, one backward: pp - stage. Interleaved: 2 (pp - stage - 1) + (vp - 1) pp + 1 chunk passes, in groups of pp through
    each chunk (`schedules.get_pp_rank_microbatches`).
    """
    pp, vp = options.pp, options.vp
    if pp == 1:
        return 1, 1
    if vp == 1:
        count = min(pp - stage, micro_batches)
        return count, count
    count = min(2 * (pp - stage - 1) + (vp - 1) * pp + 1, micro_batches * vp)
    rounds, rest = divmod(count, pp * vp)
    return rounds * pp + min(rest, pp), count
