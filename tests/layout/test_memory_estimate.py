"""The memory estimate: computed by hand, against measurements, and invariants."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import activations as act
from qwen3vl_core.layout.machine_rules import ASSUMED_GPU, Machine
from qwen3vl_core.layout.memory import estimate, static_bytes, update_bytes
from qwen3vl_core.layout.parameters import published, stages
from qwen3vl_core.layout.rules import layout_problems
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import SIZES

TWO = published("2B")
LANGUAGE_2B = 28 * (2048 * 4096 + 2048 * 2048 + 3 * 2048 * 6144 + 2 * 2048 + 2 * 128) + 151936 * 2048 + 2048


def test_static_memory_by_hand():
    options = FinetuneOptions(tp=2, distributed_optimizer=True, sequence_parallel=True)
    stage = stages(options, TWO)[0]
    assert static_bytes(options, TWO, stage, 8) == (2 * stage.total, 4 * stage.total, sum(-(-12 * n // 4) for n in stage.counts.values()))
    alone = FinetuneOptions(precision="fp32")
    stage = stages(alone, TWO)[0]
    assert static_bytes(alone, TWO, stage, 1) == (4 * stage.total, 4 * stage.total, 8 * stage.total)


def test_memory_of_the_optimizers_precisions_by_hand():
    aware = dict(distributed_optimizer=True, use_precision_aware_optimizer=True, main_grads_dtype="bf16")
    stage = stages(FinetuneOptions(), TWO)[0]
    count = stage.total
    for changes, gradients, state in (
        (dict(aware), 2, 12), (dict(aware, exp_avg_dtype="bf16"), 2, 10),
        (dict(aware, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16"), 2, 8), (dict(main_grads_dtype="bf16"), 2, 12),
        (dict(aware, main_grads_dtype="fp32"), 4, 12),
    ):  # fmt: skip
        assert static_bytes(FinetuneOptions(**changes), TWO, stage, 1) == (2 * count, gradients * count, state * count)
    # what there is at the update alone: fp32 copies of bf16 gradients, or of the moments of the largest weight, the embedding
    embedding = 151936 * 2048
    plain = FinetuneOptions(main_grads_dtype="bf16")
    assert update_bytes(plain, TWO, stage, 1) == 4 * count
    assert update_bytes(FinetuneOptions(distributed_optimizer=True, main_grads_dtype="bf16"), TWO, stage, 4) == count
    moments = FinetuneOptions(**aware, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16")
    assert update_bytes(moments, TWO, stage, 1) == 8 * embedding
    assert update_bytes(FinetuneOptions(**aware), TWO, stage, 1) == update_bytes(FinetuneOptions(), TWO, stage, 1) == 0
    # no activation is alive then
    short = dict(seq_length=64, cuda_graph="off")
    peak = estimate(dataclasses.replace(plain, **short), TWO, 1, 0)[0]
    assert peak.activations + peak.vision + peak.peak_extra == 4 * count


def test_frozen_parts_have_weights_only():
    options = FinetuneOptions(freeze="vision,projector")
    stage = stages(options, TWO)[0]
    assert stage.counts["language"] == LANGUAGE_2B
    assert static_bytes(options, TWO, stage, 1) == (2 * stage.total, 4 * LANGUAGE_2B, 12 * LANGUAGE_2B)


def test_experts_are_split_by_their_own_data_parallel_size():
    a = published("A3B")
    options = FinetuneOptions(ep=4, distributed_optimizer=True)
    stage = stages(options, a)[0]
    rest = sum(n for part, n in stage.counts.items() if part != "experts")
    assert stage.counts["experts"] == 48 * 32 * 3 * 2048 * 768
    _, _, optimizer = static_bytes(options, a, stage, 8)
    assert optimizer == pytest.approx(12 * rest / 8 + 12 * stage.counts["experts"] / 2, abs=4)


def test_a_layers_activations_by_hand():
    # h 2048, q 2048, k 1024, f 6144, two bytes: 2h + 3q + 4k and a statistic of 16 heads, 2h + 3f
    assert act.layer_bytes(TWO, FinetuneOptions()) == 2 * (2 * 2048 + 3 * 2048 + 4 * 1024) + 4 * 16 + 2 * (2 * 2048 + 3 * 6144)
    # the kernel of query and key is off: value is a view of the projection's output
    offloaded = FinetuneOptions(recompute="offload")
    assert act.layer_bytes(TWO, offloaded) == act.layer_bytes(TWO, FinetuneOptions()) - 2 * 1024
    cut = FinetuneOptions(tp=2, sequence_parallel=True)
    assert act.layer_bytes(TWO, cut) == act.layer_bytes(TWO, FinetuneOptions()) / 2
    # fp8: one byte of an input, and of the attention's output a copy; adapters read the inputs as they are
    fp8 = FinetuneOptions(precision="fp8")
    assert act.layer_bytes(TWO, fp8) == act.layer_bytes(TWO, FinetuneOptions()) - 2 * 2048 - 6144 + 2048
    adapted = FinetuneOptions(precision="fp8", lora_rank=16)
    assert act.layer_bytes(TWO, adapted) == act.layer_bytes(TWO, FinetuneOptions()) + 2 * 2048
    # without sequence parallelism the norms' inputs and outputs stay whole
    assert act.layer_bytes(TWO, FinetuneOptions(tp=2)) == act.layer_bytes(TWO, cut) + 2 * 2 * 2048


def test_logits_are_those_of_text_tokens_with_graphs_and_of_every_token_without():
    words = 2 * 2 * 151936
    graphs, eager = FinetuneOptions(packing=True, seq_length=8192), FinetuneOptions(packing=True, seq_length=8192, cuda_graph="off")
    # 8192 - 5200 = 2992, a bucket of 3072
    assert estimate(graphs, TWO, 1, 5200)[0].logits == 3072 * words
    assert estimate(eager, TWO, 1, 5200)[0].logits == 8192 * words
    # the same on a machine where nothing can be captured
    assert estimate(graphs, TWO, 1, 5200, Machine(gpus=1))[0].logits == 8192 * words
    # Megatron's loss over half of the words: bf16 logits, their fp32 copy and its exponentials
    halves = dataclasses.replace(graphs, tp=2, sequence_parallel=True)
    assert estimate(halves, TWO, 2, 5200)[0].logits == 3072 * 10 * 151936 // 2
    # few tokens: the output layer's gradient was added in place, and what stands for it is as large as the weight; tied, it comes later
    assert act.logits_bytes(TWO, FinetuneOptions(), 64, gradient_is_last=True) == 2 * 151936 * (64 + 2048)
    assert act.logits_bytes(TWO, FinetuneOptions(), 64, gradient_is_last=False) == 64 * words


def test_fp8_copies_of_weights_live_in_a_step_without_graphs_and_in_a_micro_batch_with_them():
    options = FinetuneOptions(precision="fp8")
    copies = 2 * 28 * (2048 * 4096 + 2048 * 2048 + 3 * 2048 * 6144)
    graphs, eager = estimate(options, TWO, 1)[0], estimate(dataclasses.replace(options, cuda_graph="off"), TWO, 1)[0]
    assert eager.weights - graphs.weights == copies == graphs.activations - eager.activations
    full = dataclasses.replace(options, recompute="full")
    recomputed, kept = estimate(full, TWO, 1)[0], estimate(dataclasses.replace(full, cuda_graph="off"), TWO, 1)[0]
    assert recomputed.weights == graphs.weights and recomputed.activations == kept.activations


def test_an_experts_rows_by_hand():
    a, options = published("A3B"), FinetuneOptions()
    on, off = (act.layer_bytes(a, options, on_device) for on_device in (True, False))
    # f 768, 8 experts a token: SwiGLU keeps two tensors less, the dispatcher three indices
    assert off - on == 8 * (2 * 768 * 2 - 3 * 8)
    adapted = FinetuneOptions(lora_rank=16)
    assert act.layer_bytes(a, adapted, True) - on == 8 * 2 * 16 * 2
    assert act.experts_on_device(options, a, ASSUMED_GPU) and not act.experts_on_device(options, a, Machine(gpus=1, capability=8.0))
    assert not act.experts_on_device(FinetuneOptions(ep=2), a, ASSUMED_GPU)
    # more ranks, with one layer's rows at a time
    assert not act.experts_on_device(FinetuneOptions(ep=8, packing=True), a, ASSUMED_GPU)
    assert act.experts_on_device(FinetuneOptions(ep=8, packing=True, recompute="full"), a, ASSUMED_GPU)
    assert not act.experts_on_device(FinetuneOptions(ep=16, packing=True, recompute="full"), a, ASSUMED_GPU)
    # two ranks reserve the rows of both for the experts of one
    gathered = FinetuneOptions(ep=2, packing=True)
    assert act.experts_on_device(gathered, a, ASSUMED_GPU)
    assert act.layer_bytes(a, gathered, True) - on == 8 * ((2048 + 768) * 2 + 2 * 768 * 2 + 3 * 8)


def test_experts_on_several_ranks_share_no_optimizer_state_on_the_host():
    """Each of two ranks has half of the experts and all of their state; that of the other weights is split."""
    a, options = (
        published("A3B"),
        FinetuneOptions(ep=2, distributed_optimizer=True, optimizer_offload=1.0, packing=True, global_batch_size=2),
    )
    stage = estimate(options, a, 2)[0]
    experts = 48 * 128 * 3 * 2048 * 768
    assert stage.host == pytest.approx(16 * (experts / 2 + (31_070_754_032 - experts) / 2), rel=1e-6)
    assert stage.optimizer == 0


def test_what_stands_for_gradients_added_in_place_by_hand():
    v = 1024
    language, vision, mergers = (4096 + 2048) * 2048 + 3 * 6144 * 2048, (3 * v + v + 2 * 4096) * v, (4096 + 2048) * 4096
    assert act.unused_gradients(TWO, FinetuneOptions(), first=True) == 2 * (language + vision + mergers)
    assert act.unused_gradients(TWO, FinetuneOptions(freeze="vision,projector"), first=True) == 2 * language
    assert act.unused_gradients(TWO, FinetuneOptions(), first=False) == 2 * language
    assert act.unused_gradients(TWO, FinetuneOptions(lora_rank=16), first=True) == 0


def test_micro_batches_in_flight_are_those_of_megatrons_schedules():
    one = FinetuneOptions(pp=4)
    assert [act.in_flight(one, stage, 16) for stage in range(4)] == [(4, 4), (3, 3), (2, 2), (1, 1)]
    assert act.in_flight(one, 0, 2) == (2, 2)
    # interleaved: 2 (4 - 1) + (2 - 1) 4 + 1 = 11 passes: 4 + 3 of chunk 0, 4 of chunk 1
    assert act.in_flight(FinetuneOptions(pp=4, vp=2), 0, 16) == (7, 11)


@pytest.mark.parametrize(
    ("size", "layers", "vision_tokens", "changes", "peak"),
    [
        # the fullest row has 52 pictures of 100 tokens, in fp8, which pads each sample to 16 tokens, 51
        ("2B", 0, 5200, dict(packing=True, seq_length=8192), 70.2),
        ("2B", 0, 5100, dict(packing=True, seq_length=8192, precision="fp8"), 69.8),
        ("8B", 16, 1024, dict(seq_length=8125), 108.6),
        # adapters hold nothing of the frozen tower: the fullest row is the one with the most trained tokens
        ("4B", 0, 4509, dict(packing=True, seq_length=8192, lora_rank=16), 42.1),
        ("2B", 0, 0, dict(seq_length=4085, micro_batch_size=2, freeze="vision,projector"), 50.3),
        ("2B", 0, 5200, dict(packing=True, seq_length=8192, cp=2), 53.4),
        ("2B", 0, 5100, dict(packing=True, seq_length=8192, tp=2, sequence_parallel=True), 38.3),
    ],
)
def test_the_estimate_is_near_the_peaks_of_real_finetunes(size, layers, vision_tokens, changes, peak):
    """GiB of torch's tensors with kernels and CUDA graphs on one H200: `benchmarks/finetune.py`, docs/memory.md."""
    a = published(size)
    a = dataclasses.replace(a, num_layers=layers or a.num_layers)
    options = FinetuneOptions(**changes)
    options.global_batch_size = 4 * options.micro_batch_size
    found = estimate(options, a, options.cp * options.tp, vision_tokens)[0].allocated / GIB
    print(f"{size} {changes}: measured {peak}, estimated {found:.2f} ({found / peak - 1:+.1%})")
    assert found == pytest.approx(peak, rel=0.025)


