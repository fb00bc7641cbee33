"""The Triton kernels in Triton's interpreter on a CPU: results and gradients equal those of the modules that they replace.

`tests/gpu/test_kernels.py` compares them on a GPU. The interpreter truncates fp32 to bf16 instead of rounding it, so bf16 is compared
within the bits of a few roundings, and fp16, which it rounds, shows that both sides round in the same places.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from qwen3vl_core.model import kernels

import qwen3vl_core
from tests import tiny

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 4e-2}
# of the numbers, those that may differ at all: a sum in another order rarely crosses a border between two fp16 numbers
DIFFERENT = {torch.float32: 1.0, torch.float16: 2e-3, torch.bfloat16: 1.0}


pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU tests/gpu/test_kernels.py compares them")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "interpret")


def agree(ours, theirs, dtype):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == dtype
        assert (a.float() - b.float()).abs().max() <= TOLERANCE[dtype] * b.float().abs().max()
        assert (a != b).sum() <= max(2, DIFFERENT[dtype] * a.numel())


def rotated(states, angles):
    """In fp32, rounded once, as Transformer Engine's kernel does."""
    wide = states.float()
    first, second = wide.chunk(2, -1)
    return (wide * angles.cos() + torch.cat((-second, first), -1) * angles.sin()).to(states.dtype)


def normed(states, weight, eps):
    wide = states.float()
    return (weight.float() * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))).to(states.dtype)


def separate_modules(qkv, angles, q_weight, k_weight, eps, groups, size):
    """Split, norm and rotation one after the other."""
    length, batch, width = qkv.shape
    heads = width // (groups * size) - 2
    query, key, value = qkv.view(length, batch, groups, heads + 2, size).split((heads, 1, 1), dim=3)
    query, key, value = query.reshape(length, batch, -1, size), key.squeeze(3), value.squeeze(3)
    if q_weight is not None:
        query, key = normed(query, q_weight, eps), normed(key, k_weight, eps)
    return rotated(query, angles), rotated(key, angles), value


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("length", "batch", "groups", "heads", "size", "norm"),
    [
        (37, 1, 2, 2, 128, True), (9, 2, 1, 4, 128, True), (3, 2, 1, 8, 128, True), (2, 1, 1, 16, 128, True), (5, 3, 2, 3, 16, True),
        (13, 1, 2, 1, 64, False), (11, 1, 2, 1, 72, False),
    ],
)  # fmt: skip
def test_query_and_key_are_normalized_and_rotated_as_by_separate_modules(dtype, length, batch, groups, heads, size, norm):
    from qwen3vl_core.model.kernels.qk_rope import qk_rope

    torch.manual_seed(0)
    qkv = torch.randn(length, batch, groups * (heads + 2) * size).to(dtype).requires_grad_()
    angles = torch.rand(length, batch if batch == 2 else 1, 1, size // 2) * 5000
    angles = torch.cat((angles, angles), -1)
    weights = [(1 + torch.randn(size) / 5).to(dtype).requires_grad_() if norm else None for _ in range(2)]
    ours = qk_rope(qkv, angles, *weights, eps=1e-6, groups=groups, size=size)
    theirs = separate_modules(qkv, angles, *weights, eps=1e-6, groups=groups, size=size)
    agree(ours, theirs, dtype)
    gradients = [torch.randn(output.shape).to(dtype) for output in ours]
    inputs = [qkv, *(weight for weight in weights if weight is not None)]
    agree(torch.autograd.grad(ours, inputs, gradients), torch.autograd.grad(theirs, inputs, gradients), dtype)


def test_partial_gradients_of_many_tokens_are_summed(monkeypatch):
    from qwen3vl_core.model.kernels import qk_rope as module

    monkeypatch.setattr(module, "MOST_PROGRAMS", 3)
    torch.manual_seed(0)
    qkv, angles = torch.randn(83, 1, 4 * 16, requires_grad=True), torch.rand(83, 1, 1, 8).repeat(1, 1, 1, 2)
    weights = [torch.randn(16, requires_grad=True) for _ in range(2)]
    outputs = module.qk_rope(qkv, angles, *weights, eps=1e-6, groups=1, size=16)
    expected = separate_modules(qkv, angles, *weights, eps=1e-6, groups=1, size=16)
    gradients = [torch.randn(output.shape) for output in outputs]
    inputs = [qkv, *weights]
    agree(torch.autograd.grad(outputs, inputs, gradients), torch.autograd.grad(expected, inputs, gradients), torch.float32)


def test_shapes_that_do_not_fit_are_refused():
    from qwen3vl_core.model.kernels.qk_rope import qk_rope

    weight = torch.ones(16)
    with pytest.raises(ValueError, match="a projection of width 60 does not hold 1 groups of heads of 16"):
        qk_rope(torch.zeros(3, 1, 60), torch.zeros(3, 1, 1, 16), weight, weight, eps=1e-6, groups=1, size=16)
    with pytest.raises(ValueError, match=r"angles \[2, 1, 1, 16\] do not fit \[3, 1 or 1, 1, 16\]"):
        qk_rope(torch.zeros(3, 1, 64), torch.zeros(2, 1, 1, 16), weight, weight, eps=1e-6, groups=1, size=16)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(5, 1, 96), (3, 2, 2 * 1500), (0, 1, 8)], ids=str)
