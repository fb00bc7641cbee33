"""The Triton kernels on a GPU against the modules of Transformer Engine and Megatron that they replace, on the shapes of real models,
one by one and in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")
    pytest.importorskip("triton")

from qwen3vl_core.model import kernels

from benchmarks import kernels as cases

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# largest error, relative to the largest number: a few bits of the type
TOLERANCE = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-5}
# of the numbers, those that may differ at all where both sides round alike
DIFFERENT = {torch.bfloat16: 0.01, torch.float16: 0.02, torch.float32: 1.0}


def agree(ours, theirs, dtype):
    assert len(ours) == len(theirs)
    for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        error = float((a.float() - b.float()).abs().max() / b.float().abs().max())
        different = float((a != b).float().mean())
        print(f"\n{at} {list(a.shape)}: {error:.1e}, {different:.2%} differ", end="")
        assert error <= TOLERANCE[dtype], at
        assert different <= DIFFERENT[dtype] or a.numel() <= 1024, at


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", cases.QK_SHAPES, ids=str)
def test_query_and_key_equal_those_of_separate_modules(shape, dtype):
    case = cases.qk_rope(*shape, dtype=dtype)
    agree(case.both(), case.replaced.both(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(cases.ROW, 6144), (1001, 9728), (777, 3072)], ids=str)
def test_swiglu_equals_megatrons(shape, dtype):
    case = cases.swiglu(*shape, dtype=dtype)
    agree(case.both(), case.replaced.both(), dtype)


@pytest.mark.parametrize("shape", [(2048, 151936), (300, 1001)], ids=str)
def test_cross_entropy_equals_megatrons(shape):
    case = cases.cross_entropy(*shape)
    losses, gradient = case.both()
    their_losses, their_gradient = case.replaced.both()
    assert (losses - their_losses).abs().max() <= 2e-6 * their_losses.abs().max()
    agree([gradient], [their_gradient], torch.bfloat16)


def test_gradients_added_in_place_are_nearer_to_fp32():
    """Than a sum of two bf16 gradients of the whole vocabulary."""
    case = cases.weight_gradients(tokens=4096, trained=1000, vocabulary=30000)
    of_states, buffer = (result.clone() for result in case.both())
    other_states, afterwards = case.replaced.both()
    assert torch.equal(of_states, other_states)
    states, weight = case.inputs
    leaf = weight.detach().double().requires_grad_()
    rows = torch.nn.functional.embedding(case.ids, leaf)
    (exact,) = torch.autograd.grad((states.double() @ leaf.t(), rows), leaf, [gradient.double() for gradient in case.gradients])
    ours, theirs = (float((got.double() - exact).norm() / exact.norm()) for got in (buffer, afterwards))
    print(f"\nin place {ours:.1e}, afterwards {theirs:.1e}")
    assert ours < theirs < 1e-2


# a model smaller than A3B, and one whose sizes fill no block
EXPERT_SHAPES = [(1024, 8, 64, 1024, 384), (333, 3, 5, 200, 72)]


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_the_order_of_tokens_by_their_experts_is_that_of_sorting(shape):
    case = cases.expert_order(*shape)
    for ours, theirs in zip(case.both(), case.replaced.both(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_rows_of_experts_and_their_sums_equal_pytorchs(shape):
    case = cases.expert_rows(*shape)
    (picked, summed), (their_rows, their_sums) = case.both(), case.replaced.both()
    assert torch.equal(picked, their_rows)
    agree([summed], [their_sums], torch.bfloat16)


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_weighted_swiglu_equals_megatrons(shape):
    case = cases.expert_swiglu(*shape)
    ours, theirs = case.both(), case.replaced.both()
    agree(ours[:2], theirs[:2], torch.bfloat16)
    # the gradient of a probability: a sum over columns, rounded at the end
    assert (ours[2].float() - theirs[2].float()).abs().max() <= 2**-5 * theirs[2].float().abs().max()


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_gradients_of_experts_are_nearer_to_fp32_than_rounded_ones(shape):
    case = cases.expert_gradients(*shape)
    (ours,), (theirs,) = case.both(), case.replaced.both()
    assert (ours - theirs).norm() <= 2**-7 * theirs.norm()
    # a second time: added
    once = ours.clone()
    assert torch.allclose(case.both()[0], 2 * once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in cases.CASES if name != "expert_gradients"])
def test_a_cuda_graph_is_bitwise_equal_to_eager_kernels(name):
    # autograd accumulates on the stream on which a leaf was first used, and the default stream cannot be captured
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case = cases.CASES[name]()
        one_by_one = [result.detach().clone() for result in case.both()]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            replayed = case.both()
        graph.replay()
        torch.cuda.synchronize()
    for a, b in zip(replayed, one_by_one, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", cases.CASES)
def test_kernels_do_not_synchronize(name):
    case = cases.CASES[name]()
    case.both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_losses_equal_those_without_kernels(tmp_path, monkeypatch):
    """Steps of a small model with heads of 128, replayed as graphs."""
    from tests import tiny
    from tests.gpu.test_cuda_graphs import losses

    folder = tiny.save(tiny.hf_model(7, hidden=256, head_dim=128, heads=4, kv_heads=2, ffn=512, layers=4).bfloat16(), tmp_path)
    ours, replays = losses(folder)
    monkeypatch.setenv(kernels.SWITCH, "none")
    theirs, _ = losses(folder)
    assert replays >= 8
    for (loss, norm), (other, other_norm) in zip(ours, theirs, strict=True):
        print(f"\n{loss} {other}, {norm} {other_norm}", end="")
        assert loss == pytest.approx(other, rel=2e-3) and norm == pytest.approx(other_norm, rel=2e-2)