def before_the_kernels(options, a, vision_tokens) -> float:
    """GiB as the layers held them before SwiGLU, the norm and rope of query and key, experts and the loss were kernels: kernel by
    kernel, what differs counted here, the rest estimated as today."""
    eager = dataclasses.replace(options, cuda_graph="off")
    found = estimate(eager, a, 1, vision_tokens)[0]
    tokens, k = options.micro_batch_size * options.seq_length, a.num_kv_heads * a.head_dim
    # value was a view, SwiGLU kept two more tensors, and an expert's input was there once
    layer = 0 if options.recompute == "offload" else -2 * k
    if a.is_moe:
        on_device = act.experts_on_device(options, a, ASSUMED_GPU)
        layer += act.layer_bytes(a, options, False) - act.layer_bytes(a, options, on_device)
    elif options.recompute != "sel":
        layer += 2 * a.ffn_hidden_size * 2
    more = found.activations * layer / act.layer_bytes(a, options, act.experts_on_device(options, a, ASSUMED_GPU))
    if options.recompute == "full":
        more = 0
    # the loss kept fp32 probabilities of every token beside the logits; the weight's gradient was made in bf16, of tied ones to the end
    weight = 0 if options.lora_rank else 2 * a.hidden_size * a.vocab_size
    peak = max(6 * tokens * a.vocab_size, 2 * tokens * a.vocab_size + weight)
    unused = act.unused_gradients(a, options, first=True)
    return (found.allocated - found.peak_extra + unused + more + peak) / GIB


