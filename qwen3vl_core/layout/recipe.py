"""`qwen3vl recipe`: checks the positional values of the published recipe and translates them to named options.

`recipe_values.py` has the positions and their rules. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import EXIT_DONE, EXIT_REQUEST, RequestError
from qwen3vl_core.files import check_output_file
from qwen3vl_core.formats import GIB, duration
from qwen3vl_core.language import tr
from qwen3vl_core.layout import conversion_recipe
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.recipe_values import FORM, NODE_GPUS, combination_problems, count_problems, order_problems, parse, positions
from qwen3vl_core.layout.suggest import LAYOUT, Candidate, suggest
from qwen3vl_core.layout.torchrun_command import gpu_count
from qwen3vl_core.layout.verdict import DEFAULT_MEMORY, Verdict, judge, peak_tflops
from qwen3vl_core.options import FinetuneOptions, Option, options_of, shell_line, to_arguments
from qwen3vl_core.options.planfile import write_plan
from qwen3vl_core.options.planning import PlanOptions, RecipeOptions
from qwen3vl_core.problems import Problem, written

LISTED = "; see the list below"
# the script reads these beside its values; MP_VP is a number of layers, see `_virtual_stages`
ENVIRONMENT = {"MP_PP0_LAYERS": "pp0_layers", "MP_AC_LAYERS": "recompute_layers", "MP_SFT_PACKING": "packing"}
VIRTUAL = "MP_VP"
# written in the script itself
EVALUATION = {"eval_interval": 1000, "eval_iters": 10}


@dataclass
class Recipe:
    """The values as options, with their problems."""

    values: dict[int, str] = field(default_factory=dict)
    """By position."""
    options: FinetuneOptions | None = None
    output: str | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gpus: int = 0
    """That it was checked for."""
    verdict: Verdict | None = None


def _declared() -> dict[str, Option]:
    return {o.name: o for o in options_of(FinetuneOptions)}


def _translate(v: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Translate, in `v`, the values that the options express in another way. Returns notes on them."""
    notes = []
    if "FL" in v:
        v["FL"] = "flash" if v["FL"] else "fused"
    if "PAD_LEN" in v:
        if environment.get("MP_SFT_PACKING", "").strip().lower() in ("true", "1", "yes", "on"):
            notes.append(f"8 PAD_LEN {v.pop('PAD_LEN')}: not needed with MP_SFT_PACKING, which fills rows with samples")
        else:
            notes.append(
                f"8 PAD_LEN {v['PAD_LEN']}: every row is padded to this many tokens, as in the script; without --pad-length a micro batch "
                "is padded to its own longest row only, which is faster and gives the same loss"
            )
    return notes


def _environment(environment: Mapping[str, str], options: dict[str, Option], values: dict[str, Any], problems: list[Problem]) -> None:
    """Read MP_PP0_LAYERS, MP_AC_LAYERS and MP_SFT_PACKING into `values`, as the script does."""
    if values.get("recompute") == "offload":
        values["recompute_layers"] = 1
    for name, option in ENVIRONMENT.items():
        text = environment.get(name, "").strip()
        if not text or text.lower() in ("false", "0"):
            continue
        if name == "MP_AC_LAYERS" and values.get("recompute") not in ("full", "offload"):
            continue  # the script reads it only with these two
        try:
            values[option] = options[option].parse(text)
        except RequestError as error:
            problems += [_prefixed(problem, f"{name}={text}") for problem in error.problems]


def _virtual_stages(environment: Mapping[str, str], values: dict[str, Any], problems: list[Problem], notes: list[str]) -> None:
    """MP_VP is the layers of a virtual stage: `vp` is how many of them a pipeline stage has."""
    text = environment.get(VIRTUAL, "").strip()
    if not text or text.lower() in ("false", "0"):
        return

    def refuse(rule: str) -> None:
        problems.append(Problem("recipe-value", "vp", text, {"written": f"{VIRTUAL}={text}", "rule": rule, "hint": ""}))

    if not text.isdecimal():
        refuse("must be a whole number from 1, the layers of a virtual pipeline stage")
        return
    size, pp = values.get("size"), values.get("pp", 1)
    if size is None:
        return
    layers = published(size).num_layers
    if layers % (pp * int(text)):
        refuse(f"must divide the {layers} layers of {size} / 11 PP {pp}: it is the layers of a virtual stage")
        return
    values["vp"] = layers // (pp * int(text))
    notes.append(f"{VIRTUAL}={text}: layers of a virtual stage, {layers} / ({pp} x {text}) = {values['vp']} chunks a stage (--vp)")


def size_in(path: str) -> str | None:
    """The published size that a path names, as Qwen3-VL-30B-A3B-Instruct does; None where it names none, or several."""
    words = set(re.findall(r"(?<![0-9A-Za-z.])(A3B|A22B|2B|4B|8B|32B)(?![0-9A-Za-z])", path, re.IGNORECASE))
    named = {word.upper() for word in words}
    return named.pop() if len(named) == 1 else None


