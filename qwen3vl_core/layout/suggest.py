"""Suggests layouts: which are valid for a number of GPUs, which of them fit, and which is fastest. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import flops, memory
from qwen3vl_core.layout.memory import StageMemory
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.rules import layout_problems
from qwen3vl_core.options import FinetuneOptions, to_arguments
from qwen3vl_core.sizes import SIZES, Architecture

# card size in GB -> GiB that nvidia-smi shows: H100, H20, H200
CARDS = {80: 79.6, 96: 95.6, 141: 140.4}
# how many layouts a command or a screen lists
SHOWN = 8
PRESET_GPUS = (1, 2, 4, 8)
MOST_GPUS = 1024
# the share of a GPU's memory that a layout may use; the rest stays free, as the need is an estimate
ROOM = 0.95
LAYOUT = ("tp", "pp", "cp", "ep", "etp", "vp", "pp0_layers", "sequence_parallel", "distributed_optimizer", "recompute")


@dataclass(frozen=True)
class Candidate:
    """A valid layout with its memory and time."""

    options: FinetuneOptions
    memory: StageMemory
    """Of the stage that needs the most."""
    seconds: float
    """Of a step."""
    dp: int

    def fits(self, gib: float) -> bool:
        return self.memory.total <= ROOM * gib * GIB

    def values(self) -> dict[str, Any]:
        """The options of the layout, by name."""
        return {name: getattr(self.options, name) for name in LAYOUT}

    def arguments(self) -> list[str]:
        """The options of the layout as command line arguments."""
        return to_arguments(FinetuneOptions(**self.values()))


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _first_stage(a: Architecture, pp: int) -> int | None:
    """Layers of the first stage if `pp` does not divide the layers: at most as many as the others, as it holds the vision tower too,
    but at least the deepstack layers. 0: all stages have the same number; None: there is no valid number."""
    if a.num_layers % pp == 0:
        return 0
    most = a.num_layers // pp
    numbers = [n for n in range(len(a.vision.deepstack_layers), most + 1) if (a.num_layers - n) % (pp - 1) == 0]
    return max(numbers) if numbers else None


def layouts(base: FinetuneOptions, a: Architecture, gpus: int, per_node: int = 8) -> Iterator[FinetuneOptions]:
    """Valid layouts of `base` on `gpus` GPUs: sizes are powers of two, tensor parallelism stays within a machine and comes with
    sequence parallelism, the distributed optimizer is used wherever it splits something; all other options are those of `base`."""
    for tp in _powers(min(per_node, gpus)):
        for pp in _powers(min(gpus // tp, a.num_layers)):
            first = _first_stage(a, pp)
            if first is None:
                continue
            for cp in _powers(gpus // (tp * pp)):
                dp = gpus // (tp * pp * cp)
                if gpus % (tp * pp * cp) or base.global_batch_size % (base.micro_batch_size * dp) or base.seq_length < 4 * cp * tp:
                    continue
                for ep in _powers(min(gpus // pp, a.num_experts)) if a.is_moe else [1]:
                    splits = dp > 1 or base.optimizer_offload > 0
                    for recompute in ("none", "sel", "full"):
                        layout = dataclasses.replace(
                            base, tp=tp, pp=pp, cp=cp, ep=ep, etp=1, vp=1, pp0_layers=first, sequence_parallel=tp > 1,
                            distributed_optimizer=splits, overlap_param_gather=base.overlap_param_gather and splits, recompute=recompute,
                            recompute_layers=0,
                        )  # fmt: skip
                        if next(layout_problems(layout, a, gpus), None) is None:
                            yield layout


def candidate(
    options: FinetuneOptions, a: Architecture, gpus: int, vision_tokens: int | None = None,
    mfu: float = 0.0, peak_tflops: float = flops.PEAK_TFLOPS,
) -> Candidate:  # fmt: skip
    """The memory and time of a valid layout."""
    tokens = memory.default_vision_tokens(options) if vision_tokens is None else vision_tokens
    return Candidate(
        options, memory.fullest(memory.estimate(options, a, gpus, tokens)),
        flops.step_seconds(options, a, gpus, tokens, mfu, peak_tflops), gpus // (options.tp * options.pp * options.cp),
    )  # fmt: skip


def suggest(
    base: FinetuneOptions, a: Architecture, gpus: int, gib: float, *, per_node: int = 8, vision_tokens: int | None = None,
    mfu: float = 0.0, peak_tflops: float = flops.PEAK_TFLOPS,
) -> list[Candidate]:  # fmt: skip
    """Valid layouts, best first: those that fit, by the time of a step, then the others, by the memory they need."""
    candidates = [candidate(o, a, gpus, vision_tokens, mfu, peak_tflops) for o in layouts(base, a, gpus, per_node)]
    return sorted(candidates, key=lambda c: (0, c.seconds, c.memory.total) if c.fits(gib) else (1, c.memory.total, c.seconds))


def gpus_needed(base: FinetuneOptions, a: Architecture, gib: float, *, per_node: int = 8, vision_tokens: int | None = None) -> int | None:
    """The smallest power of two of GPUs on which a layout fits, with a larger global batch if that many GPUs need it; None beyond
    MOST_GPUS."""
    for gpus in _powers(MOST_GPUS):
        step = base.micro_batch_size * gpus
        enlarged = dataclasses.replace(base, global_batch_size=-(-base.global_batch_size // step) * step)
        if any(candidate(o, a, gpus, vision_tokens).fits(gib) for o in layouts(enlarged, a, gpus, per_node)):
            return gpus
    return None


def presets() -> list[dict[str, Any]]:
    """One row for each published size, number of GPUs and card: the fastest layout that fits, or None; sequence length 2048, micro
    batch 1, global batch 8, bf16, nothing frozen."""
    rows = []
    for size in SIZES:
        if size == "tiny":
            continue
        a = published(size)
        for gpus in PRESET_GPUS:
            candidates = suggest(FinetuneOptions(size=size), a, gpus, 0.0)
            for card, gib in CARDS.items():
                fitting = sorted((c for c in candidates if c.fits(gib)), key=lambda c: (c.seconds, c.memory.total))
                best = fitting[0] if fitting else None
                rows.append(
                    {
                        "size": size, "gpus": gpus, "card_gb": card, "options": best.arguments() if best else None,
                        "gib": round(best.memory.total / GIB, 1) if best else None,
                        "least_gib": round(min(c.memory.total for c in candidates) / GIB, 1) if candidates else None,
                    }
                )  # fmt: skip
    return rows
