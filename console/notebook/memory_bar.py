"""The memory estimate of `qwen3vl plan` as a bar beside the form, and a suggested layout that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as W

from console.forms import plan_here, value_of
from console.notebook.form import field_of
from console.notebook.html import COLOURS, box, escape, say
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import GIB, duration, number
from qwen3vl_core.layout.suggest import ROOM, gpus_needed, suggest
from qwen3vl_core.layout.torchrun_command import gpu_count, process_count
from qwen3vl_core.layout.verdict import Estimate, Verdict, judge, peak_tflops
from qwen3vl_core.options import FinetuneOptions, options_of, shell_line
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem

PARTS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer", "activations": "activations", "vision": "vision",
    "peak_extra": "at peak", "workspace": "outside torch",
}  # fmt: skip
"""Parts of a GPU's memory: names in the estimate -> names in the legend."""
PLANNED = ("gpus", "gpu", "memory")
"""Options of `qwen3vl plan` that have a field beside the bar, to plan for another machine."""


def bar(stage: dict[str, Any], gib: float) -> str:
    """HTML of one GPU's memory as a bar of coloured parts, with a line at the memory that a layout may use."""
    full = max(stage["total"], gib)
    parts, legend = [], []
    for index, (name, title) in enumerate(PARTS.items()):
        if stage[name] <= 0:
            continue
        colour = COLOURS[index % len(COLOURS)]
        style = f"background:{colour};width:{100 * stage[name] / full:.3f}%"
        parts.append(f'<span title="{title} {stage[name]:.2f} GiB" style="{style}"></span>')
        legend.append(f'<span style="white-space:nowrap"><span style="color:{colour}">■</span> {title} {stage[name]:.2f}</span>')
    limit = f'<i style="left:{100 * ROOM * gib / full:.3f}%" title="{ROOM * gib:.1f} GiB: {100 - 100 * ROOM:.0f}% is kept free"></i>'
    return f'<div class="memory">{"".join(parts)}{limit}</div><div>{" &nbsp; ".join(legend)} GiB</div>'


def describe(verdict: Verdict, estimate: Estimate, known: bool) -> str:
    """HTML of the estimate of a valid layout, with the bar of the stage that needs the most. known: whether the GPU's memory is known."""
    stages, card = estimate.stages_gib, round(estimate.memory_gib, 2)
    stage = max(stages, key=lambda s: s["total"])
    stage_text = f", stage {stage['stage'] + 1} of {len(stages)}" if len(stages) > 1 else ""
    line = f"{estimate.peak_gib:.1f} of {card:g} GiB on each GPU{stage_text}, an estimate"
    if not estimate.fits:
        more = verdict.gpus_needed
        line = f"does not fit: {line}; " + (f"{more} GPUs are enough, with the right layout" if more else "no number of GPUs is enough")
    seconds = estimate.step.seconds
    took = (
        f"about {number(seconds, 3)} s a step, {duration(3600 * estimate.hours)} in total" if seconds >= 0.01 else "less than 0.01 s a step"
    )
    after = [f"{took}, at {estimate.step.mfu:.0%} of a GPU's peak", *map(str, (*verdict.cautions, *verdict.notes))]
    if not known:
        after.append("no GPU here, so an 80 GB GPU is assumed; enter another size below")
    about = f'<span class="dim">{escape(" · ".join(after))}</span>'
    return say(line, "good" if estimate.fits else "bad") + box(bar(stage, card) + about)


class MemoryBar(W.VBox):
    """The memory estimate of a finetune, for this machine or for the GPUs that the user enters.

    changed: called when one of its own fields changes. `estimate` returns HTML for `shown` and touches no widget, so that any
    thread may call it.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        declared = {o.name: o for o in options_of(PlanOptions)}
        self.options = [declared[name] for name in PLANNED]
        self.fields = {o.name: field_of(o, "", hint="this machine's", width="230px", label="100px") for o in self.options}
        self.shown = W.HTML()
        self.suggest_button = W.Button(
            description="Suggest a layout", icon="magic", tooltip="Fill the fastest layout that fits into the form",
            layout=W.Layout(width="160px"),
        )  # fmt: skip
        super().__init__(children=[self.shown, W.HBox([*self.fields.values(), self.suggest_button])])
        for field in self.fields.values():
            field.observe(lambda change: changed(), names="value")

    def plan_options(self, options: FinetuneOptions) -> PlanOptions:
        """The GPUs to plan for. Raises RequestError for a field that is not a number."""
        typed = {o.name: value_of(o, self.fields[o.name].value) for o in self.options}
        if not typed["gpus"]:
            try:
                typed["gpus"] = process_count(options)
            except RequestError:  # a problem of the layout, which the form shows
                typed["gpus"] = gpu_count()
        return plan_here(**typed)

    def estimate(self, options: FinetuneOptions) -> tuple[str, tuple[Problem, ...]]:
        """(HTML of the estimate, problems). The HTML is empty if there is no estimate. Blocking; never raises for a bad plan."""
        try:
            plan = self.plan_options(options)
        except RequestError as error:
            return say(str(error), "bad"), ()
        verdict = judge(options, plan)
        if verdict.architecture is None:
            return "", ()  # no model yet, which the form shows
        return (describe(verdict, verdict.estimate, bool(plan.memory or plan.gpu)) if verdict.estimate else ""), verdict.problems

    def suggestion(self, options: FinetuneOptions) -> tuple[dict[str, Any], str]:
        """(options, summary) of the fastest layout that fits. Raises RequestError when there is none."""
        plan = self.plan_options(options)
        verdict = judge(options, plan)
        architecture, gib, gpus = verdict.architecture, verdict.memory_gib, plan.gpus or 1
        if architecture is None:
            raise RequestError(*verdict.problems or (Problem("model-unknown"),))
        ranked = suggest(options, architecture, gpus, gib, vision_tokens=verdict.vision_tokens, peak_tflops=peak_tflops(plan))
        many = f"{gpus} GPU{'s' if gpus > 1 else ''} of {gib:.4g} GiB"
        if not ranked:
            raise RequestError(f"--global-batch-size {options.global_batch_size}: no valid layout on {many}; choose a multiple of {gpus}")
        best = ranked[0]
        if not best.fits(gib):
            more = gpus_needed(options, architecture, gib)
            way = f"use {more} GPUs" if more else "use larger GPUs, or a smaller model"
            raise RequestError(f"no layout fits on {many}: the least is {best.memory.total / GIB:.1f} GiB; {way}")
        words = shell_line(best.arguments()) or "the defaults"
        price = f"; {best.price}" if best.price else ""
        return (
            best.values(),
            f"{words}: {best.memory.total / GIB:.1f} GiB on each of {many}, about {number(best.seconds, 3)} s a step{price}",
        )
