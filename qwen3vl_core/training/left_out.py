"""Texts about the samples of a run: those that it could not use, and how evenly the others are dealt to its ranks."""

from __future__ import annotations

from qwen3vl_core.data.errors import REASONS
from qwen3vl_core.data.loader import Loader
from qwen3vl_core.options import FinetuneOptions


def left_out_text(loader: Loader) -> str:
    """`; 3 of 51 samples left out (longer than --seq-length: 3)`; empty where every sample was used. Of this rank's samples."""
    skipped = sum(loader.skipped.values())
    if not skipped:
        return ""
    reasons = ", ".join(f"{REASONS.get(reason, reason)}: {count:,}" for reason, count in loader.skipped.most_common(3))
    return f"; {skipped:,} of {skipped + loader.used:,} samples left out ({reasons})"


def spread_text(loader: Loader, options: FinetuneOptions) -> str:
    """How much the ranks' shares of the last global batch differ; empty with one data-parallel rank, or where nobody asked."""
    if loader.ranks == 1 or not options.balance:
        return ""
    if loader.spread is None:
        return "samples are dealt in the order drawn: in an object store, sizes would cost every rank a request for each of them"
    drawn, dealt = ([f"{share:.2f}" for share in shares] for shares in (loader.spread.drawn, loader.spread.dealt))
    return (
        f"samples are dealt evenly to {loader.ranks} ranks: the rank with the most patches has {dealt[0]} times the mean of the first step "
        f"(in the order drawn {drawn[0]}), that with the most tokens {dealt[1]} times ({drawn[1]})"
    )


def way_to_use(reason: str, options: FinetuneOptions) -> str:
    """What to do about samples that are left out for this reason, a key of data.errors.REASONS."""
    on = "or a higher --max-skip-share to continue without them"
    if reason == "too_long":
        longer = f"a longer --seq-length than {options.seq_length} (qwen3vl inspect DATA --model MODEL shows the lengths)"
        return f"use {longer}, a smaller --max-pixels, --video-max-frames or --max-visual-tokens, {on}"
    if reason in ("video", "tools"):
        return f"take these samples out, or train a model that reads them, {on}"
    return f"correct them and prepare the data again, {on}"