def _as_the_script(values: dict[str, Any], v: Mapping[str, Any]) -> Iterator[str]:
    """Set in `values` what the script passes beside its values; gives notes on it."""
    values["overlap_grad_reduce"] = True
    values["overlap_param_gather"] = bool(values.get("distributed_optimizer"))
    if "TRAIN_ITERS" in v and 0 < v.get("LR_WARMUP_ITERS", 0) < v["TRAIN_ITERS"] - v.get("LR_WARMUP_ITERS", 0):
        values["lr_decay_iters"] = v["TRAIN_ITERS"] - v["LR_WARMUP_ITERS"]
        yield f"the script's decay ends after 24 TRAIN_ITERS - 25 LR_WARMUP_ITERS = {values['lr_decay_iters']} steps (--lr-decay-iters)"
    if values.get("valid_data") and "TRAIN_ITERS" in v:
        values |= EVALUATION | {"eval_interval": min(EVALUATION["eval_interval"], v["TRAIN_ITERS"])}
        yield "the script evaluates every 1000 steps and at the end, 10 batches each time"
    named = size_in(str(values.get("load") or ""))
    if named and values.get("size") and named != values["size"]:
        yield f"2 MODEL_SIZE {values['size']}: 23 PRETRAIN_CHECKPOINT_PATH says {named} ({values['load']}); one of the two is wrong"


def _prefixed(problem: Problem, position: str) -> Problem:
    """The same problem, whose message begins with the recipe's position."""
    return dataclasses.replace(problem, rule={**problem.rule, "written": f"{position}: {written(problem)}"})


# (the recipe's own rule, its option) -> the rule of the options or the layout that reports the same problem
SAME: dict[tuple[str, str | None], str] = {
    ("recipe-order", "min_lr"): "min-lr-above-lr", ("recipe-order", "micro_batch_size"): "batch-not-multiple",
    ("recipe-warmup", "lr_warmup_iters"): "warmup-too-long",
    ("recipe-sequence-parallel", "sequence_parallel"): "sequence-parallel-without-tp",
    ("recipe-optimizer-offload", "optimizer_offload"): "optimizer-offload-not-distributed",
}  # fmt: skip


def read(values: list[str], *, gpus: int = 0, environment: Mapping[str, str] | None = None) -> Recipe:
    """Parse a recipe's values, with every problem in them. gpus: of the run; 0: those of this machine, or 8 if it has none."""
    recipe = Recipe()
    form = positions(len(values))
    if form is None:
        recipe.problems = count_problems(values)
        recipe.values = dict(enumerate(values, start=1))
        return recipe
    recipe.values = {p.number: text for p, text in zip(form, values, strict=True)}
    parsed, recipe.problems = parse(form, values)
    if len(form) < len(FORM):
        recipe.notes.append("24 values: 13 ETP and 14 EP, which the published table leaves out, are taken as 1")
    known = bool(gpus or gpu_count())
    count = gpus or gpu_count() or NODE_GPUS
    recipe.problems += [*order_problems(parsed), *combination_problems(parsed, count, known)]
    declared = _declared()
    recipe.notes += _translate(parsed, os.environ if environment is None else environment)
    chosen = {p.option: parsed[p.name] for p in FORM if p.option in declared and p.name in parsed}
    variables = os.environ if environment is None else environment
    _environment(variables, declared, chosen, recipe.problems)
    _virtual_stages(variables, chosen, recipe.problems, recipe.notes)
    recipe.notes += _as_the_script(chosen, parsed)
    recipe.output = parsed.get("OUTPUT_BASEPATH")
    recipe.options = FinetuneOptions(**chosen)
    model = recipe.options.tp * recipe.options.pp * recipe.options.cp
    if recipe.options.env == "dlc" and not gpus:
        count = math.lcm(NODE_GPUS, model)
    elif model > count:
        count = model  # reported already; the other rules are still checked
    size = recipe.options.size
    if size and not (gpus or (known and recipe.options.env == "dsw")):
        recipe.notes.append(f"checked for {count} GPUs; say how many there are with --gpus")
    recipe.gpus = count
    verdict = judge(recipe.options, PlanOptions(), architecture=published(size) if size else None, processes=count, disk=False)
    recipe.verdict = verdict
    reported = {SAME.get((problem.code, problem.option)) for problem in recipe.problems}
    for problem in verdict.problems:
        position = next((p for p in FORM if problem.option and p.option == problem.option), None)
        if problem.code not in reported:
            recipe.problems.append(_prefixed(problem, f"{position.number} {position.name}") if position else problem)
    return recipe


def render(recipe: Recipe) -> str:
    """The printed report."""
    lines = []
    if recipe.problems:
        lines += [
            tr(
                "{count} problems in the recipe:" if len(recipe.problems) > 1 else "{count} problem in the recipe:",
                count=len(recipe.problems),
            )
        ]
        lines += [f"  {problem.shown}{LISTED if problem.code == 'recipe-count' else ''}" for problem in recipe.problems]
    lines += [f"note: {note}" for note in recipe.notes]
    if recipe.problems:
        lines.append("")
        declared = _declared()
        for p in FORM:
            value = recipe.values.get(p.number, "")
            flag = declared[p.option].flag if p.option in declared else ""
            lines.append(f"  {p.number:>2} {p.name:<25} {value or '-':<20} {flag}".rstrip())
        lines += [f"  {n:>2} {'(too many)':<25} {text}" for n, text in recipe.values.items() if n > len(FORM)]
        lines += _that_works(recipe)
    else:
        lines += ["the same finetune, by name:", "", "  " + command(recipe), "", *_estimated(recipe)]
    return "\n".join(lines)


