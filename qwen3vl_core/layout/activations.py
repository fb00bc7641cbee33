"""Activation memory: bytes that a forward pass keeps for the backward pass, tensor by tensor. Imports no torch.

The counts follow Megatron-Core 0.16's modules with Transformer Engine's layer spec and this project's kernels, as `qwen3vl_core.model`
builds them on a GPU: fused attention (scores are never stored), no dropout, SwiGLU and the norm and rope of query and key in one
kernel each, a loss without fp32 logits. They differ from Megatron-LM's `theoretical_memory_usage.py` (sbh (18 + 4 FFN / h) for a GPT
layer), which counts biases and dropout masks that this model does not have. h: hidden size, q and k: width of all query and key heads,
f: FFN size, b: bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.layout.cuda_graphs import GROUPED_KERNEL, gathers_tokens
from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.layout.rules import vision_layers_per_recompute
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.buckets import COARSE, LEAST_PATCHES, LEAST_ROW, LEAST_TRAINED, bucket, round_up

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 2}
PICTURE_TOKENS = 1024
"""Of a picture of 1024 x 1024 pixels, which the estimates assume by default."""
# log-sum-exp of fused attention: one fp32 value per head and token
LOG_SUM_EXP = 4
# a margin, not a measurement: experts that are balanced by the loss get different numbers of tokens all the same
UNEVEN_EXPERTS = 1.25


@dataclass(frozen=True)
class ActivationSample:
    """Size of one micro batch."""

    tokens: int
    """In all rows, padding included."""
    patches: int
    """Of the pictures that one context parallel rank encodes: its share, and all where there is one picture."""
    logits: float
    """Tokens of one context parallel rank whose logits are computed."""

    @classmethod
    def of(cls, options: FinetuneOptions, architecture: Architecture, vision_tokens: int, *, graphs: bool) -> ActivationSample:
        """A micro batch of rows of `--seq-length` (or `--pad-length`) tokens, of which `vision_tokens` belong to pictures.

        graphs: sizes are rounded up to buckets (`structure.buckets`), and logits are computed for trained tokens only: at most all but
        those of the pictures.
        """
        merge = architecture.vision.spatial_merge_size**2
        length = max(options.seq_length, options.pad_length)
        tokens, seen = options.micro_batch_size * length, options.micro_batch_size * vision_tokens
        # one picture a row, but none of more tokens than the plan assumes by default
        pictures = max(options.micro_batch_size, -(-seen // PICTURE_TOKENS))
        patches = seen * merge * -(-pictures // options.cp) // pictures
        if not graphs:
            return cls(tokens, patches, tokens / options.cp)
        trained = bucket(max(round((tokens - seen) / options.cp), 1), LEAST_TRAINED, COARSE)
        tokens = round_up(tokens, LEAST_ROW) if options.packing else bucket(tokens, LEAST_ROW)
        return cls(tokens, bucket(patches, LEAST_PATCHES), min(trained, tokens / options.cp))


def experts_on_device(options: FinetuneOptions, a: Architecture, machine: Machine) -> bool:
    """Whether `model.experts` computes the experts as grouped products, not Transformer Engine one after the other."""
    if options.ep > 1:
        return gathers_tokens(options, a, machine)
    kernel = (machine.capability or GROUPED_KERNEL) >= GROUPED_KERNEL
    return kernel and options.precision == "bf16" and options.tp == options.etp == 1


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


def attention_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes, *, kernel: bool) -> float:
    """Bytes per token in the attention of a language layer.

    TELayerNormColumnParallelLinear keeps its input and the normed input: 2 h b, split by sequence parallelism only. Split by tp: the
    fused output of qkv, (q + 2 k) b, which the kernel `qk_rope` keeps beside the angles that all layers share; what it writes, q, k
    and v, (q + 2 k) b; the output, which is also the input of the projection, q b; its log-sum-exp. Without the kernel v is a view of
    the output of qkv. In fp8 the inputs of both GEMMs are kept differently (`InputBytes`).
    """
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    not_split_by_tp = h * (b + kept.normed) / (tp if sp else 1)
    return not_split_by_tp + ((3 * q + (4 if kernel else 3) * k) * b + q * kept.copy + LOG_SUM_EXP * a.num_heads) / tp


def mlp_bytes(a: Architecture, b: int, tp: int, sp: bool, kept: InputBytes) -> float:
    """Bytes per token in the MLP of a dense language layer: input and normed input 2 h b; split by tp: the output of fc1 2 f b, which
    SwiGLU keeps, and its output, fc2's input, f b. In fp8 the inputs of both GEMMs are kept differently (`InputBytes`)."""
    return a.hidden_size * (b + kept.normed) / (tp if sp else 1) + a.ffn_hidden_size * (2 * b + kept.plain) / tp