@pytest.mark.parametrize(
    ("size", "layers", "vision_tokens", "changes", "static", "peak"),
    [
        ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2), 35.67, 70.14),
        ("2B", 0, 0, dict(seq_length=4096, micro_batch_size=2), 35.67, 63.51),
        ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, recompute="full"), 35.67, 44.46),
        ("2B", 0, 1024, dict(seq_length=4096, micro_batch_size=2, freeze="vision,projector"), 29.61, 57.59),
        ("2B", 0, 256, dict(seq_length=512), 35.67, 38.50),
        ("4B", 0, 1024, dict(seq_length=2048), 74.55, 89.85),
        ("4B", 0, 1024, dict(seq_length=8192, recompute="full"), 74.55, 83.52),
        ("8B", 8, 1024, dict(seq_length=4096), 56.47, 69.81),
        ("A3B", 6, 1024, dict(seq_length=4096), 82.22, 93.39),
    ],
)
def test_the_estimate_was_near_the_peaks_measured_before_the_kernels(size, layers, vision_tokens, changes, static, peak):
    """GiB of torch's tensors in this product's training step on one H200, bf16: `tests/gpu/test_measured_memory.py`."""
    a = published(size)
    a = dataclasses.replace(a, num_layers=layers or a.num_layers)
    options = FinetuneOptions(**changes)
    options.global_batch_size = options.micro_batch_size
    found = estimate(options, a, 1, vision_tokens)[0]
    before = before_the_kernels(options, a, vision_tokens)
    print(f"{size} {changes}: measured {peak}, estimated {before:.2f} ({before / peak - 1:+.1%})")
    assert (found.weights + found.gradients + found.optimizer) / GIB == pytest.approx(static, rel=0.01)
    assert before == pytest.approx(peak, rel=0.02)


