"""Suggests layouts: which are valid for a number of GPUs, which of them fit, and which is fastest. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import flops, memory
from qwen3vl_core.layout.memory import StageMemory
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.rules import divisors, layout_problems
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
# the gain in time from which a layout of a lighter optimizer is named beside one that fits without
WORTH_IT = 0.05
LAYOUT = ("tp", "pp", "cp", "ep", "etp", "vp", "pp0_layers", "sequence_parallel", "distributed_optimizer", "recompute")
PRECISION = ("main_grads_dtype", "use_precision_aware_optimizer", "exp_avg_dtype", "exp_avg_sq_dtype")
# forms of the optimizer that take less memory and round more, the most exact one first
LIGHTER: tuple[dict[str, Any], ...] = (
    {"main_grads_dtype": "bf16", "use_precision_aware_optimizer": True},
    {"main_grads_dtype": "bf16", "use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"},
)


@dataclass(frozen=True)
class Candidate:
    """A valid layout with its memory and time."""

    options: FinetuneOptions
    memory: StageMemory
    """Of the stage that needs the most."""
    seconds: float
    """Of a step."""
    dp: int
    batch: int = 0
    """The global batch, where it is not the one that was asked for, which the GPUs cannot share."""

    @property
    def price(self) -> str:
        """What its lighter optimizer costs; empty where gradients and moments are in fp32."""
        o, rounded = self.options, []
        if o.main_grads_dtype == "bf16":
            rounded.append("gradients are added up and reduced in bf16")
        if "bf16" in (o.exp_avg_dtype, o.exp_avg_sq_dtype):
            rounded.append("moments are kept in bf16")
        return f"{' and '.join(rounded)}: rounded to 8 bits, so losses differ a little from those of fp32" if rounded else ""

    def fits(self, gib: float) -> bool:
        return self.memory.total <= ROOM * gib * GIB

    def order(self, gib: float) -> tuple[float, ...]:
        """What candidates are sorted by."""
        each = self.seconds / self.options.global_batch_size
        return (0, each, self.memory.total) if self.fits(gib) else (1, self.memory.total, each)

    def values(self) -> dict[str, Any]:
        """The options of the layout, by name."""
        values = {name: getattr(self.options, name) for name in (*LAYOUT, *PRECISION)}
        return values | ({"global_batch_size": self.batch} if self.batch else {})

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
    """Valid layouts of `base` on `gpus` GPUs: sizes divide their number, tensor parallelism stays within a machine and comes with
    sequence parallelism, the distributed optimizer is used wherever it splits something or is asked for; all other options are those of
    `base`. None for more GPUs than any job has."""
    if gpus > limits.GPUS:
        return
    for tp in divisors(gpus):
        if tp > per_node:
            break
        for pp in divisors(gpus // tp):
            if pp > a.num_layers:
                break
            first = _first_stage(a, pp)
            if first is None:
                continue
            for cp in divisors(gpus // (tp * pp)):
                dp = gpus // (tp * pp * cp)
                if base.global_batch_size % (base.micro_batch_size * dp) or base.seq_length < 4 * cp * tp:
                    continue
                for ep in divisors(gpus // pp) if a.is_moe else [1]:
                    splits = dp > 1 or base.optimizer_offload > 0 or base.use_precision_aware_optimizer
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


def candidates(
    base: FinetuneOptions, a: Architecture, gpus: int, *, per_node: int = 8, vision_tokens: int | None = None,
    mfu: float = 0.0, peak_tflops: float = flops.PEAK_TFLOPS,
) -> list[Candidate]:  # fmt: skip
    """Valid layouts: of the global batch of `base`, and of the next larger one that all GPUs can share, where they cannot share it."""
    layouts_tried = [candidate(o, a, gpus, vision_tokens, mfu, peak_tflops) for o in layouts(base, a, gpus, per_node)]
    step = base.micro_batch_size * gpus
    if base.global_batch_size % step:
        larger = -(-base.global_batch_size // step) * step
        known = {tuple(c.values().items()) for c in layouts_tried}
        for o in layouts(dataclasses.replace(base, global_batch_size=larger), a, gpus, per_node):
            other = candidate(o, a, gpus, vision_tokens, mfu, peak_tflops)
            if tuple(other.values().items()) not in known:
                layouts_tried.append(dataclasses.replace(other, batch=larger))
    return layouts_tried


def lighter(base: FinetuneOptions) -> Iterator[FinetuneOptions]:
    """`base` with the forms of the optimizer that take less memory than its own, the most exact one first."""
    if base.precision not in ("bf16", "fp8") or base.optimizer_offload:
        return
    for form in LIGHTER:
        changed = dataclasses.replace(base, **form)
        if changed != base and all(getattr(base, name) in (getattr(FinetuneOptions, name), value) for name, value in form.items()):
            yield changed


def suggest(
    base: FinetuneOptions, a: Architecture, gpus: int, gib: float, *, per_node: int = 8, vision_tokens: int | None = None,
    mfu: float = 0.0, peak_tflops: float = flops.PEAK_TFLOPS,
) -> list[Candidate]:  # fmt: skip
    """Valid layouts, best first: those that fit, by the time of a sample, then the others, by the memory they need. Where none fits, those
    of a lighter optimizer that do come first; `Candidate.price` says what it costs."""
    shared: dict[str, Any] = {"per_node": per_node, "vision_tokens": vision_tokens, "mfu": mfu, "peak_tflops": peak_tflops}
    ranked = sorted(candidates(base, a, gpus, **shared), key=lambda c: c.order(gib))
    if ranked and ranked[0].fits(gib):
        return ranked
    return [*lighter_candidates(base, a, gpus, gib, **shared), *ranked]


def lighter_candidates(base: FinetuneOptions, a: Architecture, gpus: int, gib: float, **shared: Any) -> list[Candidate]:
    """Layouts that fit with the most exact of the lighter optimizers with which one fits, best first."""
    for form in lighter(base):
        if fitting := [c for c in candidates(form, a, gpus, **shared) if c.fits(gib)]:
            return sorted(fitting, key=lambda c: c.order(gib))
    return []


def faster_with_less(
    base: FinetuneOptions, a: Architecture, gpus: int, gib: float, ranked: Sequence[Candidate], **shared: Any
) -> list[Candidate]:
    """If the best of `ranked` fits: the best layout of each lighter optimizer that is faster by WORTH_IT or more than the best of the more
    exact ones."""
    if not ranked or not ranked[0].fits(gib):
        return []
    _, best, _ = ranked[0].order(gib)
    faster = []
    for form in lighter(base):
        fitting = [c for c in candidates(form, a, gpus, **shared) if c.fits(gib)]
        first = min(fitting, key=lambda c: c.order(gib), default=None)
        if first is not None and first.order(gib)[1] <= (1 - WORTH_IT) * best:
            _, best, _ = first.order(gib)
            faster.append(first)
    return faster


def gpus_needed(
    base: FinetuneOptions, a: Architecture, gib: float, asked: int = 1, *, per_node: int = 8, vision_tokens: int | None = None
) -> int | None:
    """The smallest number of GPUs on which a layout fits, among the powers of two and the number that was asked for; with a larger global
    batch if that many GPUs need it; None beyond MOST_GPUS."""
    for gpus in sorted({*_powers(MOST_GPUS), min(asked, MOST_GPUS)}):
        step = base.micro_batch_size * gpus
        enlarged = dataclasses.replace(base, global_batch_size=-(-base.global_batch_size // step) * step)
        if any(candidate(o, a, gpus, vision_tokens).fits(gib) for o in layouts(enlarged, a, gpus, per_node)):
            return gpus
    return None


def presets() -> list[dict[str, Any]]:
    """One row for each published size, number of GPUs and card: the fastest layout that fits, with a lighter optimizer where it takes one,
    or None; sequence length 2048, micro batch 1, global batch 8, bf16, nothing frozen."""
    rows = []
    for size in SIZES:
        if size == "tiny":
            continue
        a = published(size)
        for gpus in PRESET_GPUS:
            base = FinetuneOptions(size=size)
            valid = candidates(base, a, gpus)
            for card, gib in CARDS.items():
                fitting = sorted((c for c in valid if c.fits(gib)), key=lambda c: c.order(gib)) or lighter_candidates(base, a, gpus, gib)
                best = fitting[0] if fitting else None
                rows.append(
                    {
                        "size": size, "gpus": gpus, "card_gb": card, "options": best.arguments() if best else None,
                        "gib": round(best.memory.total / GIB, 1) if best else None,
                        "least_gib": round(min(c.memory.total for c in valid) / GIB, 1) if valid else None,
                    }
                )  # fmt: skip
    return rows
