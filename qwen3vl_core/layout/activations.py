"""Activation memory: bytes that a forward pass keeps for the backward pass, tensor by tensor. Imports no torch.

The counts follow Megatron-Core 0.16's modules with Transformer Engine's layer spec, as `qwen3vl_core.model` builds them:
fused attention (scores are never stored), no dropout, no fused activation, no fused rope. They differ from Megatron-LM's
`theoretical_memory_usage.py` (sbh (18 + 4 FFN / h) for a GPT layer), which counts biases, dropout masks and a fused
SwiGLU that this model does not have. h: hidden size, q and k: width of all query and key heads, f: FFN size, b: bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.layout.rules import vision_layers_per_recompute
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 2}
# log-sum-exp of fused attention: one fp32 value per head and token
LOG_SUM_EXP = 4


@dataclass(frozen=True)
class ActivationSample:
    """Size of one micro batch."""

    tokens: int
    """In all rows, padding included."""
    patches: int
    """In all pictures."""

    @classmethod
    def of(cls, options: FinetuneOptions, architecture: Architecture, vision_tokens: int) -> ActivationSample:
        """A micro batch of rows of `--seq-length` (or `--pad-length`) tokens, of which `vision_tokens` belong to pictures."""
        merge = architecture.vision.spatial_merge_size**2
        length = max(options.seq_length, options.pad_length)
        return cls(options.micro_batch_size * length, options.micro_batch_size * vision_tokens * merge)


@dataclass(frozen=True)
class InputBytes:
    """Bytes kept per element of a GEMM's input, by where the input comes from."""

    normed: int
    """The output of a norm that is fused with the GEMM."""
    plain: int
    """Any other input."""
    copy: int = 0
    """Additional bytes for an input that is kept anyway, as the output of attention is."""

    @classmethod
    def of(cls, options: FinetuneOptions) -> InputBytes:
        """fp8 keeps only the transposed fp8 copy. Adapters read the input itself; a GEMM with a frozen weight keeps no input, except
        the fp8 copy of its fused norm's output."""
        b = BYTES[options.precision]
        if options.precision != "fp8":
            return cls(b, b)
        return cls(b + 1, b) if options.lora_rank else cls(1, 1, 1)


def attention_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes) -> float:
    """Bytes per token in the attention of a language layer.

    TELayerNormColumnParallelLinear keeps its input and the normed input: 2 h b, split by sequence parallelism only. Split by tp: the
    fused output of qkv, of which v and the inputs of the norms of q and k are views, (q + 2 k) b; q and k after rope, (q + k) b (the
    kernel keeps only the angles, which all layers share); the output, which is also the input of the projection, q b; its
    log-sum-exp. In fp8 the inputs of both GEMMs are kept differently (`InputBytes`).
    """
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    not_split_by_tp = h * (b + kept.normed) / (tp if sp else 1)
    return not_split_by_tp + (3 * (q + k) * b + q * kept.copy + LOG_SUM_EXP * a.num_heads) / tp


def mlp_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes) -> float:
    """Bytes per token in the MLP of a dense language layer: input and normed input 2 h b; split by tp: the output of fc1 2 f b, the
    activated half f b, the other half f b, which Megatron copies (it adds an offset of 0), and their product, fc2's input, f b.
    In fp8 the inputs of both GEMMs are kept differently (`InputBytes`)."""
    return a.hidden_size * (b + kept.normed) / (tp if sp else 1) + a.ffn_hidden_size * (4 * b + kept.plain) / tp


def experts_bytes(a: Architecture, b: int, tp: int, etp: int, kept: InputBytes) -> float:
    """Bytes per token in the experts of a layer, with the tokens evenly distributed over the experts.

    The norm's input and output, 2 h b, and the router's fp32 logits and probabilities, split by tp (sequence parallel). For each of
    a token's k experts: the permuted token, fc1's input, h b; split by etp: fc1's output 2 f b, the activated half f b, the product
    f b, and fc2's input weighted by the router f b. An expert tensor parallel rank gathers the tokens of its whole group.
    """
    h, f, k = a.hidden_size, a.expert_ffn_hidden_size, a.experts_per_token
    routed = k * (h * kept.plain * etp + f * (4 * b + kept.plain)) / tp
    return (2 * h * b + 2 * 4 * a.num_experts) / tp + routed


def halves(a: Architecture, options: FinetuneOptions) -> tuple[float, float]:
    """Bytes per token in one language layer without recomputation: (attention, MLP or experts)."""
    b, tp, sp, kept = BYTES[options.precision], options.tp, options.sequence_parallel, InputBytes.of(options)
    attention = attention_bytes(a, b, tp, sp, kept)
    return attention, experts_bytes(a, b, tp, options.etp, kept) if a.is_moe else mlp_bytes(a, b, tp, sp, kept)