ROWS = dict(seq_length=2048, micro_batch_size=2, global_batch_size=2)
ONE_ROW = dict(micro_batch_size=1, global_batch_size=1)


@pytest.mark.parametrize(
    ("size", "changes", "peak", "within"),
    [
        ("2B", dict(), 55.97, 0.02),
        ("2B", dict(attention="flash"), 57.37, 0.03),
        ("2B", dict(precision="fp8"), 57.70, 0.02),
        ("2B", dict(precision="fp8", fp8_recipe="delayed"), 57.92, 0.02),
        ("2B", dict(recompute="sel"), 49.17, 0.02),
        ("2B", dict(recompute="full"), 40.56, 0.02),
        ("2B", dict(packing=True, seq_length=4096, micro_batch_size=1, global_batch_size=1), 55.02, 0.02),
        ("2B", dict(lora_rank=16), 18.23, 0.02),
        ("4B", dict(lora_rank=16), 32.99, 0.02),
        ("4B", dict(lora_rank=16, precision="fp8"), 40.50, 0.02),
        ("2B", dict(precision="fp8", fp8_recipe="blockwise"), 57.70, 0.02),
        ("2B", dict(recompute="offload", recompute_layers=14), 52.31, 0.03),
        ("4B", dict(optimizer_offload=0.6, distributed_optimizer=True, recompute="full"), 49.69, 0.02),
        ("2B", dict(optimizer_offload=0.5, distributed_optimizer=True), 44.18, 0.02),
        # one step each: tests/gpu/test_measured_memory.py
        ("2B", dict(recompute="offload", recompute_layers=14, seq_length=4096), 62.09, 0.04),
        ("4B", dict(optimizer_offload=0.6, distributed_optimizer=True, recompute="full", **ONE_ROW), 46.99, 0.02),
        ("A3B", dict(lora_rank=16, seq_length=4096, **ONE_ROW), 29.79, 0.04),
        # these runs kept a copy of the adapters, which are one tensor now: 0.3 GiB
        ("A3B", dict(lora_rank=16, precision="fp8", seq_length=4096, **ONE_ROW), 44.80, 0.05),
    ],
)
def test_the_estimate_was_near_the_peaks_of_real_runs_before_the_kernels(size, changes, peak, within):
    """GiB of torch's tensors as `qwen3vl finetune` wrote them down on one H100 80 GB: `benchmarks/options.py`, docs/memory.md."""
    options = FinetuneOptions(**(ROWS | changes))
    seen = 2048 if options.packing else 1024
    a = published(size)
    if size == "A3B":
        a = dataclasses.replace(a, num_layers=12)
    found = before_the_kernels(options, a, seen)
    print(f"{size} {changes}: measured {peak}, estimated {found:.2f} ({found / peak - 1:+.1%})")
    assert found == pytest.approx(peak, rel=within)


