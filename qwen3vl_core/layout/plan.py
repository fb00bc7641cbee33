"""`qwen3vl plan`: is a finetune valid, what does each GPU hold, does it fit, how long does a step take. Imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.formats import GIB, duration, number, parameter_count
from qwen3vl_core.layout import flops, launch_scripts, memory
from qwen3vl_core.layout.adapters import trained_lines
from qwen3vl_core.layout.gpus import visible
from qwen3vl_core.layout.machine_rules import Machine, machine_faults
from qwen3vl_core.layout.parameters import published, total_parameters
from qwen3vl_core.layout.rules import architecture_of, data_faults, layout_faults
from qwen3vl_core.layout.suggest import CARDS, ROOM, Candidate, gpus_needed, presets, suggest
from qwen3vl_core.layout.torchrun_command import gpu_count
from qwen3vl_core.options import FinetuneOptions, shell_line
from qwen3vl_core.options.planfile import write_plan
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.sizes import Architecture, check_size, size_of

SHOWN = 8
DEFAULT_MEMORY = CARDS[80]


def gpu_memory() -> float | None:
    """GiB of the smallest GPU that a run gets here; None without one."""
    try:
        return min((float(gpu["memory.total"]) for gpu in visible("memory.total")), default=0.0) / 1024 or None
    except (KeyError, ValueError):
        return None


def architecture_for(options: FinetuneOptions) -> Architecture:
    """Of the checkpoint, else of the size. Raises RequestError where neither is given, or they differ."""
    if options.load:
        found = architecture_of(options.load)
        if options.size:
            check_size(options.size, found, options.load)
        return found
    if options.size:
        return published(options.size)
    raise RequestError("--size or --load: one of them is needed to know the model; for example qwen3vl plan --size 4B --gpus 8 --memory 80")


def all_faults(options: FinetuneOptions, architecture: Architecture, gpus: int) -> list[str]:
    """Every fault of a finetune that can be seen before it starts, each once."""
    found = [*options.faults(), *layout_faults(options, architecture, gpus), *data_faults(options)]
    return list(dict.fromkeys(found))


def figures(options: FinetuneOptions, a: Architecture, gpus: int, gib: float, plan: PlanOptions) -> dict[str, Any]:
    """Memory and time of a finetune whose layout is valid; what else is wrong with it does not matter."""
    seen = memory.default_vision_tokens(options) if plan.vision_tokens < 0 else plan.vision_tokens
    stages = memory.estimate(options, a, gpus, seen)
    full = memory.fullest(stages)
    needs = flops.step_flops(options, a, seen)
    seconds = flops.step_seconds(options, a, gpus, seen, plan.mfu, plan.peak_tflops)
    return {
        "layout": launch_scripts.describe(options, gpus), "stages": [s.as_gib() for s in stages], "peak_gib": round(full.total / GIB, 2),
        "fits": full.total <= ROOM * gib * GIB,
        "step": {
            "tflops": round(needs.model / 1e12, 3), "language": round((needs.language + needs.attention) / 1e12, 3),
            "vocabulary": round(needs.vocabulary / 1e12, 3), "vision": round(needs.vision / 1e12, 3),
            "recompute": round(needs.recompute / 1e12, 3), "mfu": plan.mfu, "seconds": round(seconds, 3),
            "tokens_per_second": round(options.global_batch_size * options.seq_length / seconds, 1),
        },
        "hours": round(seconds * options.train_iters / 3600, 3),
    }  # fmt: skip


def report(options: FinetuneOptions, plan: PlanOptions) -> dict[str, Any]:
    """Everything that `qwen3vl plan` says, as JSON holds it."""
    a = architecture_for(options)
    gpus = plan.gpus or options.nproc or gpu_count() or options.tp * options.pp * options.cp
    gib = plan.memory or gpu_memory() or DEFAULT_MEMORY
    if plan.vision_tokens > options.seq_length:
        most = options.seq_length
        raise RequestError(f"--vision-tokens {plan.vision_tokens}: must be at most --seq-length {most}; use {most}")
    seen = memory.default_vision_tokens(options) if plan.vision_tokens < 0 else plan.vision_tokens
    faults = all_faults(options, a, gpus)
    if not plan.gpus:
        # planned for this machine
        faults += machine_faults(options, Machine.here())
    found: dict[str, Any] = {
        "size": size_of(a), "parameters": total_parameters(a), "gpus": gpus, "memory_gib": round(gib, 2), "vision_tokens": seen,
        "faults": faults, "valid": not faults,
    }  # fmt: skip
    if not faults:
        found["trained"] = trained_lines(options, a)
        found |= figures(options, a, gpus, gib, plan)
    if plan.suggest:
        ranked = suggest(options, a, gpus, gib, per_node=plan.gpus_per_node, vision_tokens=seen, mfu=plan.mfu, peak_tflops=plan.peak_tflops)
        found["suggestions"] = [_candidate(c, gib) for c in ranked[:SHOWN]]
    if plan.suggest or not found.get("fits", True):
        found["gpus_needed"] = gpus_needed(options, a, gib, per_node=plan.gpus_per_node, vision_tokens=seen)
    return found


def _candidate(c: Candidate, gib: float) -> dict[str, Any]:
    return {
        "options": c.arguments(), "dp": c.dp, "gib": round(c.memory.total / GIB, 1), "fits": c.fits(gib), "seconds": round(c.seconds, 3),
    }  # fmt: skip


def _stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    columns = ("weights", "gradients", "optimizer", "activations", "vision", "peak_extra", "workspace", "total")
    names = ("stage", "layers", *columns[:5], "at peak", "outside", "total")
    lines = ["GiB on one GPU of each pipeline stage:", "".join(f"{n:>12}" for n in names)]
    for s in stages:
        lines.append(f"{s['stage']:>12}{s['layers']:>12}" + "".join(f"{s[c]:>12.2f}" for c in columns))
    return lines


def render(found: dict[str, Any], options: FinetuneOptions) -> str:
    """The report for a person."""
    name = found["size"] or "own shape"
    lines = [f"{name}: {parameter_count(found['parameters'])} parameters on {found['gpus']} GPU{'s' if found['gpus'] > 1 else ''} "
             f"of {found['memory_gib']:g} GiB"]  # fmt: skip
    if found["faults"]:
        lines += [f"not valid, {len(found['faults'])} fault{'s' if len(found['faults']) > 1 else ''}:"]
        lines += [f"  {fault}" for fault in found["faults"]]
    else:
        lines += ["valid: " + found["layout"], *found["trained"], ""]
        lines += _stage_lines(found["stages"])
        lines += [
            "  (at peak: the loss's logits, or a layer computed again; outside: CUDA context, NCCL, fragmentation)", "",
            f"{'fits' if found['fits'] else 'does not fit'}: {found['peak_gib']:g} of {found['memory_gib']:g} GiB at the fullest, "
            f"{100 - 100 * ROOM:.0f}% kept free; an estimate",
        ]  # fmt: skip
        host = max(s["host"] for s in found["stages"])
        if host:
            lines.append(f"on the host, for each GPU: {host:.1f} GiB of pinned memory")
        step = found["step"]
        lines += [
            f"a step: {step['tflops']:,.1f} TFLOP (language {step['language']:,.1f}, vocabulary {step['vocabulary']:,.1f}, "
            f"vision {step['vision']:,.1f}), computed again {step['recompute']:,.1f}",
            f"about {number(step['seconds'], 3)} s at MFU {step['mfu']:.1%}, {number(step['tokens_per_second'])} tokens/s; "
            f"{options.train_iters} steps: {duration(3600 * found['hours'])}",
            f"counted with {options.seq_length} tokens a row, {found['vision_tokens']} of them pictures (--vision-tokens)",
        ]
    if "suggestions" in found:
        none = f"no valid layout on {found['gpus']} GPUs; change --global-batch-size"
        lines += ["", "layouts, quickest first:" if found["suggestions"] else none]
        for s in found["suggestions"]:
            words = shell_line(s["options"]) or "(the defaults)"
            verdict = "fits" if s["fits"] else "too big"
            lines.append(f"  {s['gib']:>7.1f} GiB {s['seconds']:>9.2f} s/step  {verdict:<8} DP {s['dp']:<3} {words}")
    if found.get("gpus_needed"):
        count = found["gpus_needed"]
        lines.append(f"GPUs of {found['memory_gib']:g} GiB needed: {count} with the right layout (--suggest --gpus {count})")
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


def script(options: FinetuneOptions, plan: PlanOptions, architecture: Architecture) -> str:
    """What `--emit` prints. Raises RequestError for a finetune that could not start."""
    for name in ("load", "train_data"):
        if not getattr(options, name):
            raise RequestError(f"--{name.replace('_', '-')}: required to write a script that runs")
    gpus = plan.gpus or options.nproc or gpu_count() or options.tp * options.pp * options.cp
    for fault in all_faults(options, architecture, gpus):
        raise RequestError(fault)
    whole = launch_scripts.whole_paths(options)
    if plan.emit == "sh":
        return launch_scripts.shell(whole, gpus, plan.gpus_per_node)
    if plan.emit == "slurm":
        return launch_scripts.slurm(whole, gpus, plan.gpus_per_node)
    return launch_scripts.kubernetes(whole, gpus, plan.gpus_per_node, image=plan.image, claim=plan.claim, mount=plan.mount)


def run(options: FinetuneOptions, plan: PlanOptions) -> int:
    """Print the report. 0: valid and it fits; 1: valid and it does not fit; 2: not valid. Raises RequestError, WorkError."""
    if plan.presets:
        rows = presets()
        print(json.dumps(rows, indent=1) if plan.json else preset_table(rows))
        return EXIT_DONE
    if plan.emit:
        print(script(options, plan, architecture_for(options)), end="")
        _save(options, plan, sys.stderr)
        return EXIT_DONE
    found = report(options, plan)
    print(json.dumps(found, indent=1) if plan.json else render(found, options))
    if found["faults"]:
        return EXIT_REQUEST
    _save(options, plan, sys.stderr)
    return EXIT_DONE if found["fits"] else EXIT_FAILED


def _save(options: FinetuneOptions, plan: PlanOptions, say: Any) -> None:
    if plan.save:
        target = write_plan(plan.save, options, f"A finetune. It runs with: qwen3vl finetune --plan {Path(plan.save).name}")
        print(f"plan saved: {target}", file=say)
