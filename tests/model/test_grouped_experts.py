"""Experts as grouped products with bounds on the device: the outputs and gradients of one expert at a time."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model.experts import GatheringDispatcher, LocalDispatcher, joined, one_block, product
from qwen3vl_core.model.lora import grouped

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import Failure, run_each

HIDDEN, FFN, EXPERTS = 16, 24, 5


def weights(seed: int = 0) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(FFN, HIDDEN, generator=draw)) for _ in range(EXPERTS)]


def routed(seed: int, tokens: int, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(bool routing map, probabilities that are zero elsewhere), both [tokens, experts]."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, EXPERTS, generator=draw)
    chosen = logits.topk(topk, dim=1).indices
    routing_map = torch.zeros(tokens, EXPERTS, dtype=torch.bool).scatter(1, chosen, True)
    return routing_map, torch.softmax(logits, -1) * routing_map


def layer(hidden, routing_map, probs, matrices, topk, dispatcher=None, **options):
    """Each token's output: the sum over its experts of probability x product."""
    dispatcher = dispatcher or LocalDispatcher(topk)
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
    matrices = torch.randn(len(splits), rank, HIDDEN)
    x = torch.randn(sum(splits), HIDDEN)
    weight = torch.randn(sum(splits), rank)
    results = []
    for bounds in (splits, torch.tensor(splits[::-1]).cumsum(0, dtype=torch.int32)):
        reverse = isinstance(bounds, torch.Tensor)
        rows, weights = x.clone().requires_grad_(), matrices.clone().requires_grad_()
        given = torch.cat(rows.split(splits)[::-1]) if reverse else rows
        out = grouped(given, weights, bounds)
        out = torch.cat(out.split(splits[::-1])[::-1]) if reverse else out
        (out * weight).sum().backward()
        results.append((out, rows.grad, weights.grad))
    for of_bounds, of_counts in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(of_bounds, of_counts)


def test_weights_in_the_buffer_of_a_distributed_optimizer_stay_there():
    buffer, size = torch.randn(EXPERTS * FFN * HIDDEN + 8), FFN * HIDDEN
    # the buffer is padded where a bucket ends
    starts = [place * size + (8 if place > 1 else 0) for place in range(EXPERTS)]
    matrices = [torch.nn.Parameter(buffer[start : start + size].view(FFN, HIDDEN)) for start in starts]
    block = joined(matrices)
    assert torch.equal(block, torch.stack(list(matrices)))
    # the optimizer gathers new weights into its buffer
    buffer.add_(1.0)
    assert all(torch.equal(joined(matrices)[i], matrix) and torch.equal(matrix, block[i] + 1) for i, matrix in enumerate(matrices))


SHARED, CHOSEN = 6, 4


def problem(rank: int, tokens: int = 7):
    """(hidden states, routing map, probabilities, gradient of the output) of a rank's tokens; and all experts."""
    draw = torch.Generator().manual_seed(rank)
    logits = torch.randn(tokens, SHARED, generator=draw)
    # a token whose experts are all on one rank, and an expert that nobody chooses
    logits[0, :3] += 10
    logits[:, 4] -= 50
    routing_map = torch.zeros(tokens, SHARED, dtype=torch.bool).scatter(1, logits.topk(CHOSEN, dim=1).indices, True)
    hidden, gradient = (torch.randn(tokens, 1, width, generator=draw) for width in (HIDDEN, FFN))
    draw = torch.Generator().manual_seed(9)
    matrices = [torch.nn.Parameter(torch.randn(FFN, HIDDEN, generator=draw)) for _ in range(SHARED)]
    return hidden.requires_grad_(), routing_map, (torch.softmax(logits, -1) * routing_map).requires_grad_(), gradient, matrices


def on_one_of_two_ranks():
    """(output, gradients of hidden states, probabilities and this rank's experts)."""
    import qwen3vl_core.model  # noqa: F401

    import torch.distributed as dist

    rank = dist.get_rank()
    hidden, routing_map, probs, gradient, matrices = problem(rank)
    experts = range(3 * rank, 3 * rank + 3)
    own = [matrices[expert] for expert in experts]
    out = layer(hidden, routing_map, probs, own, CHOSEN, GatheringDispatcher(CHOSEN, experts, dist.group.WORLD))
    out.backward(gradient)
    return [t.detach().numpy().copy() for t in (out, hidden.grad, probs.grad, *(m.grad for m in own))]


def test_two_ranks_that_gather_tokens_compute_what_one_does():
    ranks = run_each(2, on_one_of_two_ranks, {"gathered": ()})["gathered"]
    assert not isinstance(ranks, Failure), ranks
    of_experts = [torch.zeros(FFN, HIDDEN) for _ in range(SHARED)]
    for rank, found in enumerate(ranks):
        hidden, routing_map, probs, gradient, matrices = problem(rank)
        layer(hidden, routing_map, probs, matrices, CHOSEN).backward(gradient)
        out = layer(hidden, routing_map, probs, matrices, CHOSEN)
        for ours, expected in zip(found[:3], (out, hidden.grad, probs.grad), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected.detach(), rtol=1e-4, atol=1e-5)
        for total, matrix in zip(of_experts, matrices, strict=True):
            total += matrix.grad
    for ours, expected in zip([m for found in ranks for m in found[3:]], of_experts, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-5)
    assert of_experts[4].abs().max() == 0 < of_experts[0].abs().max()
