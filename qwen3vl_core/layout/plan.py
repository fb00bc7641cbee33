"""`qwen3vl plan`: whether a finetune is valid and fits, what each GPU holds, how long a step takes. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3vl_core import notify
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.files import check_output_file
from qwen3vl_core.formats import GIB, duration, number, parameter_count
from qwen3vl_core.language import tr
from qwen3vl_core.layout import launch_scripts
from qwen3vl_core.layout.suggest import ROOM, SHOWN, Candidate, faster_with_less, gpus_needed, presets, suggest
from qwen3vl_core.layout.verdict import HOST, TOO_BIG, Verdict, judge, peak_tflops
from qwen3vl_core.options import FinetuneOptions, missing_values, option_problems, shell_line
from qwen3vl_core.options.planfile import write_plan
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem


def report(verdict: Verdict, plan: PlanOptions) -> dict[str, Any]:
    """What `qwen3vl plan --json` prints."""
    record = verdict.as_json()
    if plan.suggest and verdict.architecture is not None:
        a, gib = verdict.architecture, verdict.memory_gib
        shared: dict[str, Any] = {"per_node": plan.gpus_per_node, "vision_tokens": verdict.vision_tokens}
        speed: dict[str, Any] = {"mfu": plan.mfu, "peak_tflops": peak_tflops(plan)}
        ranked = suggest(verdict.options, a, verdict.gpus, gib, **shared, **speed)
        record["suggestions"] = [_candidate(c, gib) for c in ranked[:SHOWN]]
        lighter = faster_with_less(verdict.options, a, verdict.gpus, gib, ranked, **shared, **speed)
        record["lighter_suggestions"] = [_candidate(c, gib) for c in lighter]
        record.setdefault("gpus_needed", gpus_needed(verdict.options, a, gib, verdict.gpus, **shared))
    return record


def _candidate(c: Candidate, gib: float) -> dict[str, Any]:
    return {
        "options": c.arguments(), "dp": c.dp, "gib": round(c.memory.total / GIB, 1), "fits": c.fits(gib), "seconds": round(c.seconds, 3),
        "price": c.price,
    }  # fmt: skip


def _candidate_line(s: dict[str, Any]) -> str:
    words, verdict = shell_line(s["options"]) or "(the defaults)", "fits" if s["fits"] else "too large"
    return f"  {s['gib']:>7.1f} GiB {s['seconds']:>9.2f} s/step  {verdict:<8} DP {s['dp']:<3} {words}"


def _stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    columns = ("weights", "gradients", "optimizer", "activations", "vision", "peak_extra", "workspace", "total")
    names = ("stage", "layers", *columns[:5], "at peak", "outside", "total")
    lines = ["GiB on one GPU of each pipeline stage:", "".join(f"{n:>12}" for n in names)]
    for s in stages:
        lines.append(f"{s['stage']:>12}{s['layers']:>12}" + "".join(f"{s[c]:>12.2f}" for c in columns))
    return lines


def _beside(options: FinetuneOptions) -> list[str]:
    """Lines about what works beside the run: messages, and copies of its checkpoints."""
    to = notify.receivers(options.notify, options.notify_command)
    lines = [f"told of its end, of failures, stalls and NaN: {to.shown}"] if to else []
    lines += [f"note: {line}" for line in to.problems]
    if options.mirror:
        which = "each checkpoint" if options.mirror_every == 1 else f"every {options.mirror_every} checkpoints the newest"
        kept = f"the {options.mirror_keep} newest are kept" if options.mirror_keep else "all are kept"
        lines.append(f"{which} is copied to {options.mirror}; {kept}")
    return lines


def render(record: dict[str, Any], options: FinetuneOptions) -> str:
    """The printed report."""
    name = record["size"] or "custom model"
    lines = [f"{name}: {parameter_count(record['parameters'])} parameters on {record['gpus']} GPU{'s' if record['gpus'] > 1 else ''} "
             f"of {record['memory_gib']:g} GiB"]  # fmt: skip
    if record["problems"]:
        count = len(record["problems"])
        lines += [tr("not valid, {count} problems:" if count > 1 else "not valid, {count} problem:", count=count)]
        recorded = [{name: value for name, value in problem.items() if name != "text"} for problem in record["problems"]]
        lines += [f"  {Problem(**problem).shown}" for problem in recorded]
    else:
        lines += ["valid: " + record["layout"], *record["trained"], ""]
        lines += _stage_lines(record["stages"])
        fits = "fits" if record["peak_gib"] <= ROOM * record["memory_gib"] else "does not fit"
        lines += [
            "  (at peak: logits and loss, or a recomputed layer; outside: CUDA context, NCCL, fragmentation)", "",
            f"{fits}: {record['peak_gib']:g} of {record['memory_gib']:g} GiB at its peak, "
            f"{100 - 100 * ROOM:.0f}% kept free; an estimate",
        ]  # fmt: skip
        host = max(s["host"] for s in record["stages"])
        if host:
            lines.append(f"on the host, for each GPU: {host:.1f} GiB of pinned memory")
            lines += [warning["text"] for warning in record["warnings"] if warning["code"] == HOST]
        step = record["step"]
        lines += [
            f"a step: {step['tflops']:,.1f} TFLOP (language {step['language']:,.1f}, vocabulary {step['vocabulary']:,.1f}, "
            f"vision {step['vision']:,.1f}), recomputed {step['recompute']:,.1f}",
            f"about {number(step['seconds'], 3)} s at MFU {step['mfu']:.1%}, {number(step['tokens_per_second'])} tokens/s; "
            f"{options.train_iters} steps: {duration(3600 * record['hours'])}",
            f"micro batches run kernel by kernel ({step['no_cuda_graph']}): Python may set the pace"
            if step["no_cuda_graph"]
            else "forward and backward of a micro batch are replayed as one CUDA graph",
            f"counted with {options.seq_length} tokens a row, {record['vision_tokens']} of them of pictures (--vision-tokens)",
            *(f"warning: {warning['text']}" for warning in record["warnings"] if warning["code"] not in (HOST, TOO_BIG)),
            *(f"note: {note['text']}" for note in record["notes"]),
            *_beside(options),
        ]
    if "suggestions" in record:
        none = f"no valid layout on {record['gpus']} GPUs"
        lines += ["", "layouts, fastest first:" if record["suggestions"] else none]
        lines += [_candidate_line(s) for s in record["suggestions"]]
        if record["lighter_suggestions"]:
            lines += ["faster ones, with a lighter optimizer:", *(_candidate_line(s) for s in record["lighter_suggestions"])]
        priced = {s["price"] for s in (*record["suggestions"], *record["lighter_suggestions"]) if s["price"]}
        lines += [f"  the price of bf16 there: {price}" for price in sorted(priced)]
    if record.get("gpus_needed"):
        count = record["gpus_needed"]
        lines.append(f"GPUs of {record['memory_gib']:g} GiB needed: {count} with the right layout (--suggest --gpus {count})")
    return "\n".join(lines)


def preset_table(rows: list[dict[str, Any]]) -> str:
    """The presets as a Markdown table."""
    lines = ["| size | GPUs | card | GiB needed | layout |", "| --- | --- | --- | --- | --- |"]
    for r in rows:
        if r["options"] is None:
            layout, gib = f"does not fit; the least is {r['least_gib']:g} GiB", "-"
        else:
            layout, gib = shell_line(r["options"]) or "the defaults", f"{r['gib']:.1f}"
        lines.append(f"| {r['size']} | {r['gpus']} | {r['card_gb']} GB | {gib} | {layout} |")
    return "\n".join(lines)


def script(verdict: Verdict, plan: PlanOptions) -> str:
    """The script that `--emit` prints. Raises RequestError for a finetune that could not start."""
    options, gpus = verdict.options, verdict.gpus
    if problems := [*missing_values(options), *verdict.problems]:
        raise RequestError(*problems)
    absolute = launch_scripts.absolute_paths(options)
    if plan.emit == "sh":
        return launch_scripts.shell(absolute, gpus, plan.gpus_per_node)
    if plan.emit == "slurm":
        return launch_scripts.slurm(absolute, gpus, plan.gpus_per_node)
    return launch_scripts.kubernetes(absolute, gpus, plan.gpus_per_node, image=plan.image, claim=plan.claim, mount=plan.mount)


def run(options: FinetuneOptions, plan: PlanOptions, problems: Sequence[Problem] = ()) -> int:
    """Print the report. Returns the exit code: 0: it fits; 1: it does not fit; 2: it is not valid. Raises RequestError, WorkError.

    problems: of values that could not be parsed.
    """
    if plan.presets:
        rows = presets()
        print(json.dumps(rows, indent=1) if plan.json else preset_table(rows))
        return EXIT_DONE
    if not options.load and not options.size:
        # a size that was refused was given
        named = any(problem.option in ("size", "load") for problem in problems)
        raise RequestError(*problems, *(() if named else (Problem("model-unknown"),)), *option_problems(options))
    check_output_file("--save", plan.save)
    verdict = judge(options, plan, problems=problems, cluster=False)
    if plan.emit:
        print(script(verdict, plan), end="")
        _save(options, plan, sys.stderr)
        return EXIT_DONE
    if verdict.architecture is None and not plan.json:
        # only the problems are known
        raise RequestError(*verdict.problems)
    record = report(verdict, plan)
    print(json.dumps(record, indent=1) if plan.json else render(record, options))
    if not verdict.valid:
        return EXIT_REQUEST
    _save(options, plan, sys.stderr)
    return EXIT_DONE if verdict.fits else EXIT_FAILED


def _save(options: FinetuneOptions, plan: PlanOptions, stream: Any) -> None:
    if plan.save:
        target = write_plan(plan.save, options, f"A finetune. It runs with: qwen3vl finetune --plan {Path(plan.save).name}")
        print(f"plan saved: {target}", file=stream)