@pytest.mark.parametrize(("recompute", "measured"), [("none", 47.3), ("full", 32.8)])
def test_the_estimate_is_near_another_programs_peaks_too(recompute, measured):
    """One H100, Transformer Engine, bf16, a 2B-sized language tower alone, 2 rows of 4096, a step each micro batch.

    With weights, moments and master weights of 14 bytes before the backward pass, and at the optimizer's step bf16
    gradients and their fp32 copies beside them, as where no data-parallel wrapper keeps a buffer for gradients.
    """
    options = FinetuneOptions(seq_length=4096, micro_batch_size=2, global_batch_size=2, recompute=recompute)
    found = estimate(options, TWO, 1, vision_tokens=0)[0]
    guess = max(LANGUAGE_2B * 14 + found.activations + found.logits, LANGUAGE_2B * 20) / GIB
    print(f"recompute {recompute}: measured {measured} GiB, estimated {guess:.1f}")
    assert guess == pytest.approx(measured, rel=0.15)


choices = st.fixed_dictionaries(
    {
        "size": st.sampled_from([s for s in SIZES if s != "tiny"]), "tp": st.sampled_from([1, 2]), "pp": st.sampled_from([1, 2]),
        "cp": st.sampled_from([1, 2]), "ep": st.sampled_from([1, 2]), "recompute": st.sampled_from(["none", "sel", "full"]),
        "distributed_optimizer": st.booleans(), "seq_length": st.sampled_from([512, 2048, 8192]), "micro_batch_size": st.integers(1, 4),
        "freeze": st.sampled_from(["", "vision", "vision,projector"]), "precision": st.sampled_from(["bf16", "fp32"]),
    }
)  # fmt: skip


def plan(values: dict, dp: int = 2, micro_batches: int = 8):
    """(peak of torch's tensors, options, processes) of a valid layout."""
    options = FinetuneOptions(**values, sequence_parallel=values["tp"] > 1)
    processes = options.tp * options.pp * options.cp * dp
    options.global_batch_size = options.micro_batch_size * dp * micro_batches
    a = published(options.size)
    assume(not list(layout_problems(options, a, processes)))
    return max(stage.allocated for stage in estimate(options, a, processes)), options, processes


@settings(deadline=None, max_examples=60)
@given(values=choices, name=st.sampled_from(["tp", "cp", "pp"]))
def test_more_model_parallelism_never_needs_more_memory_per_gpu(values, name):
    assume(values["precision"] == "bf16")
    # a pipeline's first stage keeps the pictures of as many micro batches as there are stages, which can outweigh its fewer layers
    several = 1 if name == "pp" else 8
    least, *_ = plan(values | {name: 2}, micro_batches=several)
    most, *_ = plan(values | {name: 1}, micro_batches=several)
    assert least <= most


@settings(deadline=None, max_examples=60)
@given(values=choices)
def test_more_tokens_need_more_memory_and_recompute_less(values):
    _, options, processes = plan(values)
    a = published(options.size)

    def other(**changes):
        # the stage that is fullest with all that is outside of tensors may be another one
        return max(stage.allocated for stage in estimate(dataclasses.replace(options, **changes), a, processes))

    peak = other()
    assert other(seq_length=options.seq_length * 2) > peak
    assert other(micro_batch_size=options.micro_batch_size * 2) > peak
    assert other(distributed_optimizer=True) <= other(distributed_optimizer=False)
    assert max(other(recompute="full"), other(recompute="sel")) <= other(recompute="none")
    assert other(freeze="vision,projector") <= other(freeze="vision") <= other(freeze="")


@settings(deadline=None, max_examples=40)
@given(values=choices)
def test_the_parts_add_up(values):
    _, options, processes = plan(values)
    for stage in estimate(options, published(options.size), processes):
        parts = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.vision, stage.peak_extra)
        assert all(p >= 0 for p in parts) and stage.allocated == sum(parts) and stage.total == stage.allocated + stage.workspace
        assert stage.peak_extra >= stage.logits