def layer_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """Bytes per token that a language layer keeps, unless it is recomputed as a whole.

    `--recompute sel` keeps only the input of the MLP, h b; with experts, whose norm is a separate module, also the normed input.
    """
    attention, mlp = halves(a, options)
    if options.recompute == "sel":
        mlp = a.hidden_size * BYTES[options.precision] * (2 if a.is_moe else 1) / (options.tp if options.sequence_parallel else 1)
    return attention + mlp


def recomputed_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """Bytes per token that the backward pass recomputes at once: `--recompute-layers` layers, or one MLP."""
    if options.recompute == "full":
        return max(options.recompute_layers, 1) * sum(halves(a, options))
    return halves(a, options)[1] if options.recompute == "sel" else 0.0


def layer_backward_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """Bytes per token of the gradients that are alive at once in a layer's backward pass: of fc1's output 2 f b, of the product f b,
    of the residual stream 2 h b."""
    b, tp = BYTES[options.precision], options.tp
    width = a.experts_per_token * a.expert_ffn_hidden_size if a.is_moe else a.ffn_hidden_size
    return 2 * a.hidden_size * b / (tp if options.sequence_parallel else 1) + 3 * width * b / tp


def checkpoint_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """Bytes per token that `--recompute full` keeps of a layer: its input, h b."""
    return a.hidden_size * BYTES[options.precision] / (options.tp if options.sequence_parallel else 1)


def vision_layer_bytes(a: Architecture, options: FinetuneOptions) -> float:
    """Bytes per patch in one vision layer: inputs and normed inputs of attention and MLP, 4 h b; split by tp: q, k, v and the output
    of attention, 4 h b, its log-sum-exp, the output of fc1 with bias f b, and its activation f b. The tower never uses sequence
    parallelism, fp8 or selective recomputation."""
    v, b, tp = a.vision, BYTES[options.precision], options.tp
    return 4 * v.hidden_size * b + (4 * v.hidden_size * b + LOG_SUM_EXP * v.num_heads + 2 * v.ffn_hidden_size * b) / tp


def vision_recompute_layers(a: Architecture, options: FinetuneOptions) -> int:
    """Vision layers that full recomputation recomputes at once."""
    return vision_layers_per_recompute(max(options.recompute_layers, 1), a.vision.num_layers)


def vision_bytes(a: Architecture, options: FinetuneOptions, sample: ActivationSample) -> float:
    """Bytes that the vision tower, the mergers and the embeddings keep of one micro batch.

    Every context parallel rank encodes all pictures. A frozen tower keeps nothing, as nothing before it is trained.
    """
    v, b, tp = a.vision, BYTES[options.precision], options.tp
    frozen = set(options.untrained_parts())
    merge = v.spatial_merge_size**2
    tokens, deep = sample.patches / merge, len(v.deepstack_layers)
    kept = 0.0
    if sample.patches:
        if "vision" not in frozen:
            # patches [patch_dim]; with full recomputation the deepstack outputs collected so far, 1, 2, … of them
            kept += sample.patches * v.patch_dim * b
            if options.recompute == "full":
                kept += sample.patches * v.hidden_size * b * (v.num_layers / vision_recompute_layers(a, options) + deep * (deep + 1) / 2)
            else:
                kept += sample.patches * (v.num_layers * vision_layer_bytes(a, options) + deep * v.hidden_size * b)
        if not {"vision", "projector"} <= frozen:
            merged = v.hidden_size * merge
            # inputs of the norm and of fc1; split by tp: inputs of gelu and of fc2
            kept += (1 + deep) * tokens * merged * b * (2 + 2 / tp)
        # deepstack features for the full sequence, and the embeddings with the features inserted
        kept += (1 + deep) * sample.tokens * a.hidden_size * b / (tp if options.sequence_parallel else 1) / options.cp
    return kept


def logits_bytes(a: Architecture, options: FinetuneOptions, tokens: float) -> float:
    """Peak bytes of logits and loss of one micro batch on the last stage.

    `vocab_parallel_cross_entropy` keeps the softmax in fp32, 4 V per token, in forward next to the logits, in backward next to
    their gradient, b V each (in fp32 all three are one tensor). Later the logits' gradient is alive with that of the weight, b h V.
    """
    b, vocabulary = BYTES[options.precision], a.vocab_size / options.tp
    loss = tokens * vocabulary * (4 if b == 4 else 4 + b)
    weight = 0 if "language" in options.frozen_parts() or options.lora_rank else a.hidden_size * vocabulary * b
    return max(loss, tokens * vocabulary * b + weight)


def in_flight(options: FinetuneOptions, stage: int, micro_batches: int) -> tuple[int, int]:
    """(micro batches in chunk 0, chunk passes in total) whose activations pipeline stage `stage` holds at its peak.

    1F1B: pp - stage. Interleaved: 2 (pp - stage - 1) + (vp - 1) pp + 1 chunk passes, in groups of pp through
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
