"""Experts as grouped products with bounds on the device: the outputs and gradients of one expert at a time."""

from __future__ import annotations

from qwen3vl_core.model.experts import LocalDispatcher, joined, one_block, product
from qwen3vl_core.model.lora import grouped

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

HIDDEN, FFN, EXPERTS = 16, 24, 5


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(FFN, HIDDEN, generator=draw)) for _ in range(EXPERTS)]


def routed(seed: int, tokens: int, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(bool routing map, probabilities that are zero elsewhere), both [tokens, experts]."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, EXPERTS, generator=draw)
    chosen = logits.topk(topk, dim=1).indices
    routing_map = torch.zeros(tokens, EXPERTS, dtype=torch.bool).scatter(1, chosen, True)
    return routing_map, torch.softmax(logits, -1) * routing_map


def layer(hidden, routing_map, probs, matrices, topk, **options):
    """Each token's output: the sum over its experts of probability x product."""
    dispatcher = LocalDispatcher(topk)
    rows, chances = dispatcher.dispatch_preprocess(hidden, routing_map, probs)
    rows, ends, chances = dispatcher.dispatch_postprocess(*dispatcher.token_dispatch(rows, chances))
    out = product(rows, ends, matrices[::-1], **options) * chances[:, None]
    combined = dispatcher.token_combine(dispatcher.combine_preprocess(out))
    dispatcher.shape = torch.Size((*hidden.shape[:2], FFN))
    return dispatcher.combine_postprocess(combined)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, EXPERTS))
def test_a_layer_has_the_outputs_and_gradients_of_one_expert_at_a_time(seed, tokens, topk):
    routing_map, probs = routed(seed, tokens, topk)
    hidden = torch.randn(tokens, 1, HIDDEN, generator=torch.Generator().manual_seed(seed + 1))
    results = []
    for grouped_product in (True, False):
        matrices, x, p = weights(), hidden.clone().requires_grad_(), probs.clone().requires_grad_()
        if grouped_product:
            out = layer(x, routing_map, p, matrices, topk)
        else:
            out = sum(F.linear(x, matrix) * (p * routing_map)[:, None, [expert]] for expert, matrix in enumerate(matrices))
        (out * torch.linspace(-1, 1, FFN)).sum().backward()
        results.append([out, x.grad, p.grad * routing_map, *(m.grad if m.grad is not None else torch.zeros(FFN, HIDDEN) for m in matrices)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contiguous", [True, False], ids=["one bucket", "a bucket ends between experts"])
def test_gradients_are_added_to_megatrons_buffers(contiguous):
    routing_map, probs = routed(3, 20, 2)
    hidden = torch.randn(20, 1, HIDDEN)
    matrices = weights()
    layer(hidden, routing_map, probs, matrices, 2).sum().backward()
    expected = [matrix.grad + 1 for matrix in matrices]
    # as Megatron lays them out: the last expert first
    gap = 0 if contiguous else 8
    buffer, size = torch.ones(EXPERTS * FFN * HIDDEN + gap), FFN * HIDDEN
    for place, matrix in enumerate(matrices[::-1]):
        start = place * size + (gap if place > 1 else 0)
        matrix.grad, matrix.main_grad = None, buffer[start : start + size].view(FFN, HIDDEN)
    layer(hidden, routing_map, probs, matrices, 2, in_place=True).sum().backward()
    for matrix, gradient in zip(matrices, expected, strict=True):
        torch.testing.assert_close(matrix.main_grad, gradient)
        assert matrix.grad_added_to_main_grad and matrix.grad is not None


def test_weights_share_memory_after_the_first_product_and_keep_their_values():
    matrices = weights()
    before = [matrix.detach().clone() for matrix in matrices]
    assert one_block(matrices) is None
    block = joined(matrices)
    assert all(torch.equal(matrix, value) for matrix, value in zip(matrices, before, strict=True))
    with torch.no_grad():
        matrices[2].add_(1.0)
    assert torch.equal(block[2], before[2] + 1) and joined(matrices).data_ptr() == block.data_ptr()


@pytest.mark.parametrize("rank", [3, 8])
def test_adapters_of_any_rank_take_bounds_on_the_device(rank):
    splits = [3, 0, 6, 2, 1]
    matrices = [torch.randn(rank, HIDDEN) for _ in splits]
    x = torch.randn(sum(splits), HIDDEN)
    expected = grouped(x, matrices, splits)
    backwards = torch.cat(x.split(splits)[::-1])
    ends = torch.tensor(splits[::-1]).cumsum(0, dtype=torch.int32)
    torch.testing.assert_close(torch.cat(grouped(backwards, matrices, ends).split(splits[::-1])[::-1]), expected)
