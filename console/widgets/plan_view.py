"""The plan next to its form: size and layout, problems with their fixes, memory, time. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.content import Content

from console.fixes import Fix, fixes
from console.formatting import one_line, parameters_text
from qwen3vl_core.cells import width as cell_width
from qwen3vl_core.formats import duration, number
from qwen3vl_core.language import tr
from qwen3vl_core.layout.parameters import total_parameters
from qwen3vl_core.layout.verdict import Estimate, Verdict
from qwen3vl_core.options import Option
from qwen3vl_core.problems import Problem
from qwen3vl_core.sizes import size_of

KINDS = (
    ("weights", "weights"), ("gradients", "gradients"), ("optimizer", "optimizer"), ("activations", "activations"), ("vision", "vision"),
    ("peak_extra", "at peak"), ("workspace", "outside"),
)  # fmt: skip
"""Parts of a GPU's memory in the plan's report, and their names on the screen."""
SHADES = ("█", "▓", "█", "▓", "█", "▓", "▒")
"""Characters of the bars; neighbours differ without colour, too."""
MOST_STAGES = 4


def glance(options: Any, verdict: Verdict | None) -> Content:
    """`8B · 8.77 billion parameters · bf16 / TP 2 · PP 1 · CP 1 · DP 2 = 4 GPUs`: two lines."""
    architecture, gpus = (verdict.architecture, verdict.gpus) if verdict is not None else (None, 0)
    size = (size_of(architecture) if architecture is not None else None) or options.size or tr("size of the checkpoint")
    parts = [(str(size), "bold $text-primary")]
    if architecture is not None:
        parts.append(("  " + tr("{count} parameters", count=parameters_text(total_parameters(architecture))), ""))
    parts.append((f"  {options.precision}", "bold"))
    if options.freeze:
        parts.append(("  " + tr("frozen: {parts}", parts=options.freeze), "$muted"))
    sizes = [("TP", options.tp), ("PP", options.pp), ("CP", options.cp), *([("EP", options.ep)] if options.ep > 1 else [])]
    model = options.tp * options.pp * options.cp
    layout: list[tuple[str, str]] = []
    for name, value in sizes:
        layout += [(f"{name} ", "$muted"), (f"{value}  ", "bold" if value > 1 else "")]
    if gpus and gpus % model == 0:
        count = "  = " + tr("{count} processes" if gpus > 1 else "{count} process", count=gpus)
        layout += [("DP ", "$muted"), (f"{gpus // model}", "bold" if gpus > model else ""), (count, "$muted")]
    if options.lora_rank:
        layout.append(("  " + tr("LoRA rank {rank}", rank=options.lora_rank), ""))
    for name, on in (("SP", options.sequence_parallel), ("ZeRO-1", options.distributed_optimizer), (tr("packed"), options.packing)):
        if on:
            layout.append((f"  {name}", ""))
    if options.recompute != "none":
        layout.append(("  " + tr("recompute {how}", how=options.recompute), ""))
    tokens, steps = tr("{count} tokens  lr ", count=options.seq_length), tr("{count:,} steps", count=options.train_iters)
    batch = [
        (tr("global batch "), "$muted"), (f"{options.global_batch_size}", ""), (tr(" of micro "), "$muted"),
        (f"{options.micro_batch_size}", ""),
        (f"  {tokens}", "$muted"), (f"{options.lr:g}", ""), (f"  {steps}", "$muted"),
    ]  # fmt: skip
    return Content("\n").join([Content.assemble(*parts), Content.assemble(*layout), Content.assemble(*batch)])


def problem_lines(
    problems: Sequence[Problem], note: str, options: Mapping[str, Option], fix_key: str, most: int = 5, advice: Sequence[Problem] = ()
) -> Content:
    """All problems with their fixes; without problems the note, empty while it is checked, and what would be better."""
    if not problems and not note:
        return Content(tr("… checking disk and machine")).stylize("$muted")
    if not problems:
        start = Content.assemble(("✓ ", "$text-success"), (note, "$text-success"))
        key = ("   " + tr("{key} applies it", key=fix_key), "$text-primary")
        offers = [(better.shown_rule, fixes(better, options)) for better in advice]
        more = [Content.assemble(f"· {gain}: {remedies[0]}", key) for gain, remedies in offers if remedies]
        return Content("\n").join([start, *more])
    lines = []
    offered = False
    for problem in problems[:most]:
        lines.append(Content(f"✗ {problem.shown}").stylize("$text-error"))
        ways = fixes(problem, options)
        if ways and not offered:
            offered = True
            lines.append(
                Content.assemble(
                    (tr("  fix: "), "$muted"), (str(ways[0]), "bold"), ("   " + tr("{key} applies it", key=fix_key), "$text-primary")
                )
            )
        elif ways:
            lines.append(Content.assemble((tr("  fix: "), "$muted"), (str(ways[0]), "")))
    if len(problems) > most:
        lines.append(Content(tr("and {count} more", count=len(problems) - most)).stylize("$muted"))
    return Content("\n").join(lines)


def first_fix(problems: Sequence[Problem], options: Mapping[str, Option]) -> Fix | None:
    """The fix that the key applies; None if no problem has one."""
    return next((ways[0] for problem in problems if (ways := fixes(problem, options))), None)


def memory(estimate: Estimate, gpus_needed: int | None, width: int, here: bool, *, pending: bool = False) -> Content:
    """One bar per pipeline stage, divided by kind of memory; then the legend with GiB, and the time of a step.

    gpus_needed: if it does not fit. width: columns. here: whether the memory is that of this machine's GPU, not an assumed one.
    pending: it is the estimate of the options before the last change.
    """
    stages, card = estimate.stages_gib, round(estimate.memory_gib, 2)
    scale = max(card, *(stage["total"] for stage in stages))
    room = max(width - 22, 8)
    lines = []
    for stage in stages[:MOST_STAGES]:
        name = tr("stage {number} ", number=stage["stage"]) if len(stages) > 1 else ""
        bar: list[Any] = [(name, "$muted")]
        cells, drawn, total = room - cell_width(name), 0, 0.0
        for index, (key, _) in enumerate(KINDS):
            total += stage[key]
            end = round(total / scale * cells)
            bar.append((SHADES[index] * (end - drawn), f"$line-{index % 6}"))
            drawn = end
        limit = round(card / scale * cells)
        bar.append(("·" * max(limit - drawn, 0), "$faint"))
        over = stage["total"] > card
        tight = stage["total"] > 0.95 * card
        bar.append(
            (
                " " + tr("{peak} of {memory} GiB", peak=f"{stage['total']:.1f}", memory=f"{card:g}"),
                "$text-error bold" if over else "$text-warning" if tight else "",
            )
        )
        lines.append(Content.assemble(*bar))
    if len(stages) > MOST_STAGES:
        lines.append(
            Content(
                tr("and {count} more stages, none fuller than {peak} GiB", count=len(stages) - MOST_STAGES, peak=f"{estimate.peak_gib:g}")
            ).stylize("$muted")
        )
    fullest = max(stages, key=lambda stage: stage["total"])
    legend: list[Content] = []
    row: list[Content] = []
    used = 0
    for index, (key, name) in enumerate(KINDS):
        text = f"{tr(name)} {fullest[key]:.1f}"
        if used + cell_width(text) + 4 > width and row:
            legend.append(Content("  ").join(row))
            row, used = [], 0
        row.append(Content.assemble((SHADES[index], f"$line-{index % 6}"), (f" {text}", "$muted")))
        used += cell_width(text) + 4
    legend.append(Content("  ").join(row))
    if pending:
        return Content("\n").join([*lines, *legend, Content(tr("… estimating again"))]).stylize("$muted")
    fits = Content(tr("✓ fits" if estimate.fits else "✗ does not fit")).stylize("$text-success" if estimate.fits else "$text-error")
    said = tr("an estimate, 5% kept free") + (
        "" if here else tr("; no GPU here: estimated for a GPU with {memory} GiB", memory=f"{card:g}")
    )
    if not estimate.fits:
        said = tr("p shows layouts that fit")
        if gpus_needed:
            said = tr("{count} such GPUs would be enough; p shows the layouts", count=gpus_needed)
    step = estimate.step
    time = Content.assemble(
        (tr("about "), "$muted"), (f"{number(step.seconds, 3)} s", ""), (tr(" a step at MFU "), "$muted"), (f"{step.mfu:.0%}", "$muted"),
        (f"  {number(step.tokens_per_second, 3)} tokens/s  " + tr("all steps "), "$muted"), (duration(estimate.hours * 3600), ""),
    )  # fmt: skip
    fits += Content("  " + one_line(said, max(width - 18, 10))).stylize("$muted")
    return Content("\n").join([*lines, *legend, fits, *([time] if here else [])])