def test_swiglu_and_its_gradient_equal_fp32_rounded_once(dtype, shape):
    from qwen3vl_core.model.kernels.swiglu import swiglu

    torch.manual_seed(0)
    gate_up = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    gate, up = gate_up.float().chunk(2, -1)
    ours, theirs = swiglu(gate_up), (torch.nn.functional.silu(gate) * up).to(dtype)
    gradient = torch.randn(ours.shape).to(dtype)
    results = [(out, *torch.autograd.grad(out, gate_up, gradient)) for out in (ours, theirs)]
    if gate_up.numel():
        agree(*results, dtype=dtype)
    assert results[0][1].shape == gate_up.shape


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block", [8192, 64])
def test_cross_entropy_and_its_gradient_equal_fp32_rounded_once(monkeypatch, dtype, block):
    from qwen3vl_core.model.kernels import cross_entropy as module

    monkeypatch.setattr(module, "BLOCK", block)
    torch.manual_seed(0)
    logits = (5 * torch.randn(7, 2, 200)).to(dtype)
    # far from zero, where exponentials alone overflow
    logits[0] += 300
    logits.requires_grad_()
    targets = torch.randint(0, 200, (2, 7)).t()
    ours = module.cross_entropy(logits, targets)
    theirs = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(7, 2)
    assert ours.dtype == torch.float32 and (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() + 1e-5
    gradient = torch.randn(7, 2)
    agree(torch.autograd.grad(ours, logits, gradient), torch.autograd.grad(theirs, logits, gradient), dtype)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # heads of different numbers, a head of the vision tower that is no power of two
    return qwen3vl_core.load(tiny.save(tiny.hf_model(3, heads=6, layers=3, vision_layers=3), tmp_path_factory.mktemp("hf")))


def logits_and_gradients(model, inputs):
    model.zero_grad()
    logits = model(**inputs)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_model_computes_the_same_with_kernels_and_without(model, monkeypatch, packed):
    from qwen3vl_core.model.kernels import qk_rope, swiglu

    inputs = tiny.BATCHES["two rows with different pictures"]().inputs()
    if packed:
        rows = [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        ends = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        inputs = inputs | {"input_ids": torch.cat(rows)[None], "cu_seqlens": ends}
        del inputs["attention_mask"]
    calls = []
    for module, name in ((qk_rope, "qk_rope"), (swiglu, "swiglu")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, original=original, **more: calls.append(name) or original(*args, **more))
    ours, our_gradients = logits_and_gradients(model, inputs)
    # three layers of each tower
    assert sorted(calls) == ["qk_rope"] * 6 + ["swiglu"] * 3
    monkeypatch.setenv(kernels.SWITCH, "none")
    theirs, their_gradients = logits_and_gradients(model, inputs)
    assert len(calls) == 9
    real = inputs["attention_mask"].bool() if not packed else slice(None)
    assert (ours - theirs)[real].abs().max() < 1e-5
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_a_model_has_the_losses_of_megatrons_function(model, monkeypatch):
    inputs = tiny.BATCHES["two rows with different pictures"]().inputs()
    labels = inputs["input_ids"].roll(-1, 1)
    ours = model(**inputs, labels=labels)
    monkeypatch.setenv(kernels.SWITCH, "interpret,-cross_entropy")
    theirs = model(**inputs, labels=labels)
    real = inputs["attention_mask"].bool()
    assert ours.shape == theirs.shape == labels.shape and ours.dtype == theirs.dtype
    assert (ours - theirs)[real].abs().max() < 1e-5


def test_generation_with_a_cache_keeps_megatrons_modules(model):
    inputs = tiny.BATCHES["one picture"]().inputs()
    pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw")}
    decoder = model.cached_decoder(64)
    with torch.no_grad():
        prompt = decoder.prefill(inputs["input_ids"], **pixels)
        token = prompt.argmax(-1)
        after = decoder.decode(token)
        whole = model(torch.cat((inputs["input_ids"], token[:, None]), 1), **pixels)
    assert (whole[:, -2] - prompt).abs().max() < 1e-5 and (whole[:, -1] - after).abs().max() < 1e-5


def test_the_switch_names_kernels(monkeypatch):
    here = torch.zeros(1)
    assert all(kernels.enabled(name, here) for name in kernels.KERNELS)
    monkeypatch.setenv(kernels.SWITCH, "interpret,-swiglu")
    assert not kernels.enabled("swiglu", here) and kernels.enabled("qk_rope", here)
    monkeypatch.setenv(kernels.SWITCH, "interpret none")
    assert not kernels.enabled("swiglu", here)
    monkeypatch.setenv(kernels.SWITCH, "swiglu")
    with pytest.raises(ValueError, match="QWEN3VL_KERNELS: 'swiglu' is not a switch; choose from none, interpret, -qk_rope, -swiglu"):
        kernels.enabled("swiglu", here)
    monkeypatch.delenv(kernels.SWITCH)
    assert not kernels.enabled("qk_rope", here)


# rows of five experts, one without any, and two rows that no expert uses
ENDS, USED, ROWS = (3, 3, 9, 10, 14), 14, 16


def given(*shape, dtype, scale=1.0):
    return (torch.randn(*shape) * scale).to(dtype)


def used(rows):
    return rows[:USED]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [16, 40, 2048 + 8])
def test_rows_of_experts_are_picked_and_summed(dtype, columns):
    from qwen3vl_core.model.kernels.expert_rows import pick, sums

    torch.manual_seed(0)
    tokens = given(7, columns, dtype=dtype)
    token, ends = torch.randint(0, 7, (ROWS,)), torch.tensor(ENDS, dtype=torch.int32)
    assert torch.equal(used(pick(tokens, token, ends)), used(tokens[token]))
    rows, places = given(ROWS, columns, dtype=dtype), torch.randint(0, USED, (7, 4))
    places[2, 1:] = places[5] = -1
    rows[USED:] = float("nan")
    expected = torch.stack([sum((rows[p].float() for p in of_token if p >= 0), torch.zeros(columns)) for of_token in places]).to(dtype)
    agree([sums(rows, places)], [expected], dtype)
    assert sums(rows, places)[5].abs().max() == 0
    assert pick(tokens, token[:0], ends).shape == (0, columns) == sums(rows, places[:0]).shape


@pytest.mark.parametrize("weights_dtype", [torch.float32, None], ids=["fp32 weights", "weights as the rows"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [16, 24, 768])
def test_swiglu_of_experts_is_weighted(dtype, columns, weights_dtype):
    from qwen3vl_core.model.kernels.expert_swiglu import expert_swiglu

    torch.manual_seed(0)
    gate_up, ends = given(ROWS, 2 * columns, dtype=dtype), torch.tensor(ENDS, dtype=torch.int32)
    weights, gradient = torch.rand(ROWS).to(weights_dtype or dtype), given(ROWS, columns, dtype=dtype)
    results = []
    for kernel in (True, False):
        x, w = gate_up.clone().requires_grad_(), weights.clone().requires_grad_()
        if kernel:
            out = expert_swiglu(x, w, ends)
        else:
            gate, up = x.float().chunk(2, -1)
            out = (torch.nn.functional.silu(gate) * up * w.float()[:, None]).to(dtype)
        spoiled = gradient.clone()
        spoiled[USED:] = float("nan") if kernel else 0.0
        out.backward(spoiled)
        results.append([used(out.detach()), used(x.grad), w.grad])
    (ours, of_rows, of_weights), (expected, expected_rows, expected_weights) = results
    agree([ours, of_rows], [expected, expected_rows], dtype)
    assert of_weights.dtype == weights.dtype and of_weights[USED:].abs().max() == 0
    torch.testing.assert_close(of_weights, expected_weights, rtol=2e-2 if weights_dtype is None else TOLERANCE[dtype] + 1e-5, atol=0.1)


@pytest.mark.parametrize(("out", "into"), [(128, 256), (72, 136)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gradients_of_experts_are_added_in_fp32(dtype, out, into):
    from qwen3vl_core.model.kernels.expert_gradients import add_gradients

    torch.manual_seed(0)
    # more rows than a block of them
    ends = torch.tensor([0, 70, 70, 75, 203], dtype=torch.int32)
    gradient, x = given(210, out, dtype=dtype), given(210, into, dtype=dtype)
    gradient[203:] = x[203:] = float("nan")
    buffer = torch.randn(5, out, into)
    expected = buffer.clone()
    for expert, (start, end) in enumerate([(0, 0), (0, 70), (70, 70), (70, 75), (75, 203)]):
        expected[expert] += gradient[start:end].float().t() @ x[start:end].float()
    unchanged = buffer[[0, 2]].clone()
    add_gradients(gradient, x, ends, buffer)
    torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(buffer[[0, 2]], unchanged)


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(37, 8, 3), (5, 5, 5), (16, 6, 1)])
@pytest.mark.parametrize("gathered", [False, True], ids=["every expert", "half of them"])
def test_the_order_of_tokens_by_their_experts_is_that_of_sorting(monkeypatch, tokens, experts, chosen, gathered):
    from qwen3vl_core.model import experts as module

    torch.manual_seed(0)
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool).scatter(1, torch.rand(tokens, experts).topk(chosen, dim=1).indices, True)
    probs, states = torch.rand(tokens, experts), torch.randn(tokens, 8)
    own = slice(experts // 2, experts) if gathered else slice(0, experts)
    results = []
    for switch in ("interpret", "none"):
        monkeypatch.setenv(kernels.SWITCH, switch)
        p = probs.clone().requires_grad_()
        dispatcher = module.GatheringDispatcher(chosen, range(own.start, own.stop), None) if gathered else module.LocalDispatcher(chosen)
        rows, chances = dispatcher._sorted(states, routing_map, p, own)
        used = int(dispatcher.ends[-1])
        gradient = torch.linspace(1, 2, len(chances))
        gradient[used:] = float("nan") if switch == "interpret" else 0.0
        chances.backward(gradient)
        results.append([rows[:used], chances[:used].detach(), dispatcher.token[:used], dispatcher.places, dispatcher.ends, p.grad])
    assert used == int(routing_map[:, own].sum())
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


def test_a_layer_of_experts_with_its_kernels_equals_one_without(monkeypatch):
    """Sorted rows, grouped products, weighted SwiGLU, sums, and gradients in Megatron's buffers."""
    from qwen3vl_core.model.experts import LocalDispatcher, product
    from qwen3vl_core.model.kernels.expert_swiglu import expert_swiglu

    from tests.model.test_grouped_experts import routed

    experts, hidden, ffn, chosen, count = 5, 64, 64, 2, 12
    torch.manual_seed(0)
    states, into, out = torch.randn(count, 1, hidden), torch.randn(experts, 2 * ffn, hidden) / 8, torch.randn(experts, hidden, ffn) / 8
    routing_map, probs = routed(3, count, chosen)
    results = []
    for switch in ("interpret", "none"):
        monkeypatch.setenv(kernels.SWITCH, switch)
        x, p = states.clone().requires_grad_(), probs.clone().requires_grad_()
        blocks = [torch.ones_like(into), torch.ones_like(out)]
        matrices: list[list[Any]] = [[torch.nn.Parameter(matrix.clone()) for matrix in weights] for weights in (into, out)]
        for block, weights in zip(blocks, matrices, strict=True):
            for matrix, buffer in zip(weights, block.unbind(0), strict=True):
                matrix.main_grad = buffer
        dispatcher = LocalDispatcher(chosen)
        rows, chances = dispatcher.dispatch_preprocess(x, routing_map, p)
        rows = product(rows, dispatcher.ends, matrices[0], in_place=True)
        if switch == "interpret":
            rows = expert_swiglu(rows, chances, dispatcher.ends)
        else:
            gate, up = rows.chunk(2, -1)
            rows = torch.nn.functional.silu(gate) * up * chances[:, None]
        rows = product(rows, dispatcher.ends, matrices[1], in_place=True)
        result = dispatcher.combine_postprocess(dispatcher.combine_preprocess(rows))
        result.square().sum().backward()
        results.append([result.detach(), x.grad, p.grad, *blocks])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