def fullest_rank(options: FinetuneOptions) -> float:
    """Tokens that the experts of the fullest expert parallel rank get, over the mean of all ranks."""
    return UNEVEN_EXPERTS if options.ep > 1 else 1.0


def experts_bytes(a: Architecture, options: FinetuneOptions, kept: InputBytes, *, on_device: bool) -> float:
    """Bytes per token in the experts of a layer; with expert parallelism on the rank whose experts get the most tokens (`fullest_rank`).

    The norm's input and output, 2 h b, and the router's fp32 logits and probabilities, split by tp (sequence parallel). For each of
    a token's k experts: the permuted token, fc1's input, h b; split by etp: fc1's output 2 f b, the activated half f b, the product
    f b, and fc2's input weighted by the router f b. An expert tensor parallel rank gathers the tokens of its whole group.
    on_device (`experts_on_device`): SwiGLU keeps fc1's output alone, so that two of the f b are not there; three int64 indices; with
    adapters the frozen weights' product keeps nothing, the adapter's two products an input of the layer's width and one of the rank's.
    Ranks that gather tokens reserve the rows of all tokens of the group.
    """
    h, f, k, b, tp = a.hidden_size, a.expert_ffn_hidden_size, a.experts_per_token, BYTES[options.precision], options.tp
    shared = (2 * h * b + 2 * 4 * a.num_experts) / tp
    if on_device:
        return shared + options.ep * k * ((h + f + 2 * options.lora_rank) * b + 2 * f * b + 3 * 8)
    return shared + fullest_rank(options) * k * (h * kept.plain * options.etp + f * (4 * b + kept.plain)) / tp


def halves(a: Architecture, options: FinetuneOptions, on_device: bool = False) -> tuple[float, float]:
    """Bytes per token in one language layer without recomputation: (attention, MLP or experts). on_device: `experts_on_device`."""
    b, tp, sp, kept = BYTES[options.precision], options.tp, options.sequence_parallel, InputBytes.of(options)
    # activations that Transformer Engine offloads must be those of its own modules
    attention = attention_bytes(a, b, tp, sp, kept, kernel=options.recompute != "offload")
    return attention, experts_bytes(a, options, kept, on_device=on_device) if a.is_moe else mlp_bytes(a, b, tp, sp, kept)


def layer_bytes(a: Architecture, options: FinetuneOptions, on_device: bool = False) -> float:
    """Bytes per token that a language layer keeps, unless it is recomputed as a whole.

    `--recompute sel` keeps only the input of the MLP, h b; with experts, whose norm is a separate module, also the normed input.
    """
    attention, mlp = halves(a, options, on_device)
    if options.recompute == "sel":
        mlp = a.hidden_size * BYTES[options.precision] * (2 if a.is_moe else 1) / (options.tp if options.sequence_parallel else 1)
    return attention + mlp


def recomputed_bytes(a: Architecture, options: FinetuneOptions, on_device: bool = False) -> float:
    """Bytes per token that the backward pass recomputes at once: `--recompute-layers` layers, or one MLP."""
    if options.recompute == "full":
        return max(options.recompute_layers, 1) * sum(halves(a, options, on_device))
    return halves(a, options, on_device)[1] if options.recompute == "sel" else 0.0


def layer_backward_bytes(a: Architecture, options: FinetuneOptions, on_device: bool = False) -> float:
    """Bytes per token of the gradients that are alive at once in a layer's backward pass: of fc1's output 2 f b, of the product f b,
    of the residual stream 2 h b."""
    b, tp = BYTES[options.precision], options.tp
    rows = a.experts_per_token * (options.ep if on_device else fullest_rank(options))
    width = rows * a.expert_ffn_hidden_size if a.is_moe else a.ffn_hidden_size
    return 2 * a.hidden_size * b / (tp if options.sequence_parallel else 1) + 3 * width * b / tp


