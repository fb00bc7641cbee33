"""Chooses the next token: greedily, or by sampling with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults decode greedily."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: greedy decoding."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this; 1: from all."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution to sample from: logits [b, vocabulary] -> probabilities [b, vocabulary] in fp32, zero for excluded tokens.

    The order is that of Hugging Face: temperature, then top-k, then top-p of the tokens that top-k keeps. top-p keeps the most likely
    tokens up to and including the one with which their sum reaches it.
    """
    scores = logits.float()
    # relative to the largest: a temperature near 0 then gives 0 and -inf, and never inf - inf
    scores = (scores - scores.amax(-1, keepdim=True)) / sampling.temperature
    vocabulary = scores.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        kept, indices = scores.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        kept, indices = scores.sort(dim=-1, descending=True, stable=True)
    else:
        return scores.softmax(-1)
    kept_probabilities = kept.softmax(-1)
    if sampling.top_p < 1:
        before = kept_probabilities.cumsum(-1) - kept_probabilities
        # the most likely token is kept for any top_p
        before[:, 0] = 0
        kept_probabilities = kept_probabilities.masked_fill(before >= sampling.top_p, 0)
        kept_probabilities = kept_probabilities / kept_probabilities.sum(-1, keepdim=True)
    return torch.zeros_like(scores).scatter_(-1, indices, kept_probabilities)


def choose_tokens(logits: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
    """The next token of each row: logits [b, vocabulary] -> [b].

    draws: one number in [0, 1) for each row; a row's token depends only on its own logits and number, not on
    other rows in the batch. Not used when decoding greedily.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    # in the vocabulary's order: sorted by probability, rounding could swap equally likely tokens and change the result
    cumulative = probabilities(logits, sampling).double().cumsum(-1)
    total = cumulative[:, -1:]
    thresholds = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * total
    thresholds = torch.minimum(thresholds, total.nextafter(torch.zeros_like(total)))
    # the first token whose cumulative probability exceeds the draw: never one with probability 0
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