def _estimated(recipe: Recipe) -> list[str]:
    """Memory and time of a valid recipe; a layout that fits, where it does not."""
    estimate = recipe.verdict.estimate if recipe.verdict else None
    if estimate is None or recipe.verdict is None or recipe.options is None:
        return []
    time = duration(3600 * estimate.hours)
    lines = [f"about {estimate.peak_gib:g} of {estimate.memory_gib:g} GiB on the fullest of {recipe.gpus} GPUs, "
             f"{estimate.step.seconds:.1f} s a step, {recipe.options.train_iters} steps in {time}"]  # fmt: skip
    return lines if estimate.fits else [*lines, "it does not fit", *_that_works(recipe)]


def working_layout(recipe: Recipe) -> Candidate | None:
    """The fastest layout that fits the recipe's GPUs, for the size that its path names, else for its own; None where there is none."""
    options = recipe.options
    if options is None or not recipe.gpus:
        return None
    size = size_in(options.load or "") or options.size
    if size is None:
        return None
    base = dataclasses.replace(options, size=size, **{name: getattr(FinetuneOptions, name) for name in LAYOUT})
    base = dataclasses.replace(base, optimizer_offload=0.0, overlap_param_gather=False, vp=1, pp0_layers=0)
    memory = recipe.verdict.memory_gib if recipe.verdict else DEFAULT_MEMORY
    for candidate in suggest(base, published(size), recipe.gpus, memory, peak_tflops=peak_tflops(PlanOptions())):
        if (
            candidate.fits(memory)
            and not judge(candidate.options, architecture=published(size), processes=recipe.gpus, disk=False).problems
        ):
            return candidate
    return None


def _that_works(recipe: Recipe) -> list[str]:
    layout = working_layout(recipe)
    if layout is None or recipe.verdict is None:
        return []
    words = ["qwen3vl", "finetune", *to_arguments(layout.options), *(["--runs", recipe.output] if recipe.output else [])]
    each, memory = layout.memory.total / GIB, recipe.verdict.memory_gib
    return [
        "", f"a layout for {layout.options.size} that works on {recipe.gpus} GPUs: about {each:.1f} of {memory:g} GiB each, "
        f"{layout.seconds:.1f} s a step, {layout.options.train_iters} steps in {duration(layout.seconds * layout.options.train_iters)}",
        *([f"its price: {layout.price}"] if layout.price else []), "", "  " + shell_line(words),
    ]  # fmt: skip


def command(recipe: Recipe) -> str:
    """The `qwen3vl finetune` command with the same options."""
    words = ["qwen3vl", "finetune", *to_arguments(recipe.options)]
    return shell_line(words + (["--runs", recipe.output] if recipe.output else []))


def _run_conversion(values: list[str], options: RecipeOptions) -> int:
    """`run` for the conversion script's values."""
    if options.save:
        raise RequestError("--save: a plan file is of a finetune; leave it out for the values of the conversion script")
    conversion = conversion_recipe.read(values)
    problems, line = [problem.as_json() for problem in conversion.problems], None if conversion.problems else conversion.command
    if options.json:
        print(
            json.dumps(
                {"valid": line is not None, "problems": problems, "notes": conversion.notes, "values": conversion.values, "command": line},
                indent=1,
            )
        )
    else:
        lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the conversion script's values:"] if problems else []
        lines += [f"  {problem.shown}" for problem in conversion.problems] + [f"note: {note}" for note in conversion.notes]
        print("\n".join(lines + (["the same conversion, by name:", "", f"  {line}"] if line else [])))
    return EXIT_REQUEST if problems else EXIT_DONE


def run(values: list[str], options: RecipeOptions) -> int:
    """Print the report. Returns the exit code: 0: valid; 2: it has problems. Raises WorkError when the plan cannot be saved."""
    if len(values) in conversion_recipe.COUNTS:
        return _run_conversion(values, options)
    check_output_file("--save", options.save)
    recipe = read(values, gpus=options.gpus)
    valid = not recipe.problems
    if options.json:
        print(json.dumps({"valid": valid, "problems": [problem.as_json() for problem in recipe.problems],
                          "notes": recipe.notes, "values": recipe.values,
                          "command": command(recipe) if valid else None}, indent=1))  # fmt: skip
    else:
        print(render(recipe))
    if not valid:
        return EXIT_REQUEST
    if options.save:
        comment = f"From a positional recipe. It runs with: qwen3vl finetune --plan {Path(options.save).name}"
        target = write_plan(options.save, recipe.options, comment)
        print(f"plan saved: {target}", file=sys.stderr)
    return EXIT_DONE