def expert_gradients(a: Architecture, options: FinetuneOptions, on_device: bool) -> int:
    """Bytes of a layer's weight gradients of fc1 in bf16, which a grouped product makes of all experts before they are added."""
    if not (a.is_moe and on_device) or "language" in options.frozen_parts() or options.lora_rank:
        return 0
    return a.num_experts // options.ep * 2 * a.expert_ffn_hidden_size * a.hidden_size * BYTES[options.precision]


def fp8_copies(a: Architecture, options: FinetuneOptions) -> tuple[int, int]:
    """Bytes of the fp8 copies of a dense layer's matrices, each and its transpose: (attention, MLP)."""
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    return 2 * h * (2 * q + 2 * k) // options.tp, 2 * 3 * h * a.ffn_hidden_size // options.tp


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

    A frozen tower keeps nothing, as nothing before it is trained.
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
            # inputs of the norm and of fc1; split by tp: inputs of gelu and of fc2; the features, which index_copy keeps
            kept += (1 + deep) * tokens * (merged * (2 + 2 / tp) + a.hidden_size) * b
            if options.cp > 1:
                # the features of all ranks' pictures are kept instead of this rank's
                kept += (1 + deep) * tokens * (options.cp - 1) * a.hidden_size * b
        # deepstack features for the full sequence, and the embeddings with the features inserted
        kept += (1 + deep) * sample.tokens * a.hidden_size * b / (tp if options.sequence_parallel else 1) / options.cp
    return kept


def logits_bytes(a: Architecture, options: FinetuneOptions, tokens: float, *, gradient_is_last: bool) -> float:
    """Peak bytes of logits and loss of one micro batch on the last stage. tokens: those whose logits are computed.

    The kernel `cross_entropy` keeps the logits, and backward writes their gradient beside them: 2 b V per token. With tensor
    parallelism Megatron's fused loss has an fp32 copy and its exponentials beside the logits, b + 8 per word (4 + 4 in fp32), as it had
    on one GPU before the kernel: two runs of 2B peaked at 72.5 and 51.8 GiB, which leaves 10 bytes.

    Later the logits' gradient is alive with a tensor as large as the weight, b h V: with tensor parallelism its gradient; otherwise
    what Megatron's DDP is handed for a gradient that was added in place, if the weight is not tied to an embedding of this stage, whose
    gradient comes later (gradient_is_last).
    """
    b, vocabulary = BYTES[options.precision], a.vocab_size / options.tp
    loss = tokens * vocabulary * (2 * b if options.tp == 1 else b + 8 if b < 4 else 8)
    trained = "language" not in options.frozen_parts() and not options.lora_rank
    weight = a.hidden_size * vocabulary * b if trained and (options.tp > 1 or gradient_is_last) else 0
    return max(loss, tokens * vocabulary * b + weight)


def unused_gradients(a: Architecture, options: FinetuneOptions, *, first: bool) -> int:
    """Bytes of the tensors that Transformer Engine hands to autograd for weights whose gradient it has added in place: one for each
    shape of a trained matrix, made once. first: the stage has the vision tower."""
    h, q, k, v = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.vision
    if options.lora_rank:
        return 0
    frozen, shapes = options.frozen_parts(), set[tuple[int, int]]()
    if "language" not in frozen:
        shapes |= {((q + 2 * k) // options.tp, h), (h, q // options.tp)}
        f, tp = (a.expert_ffn_hidden_size, options.etp) if a.is_moe else (a.ffn_hidden_size, options.tp)
        shapes |= {(2 * f // tp, h), (h, f // tp)}
    if first and "vision" not in frozen:
        heads, ffn = v.hidden_size // options.tp, v.ffn_hidden_size // options.tp
        shapes |= {(3 * heads, v.hidden_size), (v.hidden_size, heads), (ffn, v.hidden_size), (v.hidden_size, ffn)}
    if first and "projector" not in frozen:
        merged = v.hidden_size * v.spatial_merge_size**2
        shapes |= {(merged // options.tp, merged), (h, merged // options.tp)}
    return sum(out * into for out, into in shapes) * BYTES[options.precision]


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
