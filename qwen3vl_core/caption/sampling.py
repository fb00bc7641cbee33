"""Choosing the next token: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How captions are written. The defaults are greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: greedy decoding."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together hold this share of the probability; 1: from all."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0: from all."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution to draw from: logits [b, vocabulary] -> shares [b, vocabulary] in fp32, each row's sum 1, zero where cut off.

    The order is Hugging Face's: temperature, then top-k, then top-p of what top-k left. top-p keeps tokens from the
    likeliest on until their sum reaches it, the one that reaches it included.
    """
    scores = logits.float()
    # from the largest down: a temperature near 0 then gives 0 and -inf, and never inf - inf
    scores = (scores - scores.amax(-1, keepdim=True)) / sampling.temperature
    vocabulary = scores.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        kept, places = scores.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        kept, places = scores.sort(dim=-1, descending=True, stable=True)
    else:
        return scores.softmax(-1)
    shares = kept.softmax(-1)
    if sampling.top_p < 1:
        before = shares.cumsum(-1) - shares
        # the likeliest stays whatever top_p is
        before[:, 0] = 0
        shares = shares.masked_fill(before >= sampling.top_p, 0)
        shares = shares / shares.sum(-1, keepdim=True)
    return torch.zeros_like(scores).scatter_(-1, places, shares)


def choose_tokens(logits: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
    """The next token of each row: logits [b, vocabulary] -> [b].

    draws: one number in [0, 1) for each row; a row's token depends on its own logits and its own number only, whatever
    other rows stand beside it. Not read when greedy.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    # in the vocabulary's order: sorted by share, rounding could swap neighbours of the same share and change the draw
    cumulative = probabilities(logits, sampling).double().cumsum(-1)
    total = cumulative[:, -1:]
    thresholds = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * total
    thresholds = torch.minimum(thresholds, total.nextafter(torch.zeros_like(total)))
    # the first token whose sum is above the draw: never one with share 0
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
