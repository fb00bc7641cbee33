"""Greedy decoding, and sampling with temperature, top-k and top-p, against a simple reference."""

from __future__ import annotations

import math
import random

import pytest
import torch

from qwen3vl_core.caption.sampling import Sampling, choose_tokens, probabilities


def reference(logits: list[float], sampling: Sampling) -> list[float]:
    """Probabilities of one row, computed token by token in pure Python."""
    scaled = [x / sampling.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    largest = max(scaled)
    weights = {i: math.exp(scaled[i] - largest) for i in order}
    total = sum(weights.values())
    kept, before = [], 0.0
    for i in order:
        if before >= sampling.top_p:
            break
        kept.append(i)
        before += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


CASES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.4),
    Sampling(temperature=3.0, top_k=7),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=5000),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=0.7, top_p=0.01),
    Sampling(temperature=1.3, top_k=20, top_p=0.6),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_probabilities_equal_the_reference(sampling):
    logits = torch.randn(6, 151, generator=torch.Generator().manual_seed(3)) * 2
    shares = probabilities(logits, sampling)
    assert shares.dtype is torch.float32
    for row, values in zip(shares, logits.tolist(), strict=True):
        assert torch.allclose(row.double(), torch.tensor(reference(values, sampling), dtype=torch.float64), atol=1e-6)
        assert row.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("sampling", CASES[:6], ids=str)
def test_tokens_are_sampled_in_proportion_to_their_probabilities(sampling):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(4))
    draws = [(i + 0.5) / 4000 for i in range(4000)]
    drawn = choose_tokens(logits.expand(4000, -1), sampling, draws)
    often = torch.bincount(drawn, minlength=40).double() / 4000
    expected = torch.tensor(reference(logits[0].tolist(), sampling))
    assert (often - expected).abs().max() < 1 / 2000
    assert set(drawn.tolist()) <= {i for i, share in enumerate(expected.tolist()) if share > 0}


def test_extreme_random_numbers_sample_allowed_tokens():
    logits = torch.tensor([[-9.0, 4.0, -9.0, 3.0, -9.0]]).expand(2, -1)
    sampling = Sampling(temperature=1.0, top_k=2)
    assert choose_tokens(logits, sampling, [0.0, math.nextafter(1.0, 0.0)]).tolist() == [1, 3]
    # a random number that was rounded to 1
    assert choose_tokens(logits, sampling, [0.0, 1.0]).tolist() == [1, 3]


def test_a_temperature_near_zero_is_greedy():
    logits = torch.randn(4, 50) * 5
    for temperature in (1e-4, 1e-30, 1e-45):
        assert choose_tokens(logits, Sampling(temperature=temperature), [0.0, 0.3, 0.6, 0.999]).equal(logits.argmax(-1))


def test_greedy_decoding_takes_the_most_likely_token():
    logits = torch.randn(5, 33)
    assert choose_tokens(logits, Sampling(), [0.9] * 5).equal(logits.argmax(-1))
    assert choose_tokens(logits, Sampling(temperature=1.0, top_k=1), [0.9] * 5).equal(logits.argmax(-1))


def test_half_precision_logits_are_sampled_in_fp32():
    logits = torch.randn(3, 500).bfloat16()
    sampling = Sampling(temperature=0.8, top_p=0.9)
    assert probabilities(logits, sampling).equal(probabilities(logits.float(), sampling))


def test_a_row_is_sampled_independently_of_the_batch():
    logits = torch.randn(9, 300)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    dice = random.Random(1)
    draws = [dice.random() for _ in range(9)]
    together = choose_tokens(logits, sampling, draws).tolist()
    assert together == [choose_tokens(logits[i : i + 1], sampling, draws[i : i + 1]).item() for i in range(9)]
