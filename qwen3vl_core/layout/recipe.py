"""`qwen3vl recipe`: the published recipe's positional values, read, explained and said again as named options.

The script takes 26 values; the table published beside it lists 24, for it leaves out ETP and EP (13 and 14), which the
example of the same page passes. Both forms are read. Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core.errors import EXIT_DONE, EXIT_REQUEST, RequestError
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.rules import layout_faults
from qwen3vl_core.layout.torchrun_command import gpu_count
from qwen3vl_core.options import FinetuneOptions, Option, options_of, shell_line, to_arguments
from qwen3vl_core.options.planfile import write_plan
from qwen3vl_core.options.planning import RecipeOptions
from qwen3vl_core.sizes import SIZES

LEFT_OUT = (13, 14)
NODE_GPUS = 8
# of other positions, so no paths
WORDS = ("true", "false", "dsw", "dlc", "bf16", "fp16", "fp8", "fp32", "sel", "full", "offload", "none")


@dataclass(frozen=True)
class Position:
    """One value of the positional form."""

    number: int
    name: str
    kind: str
    """env, size, int, count (a whole number, 0 too), float, precision, bool, recompute, share or path."""
    option: str
    """The option that says the same; empty where none does."""


FORM = tuple(
    Position(n, *row)
    for n, row in enumerate(
        [
            ("ENV", "env", "env"), ("MODEL_SIZE", "size", "size"), ("BATCH_SIZE", "int", "micro_batch_size"),
            ("GLOBAL_BATCH_SIZE", "int", "global_batch_size"), ("LR", "float", "lr"), ("MIN_LR", "float", "min_lr"),
            ("SEQ_LEN", "int", "seq_length"), ("PAD_LEN", "int", "pad_length"), ("PR", "precision", "precision"), ("TP", "int", "tp"),
            ("PP", "int", "pp"), ("CP", "int", "cp"), ("ETP", "int", "etp"), ("EP", "int", "ep"), ("SP", "bool", "sequence_parallel"),
            ("DO", "bool", "distributed_optimizer"), ("FL", "bool", "attention"), ("AC", "recompute", "recompute"),
            ("OPTIMIZER_OFFLOAD", "share", "optimizer_offload"), ("SAVE_INTERVAL", "count", "save_interval"),
            ("DATASET_PATH", "path", "train_data"), ("VALID_DATASET_PATH", "path", "valid_data"),
            ("PRETRAIN_CHECKPOINT_PATH", "path", "load"), ("TRAIN_ITERS", "int", "train_iters"),
            ("LR_WARMUP_ITERS", "count", "lr_warmup_iters"), ("OUTPUT_BASEPATH", "path", ""),
        ],
        start=1,
    )
)  # fmt: skip
SHORT_FORM = tuple(p for p in FORM if p.number not in LEFT_OUT)
RULES = {
    "env": "must be dsw or dlc", "size": f"must be one of {', '.join(s for s in SIZES if s != 'tiny')}",
    "int": "must be a whole number from 1", "count": "must be a whole number from 0", "float": "must be a number such as 1e-5",
    "precision": "must be one of bf16, fp16, fp8, fp32", "bool": "must be true or false",
    "recompute": "must be one of none, false, sel, full, offload", "share": "must be false or a number from 0 to 1",
    "path": "must be a path",
}  # fmt: skip
# the script reads these beside its values
ENVIRONMENT = {"MP_PP0_LAYERS": "pp0_layers", "MP_VP": "vp", "MP_AC_LAYERS": "recompute_layers", "MP_SFT_PACKING": "packing"}


@dataclass
class Recipe:
    """What the values say."""

    values: dict[int, str] = field(default_factory=dict)
    """By position."""
    options: FinetuneOptions | None = None
    output: str | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def value_of(kind: str, text: str) -> Any:
    """A value of this kind. Raises ValueError when the text is none."""
    word = text.strip().lower()
    if kind == "env" and word in ("dsw", "dlc"):
        return word
    if kind == "size":
        return next((s for s in SIZES if s.lower() == word and s != "tiny"), None) or _no(text)
    if kind in ("int", "count"):
        number = int(word)
        return number if number >= (kind == "int") else _no(text)
    if kind in ("float", "share"):
        if kind == "share" and word in ("false", "true"):
            return float(word == "true")
        value = float(word)
        if not math.isfinite(value) or value < 0 or (kind == "share" and value > 1):
            _no(text)
        return value
    if kind == "precision" and word in ("bf16", "fp16", "fp8", "fp32"):
        return word
    if kind == "bool" and word in ("true", "false"):
        return word == "true"
    if kind == "recompute" and word in ("none", "false", "sel", "full", "offload"):
        return "none" if word == "false" else word
    # a path is nearly anything, but a number or a word of another position is not meant as one
    if kind == "path" and word and not _is_number(word) and word not in WORDS:
        return text
    return _no(text)


def _no(text: str) -> Any:
    raise ValueError(text)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _fits(position: Position, text: str) -> bool:
    try:
        value_of(position.kind, text)
    except ValueError:
        return False
    return True


def positions(count: int) -> tuple[Position, ...] | None:
    """The form that has so many values; None where there is none."""
    if count == len(FORM):
        return FORM
    if count == len(SHORT_FORM):
        return SHORT_FORM
    return None


def _wrong_count(values: list[str]) -> list[str]:
    """What a wrong number of values may come from: one of the two forms with a value too few or too many."""
    lines = [f"{len(values)} values: the recipe has 26, or 24 without 13 ETP and 14 EP; see the list below"]
    for form in (FORM, SHORT_FORM):
        if len(values) == len(form) - 1:
            gaps = [p for i, p in enumerate(form) if all(map(_fits, form[:i] + form[i + 1 :], values))]
            if gaps:
                names = ", ".join(f"{p.number} {p.name}" for p in gaps)
                lines.append(f"with {len(form)} values in mind, all of them fit if what is missing is one of: {names}")
        elif len(values) == len(form) + 1:
            extra = [i for i in range(len(values)) if all(map(_fits, form, values[:i] + values[i + 1 :]))]
            if extra:
                words = ", ".join(f"{i + 1} ({values[i]!r})" for i in extra)
                lines.append(f"with {len(form)} values in mind, all of them fit if one value is too many: {words}")
    return lines


def _parse(form: tuple[Position, ...], values: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(name -> value, faults): each value by its position's rule, and what looks like two values swapped."""
    parsed: dict[str, Any] = {}
    wrong: list[int] = []
    faults = []
    for index, (position, text) in enumerate(zip(form, values, strict=True)):
        try:
            parsed[position.name] = value_of(position.kind, text)
        except ValueError:
            wrong.append(index)
    swapped: set[int] = set()
    for i in wrong:
        for j in wrong:
            if i < j and not {i, j} & swapped and _fits(form[i], values[j]) and _fits(form[j], values[i]):
                a, b = form[i], form[j]
                both = f"{a.number} {a.name} {values[i]!r} and {b.number} {b.name} {values[j]!r}"
                faults.append(f"{both}: look swapped; each is right in the other's place")
                swapped |= {i, j}
    for i in wrong:
        if i not in swapped:
            p = form[i]
            fit = [q for q in form if q.kind not in ("path", "float", p.kind) and _fits(q, values[i])] if not _is_number(values[i]) else []
            hint = f"; it would fit {fit[0].number} {fit[0].name}: are the values shifted?" if fit else ""
            faults.append(f"{p.number} {p.name} {values[i]!r}: {RULES[p.kind]}{hint}")
    return parsed, faults


def _order_faults(v: Mapping[str, Any]) -> list[str]:
    """Pairs of numbers in the wrong order, the way two swapped values show."""
    found = []

    def higher(big: str, small: str, numbers: tuple[int, int], rule: str) -> None:
        if big in v and small in v and v[small] > v[big]:
            found.append(f"{numbers[1]} {small} {v[small]:g}: {rule} {numbers[0]} {big} {v[big]:g}; if they are swapped, swap them back")

    higher("GLOBAL_BATCH_SIZE", "BATCH_SIZE", (4, 3), "a micro batch cannot be larger than")
    higher("LR", "MIN_LR", (5, 6), "the lowest learning rate must be at most")
    higher("PAD_LEN", "SEQ_LEN", (8, 7), "padding cannot be shorter than the sequence:")
    if "TRAIN_ITERS" in v and v.get("LR_WARMUP_ITERS", 0) >= v["TRAIN_ITERS"]:
        found.append(
            f"25 LR_WARMUP_ITERS {v['LR_WARMUP_ITERS']}: the warmup is as long as the run or longer (24 TRAIN_ITERS {v['TRAIN_ITERS']}); "
            f"use {v['TRAIN_ITERS'] // 10}, or swap them back if they are swapped"
        )
    return found


def _declared() -> dict[str, Option]:
    return {o.name: o for o in options_of(FinetuneOptions)}


def _combination_faults(v: Mapping[str, Any], gpus: int, known: bool) -> list[str]:
    """Rules between the values."""
    found = []
    tp, pp, cp = v.get("TP", 1), v.get("PP", 1), v.get("CP", 1)
    if v.get("SP") and tp == 1:
        found.append("15 SP true: sequence parallel needs 10 TP above 1; use false, or TP 2")
    if v.get("OPTIMIZER_OFFLOAD") and v.get("DO") is False:
        found.append(
            f"19 OPTIMIZER_OFFLOAD {v['OPTIMIZER_OFFLOAD']:g}: only the distributed optimizer moves its state to the host; "
            "use 16 DO true, or 0"
        )
    limit = gpus if known else NODE_GPUS
    if v.get("ENV") == "dsw" and tp * pp * cp > limit:
        whose = "this machine has" if known else "one machine has at most"
        found.append(
            f"10 TP {tp} x 11 PP {pp} x 12 CP {cp} = {tp * pp * cp} GPUs, but with 1 ENV dsw {whose} {limit}; use smaller ones, or ENV dlc"
        )
    return found


def _said_otherwise(v: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Notes on values that the options say in another way; changes them in `v`."""
    notes = []
    if "FL" in v:
        v["FL"] = "flash" if v["FL"] else "fused"
    if "PAD_LEN" in v:
        if environment.get("MP_SFT_PACKING", "").strip().lower() in ("true", "1", "yes", "on"):
            notes.append(f"8 PAD_LEN {v.pop('PAD_LEN')}: not needed with MP_SFT_PACKING, which fills rows with samples")
        else:
            notes.append(
                f"8 PAD_LEN {v['PAD_LEN']}: every row is padded to so many tokens, as the script does; leave --pad-length out and a micro "
                "batch is padded to its own longest row only, which is faster and gives the same loss"
            )
    return notes


def _environment(environment: Mapping[str, str], options: dict[str, Option], values: dict[str, Any], faults: list[str]) -> None:
    """MP_PP0_LAYERS, MP_VP, MP_AC_LAYERS and MP_SFT_PACKING, which the script reads beside its values."""
    for name, option in ENVIRONMENT.items():
        text = environment.get(name, "").strip()
        if not text or text.lower() in ("false", "0"):
            continue
        if name == "MP_AC_LAYERS" and values.get("recompute") not in ("full", "offload"):
            continue  # the script reads it with these two only
        try:
            values[option] = options[option].parse(text)
        except RequestError as error:
            faults.append(f"{name}={text}: {error}")


def read(values: list[str], *, gpus: int = 0, environment: Mapping[str, str] | None = None) -> Recipe:
    """The recipe that the values are, with every fault in them. gpus: of the run; 0: this machine's, else a machine's 8."""
    recipe = Recipe()
    form = positions(len(values))
    if form is None:
        recipe.faults = _wrong_count(values)
        recipe.values = dict(enumerate(values, start=1))
        return recipe
    recipe.values = {p.number: text for p, text in zip(form, values, strict=True)}
    parsed, recipe.faults = _parse(form, values)
    if len(form) < len(FORM):
        recipe.notes.append("24 values: 13 ETP and 14 EP, which the published table leaves out, are taken as 1")
    known = bool(gpus or gpu_count())
    count = gpus or gpu_count() or NODE_GPUS
    recipe.faults += _order_faults(parsed) + _combination_faults(parsed, count, known)
    declared = _declared()
    recipe.notes += _said_otherwise(parsed, os.environ if environment is None else environment)
    chosen = {p.option: parsed[p.name] for p in FORM if p.option in declared and p.name in parsed}
    _environment(os.environ if environment is None else environment, declared, chosen, recipe.faults)
    recipe.output = parsed.get("OUTPUT_BASEPATH")
    recipe.options = FinetuneOptions(**chosen)
    model = recipe.options.tp * recipe.options.pp * recipe.options.cp
    if recipe.options.env == "dlc" and not gpus:
        count = math.lcm(NODE_GPUS, model)
    elif model > count:
        count = model  # said already; the other rules are looked at all the same
    if recipe.options.size:
        if not (gpus or (known and recipe.options.env == "dsw")):
            recipe.notes.append(f"checked for {count} GPUs; say how many there are with --gpus")
        said = " ".join(recipe.faults)
        for fault in [*recipe.options.faults(), *layout_faults(recipe.options, published(recipe.options.size), count)]:
            option = fault.split()[0].removeprefix("--").rstrip(":").replace("-", "_")
            position = next((p for p in FORM if p.option == option), None)
            where = f"{position.number} {position.name}" if position else ""
            if not where or where not in said:  # said already in the recipe's own words
                recipe.faults.append(f"{where}: {fault}" if where else fault)
    return recipe


def render(recipe: Recipe) -> str:
    """The report for a person."""
    lines = []
    if recipe.faults:
        lines += [f"{len(recipe.faults)} fault{'s' if len(recipe.faults) > 1 else ''} in the recipe:"]
        lines += [f"  {fault}" for fault in recipe.faults]
    lines += [f"note: {note}" for note in recipe.notes]
    if recipe.faults:
        lines.append("")
        declared = _declared()
        for p in FORM:
            given = recipe.values.get(p.number, "")
            flag = declared[p.option].flag if p.option in declared else ""
            lines.append(f"  {p.number:>2} {p.name:<25} {given or '-':<20} {flag}".rstrip())
        lines += [f"  {n:>2} {'(too many)':<25} {text}" for n, text in recipe.values.items() if n > len(FORM)]
    else:
        lines += ["the same finetune, by name:", "", "  " + command(recipe)]
    return "\n".join(lines)


def command(recipe: Recipe) -> str:
    """The `qwen3vl finetune` command that says the same."""
    words = ["qwen3vl", "finetune", *to_arguments(recipe.options)]
    return shell_line(words + (["--runs", recipe.output] if recipe.output else []))


def run(values: list[str], options: RecipeOptions) -> int:
    """Print what the values say. 0: a finetune; 2: faults, each named. Raises WorkError when the plan cannot be saved."""
    recipe = read(values, gpus=options.gpus)
    good = not recipe.faults
    if options.json:
        print(json.dumps({"valid": good, "faults": recipe.faults, "notes": recipe.notes, "values": recipe.values,
                          "command": command(recipe) if good else None}, indent=1))  # fmt: skip
    else:
        print(render(recipe))
    if not good:
        return EXIT_REQUEST
    if options.save:
        comment = f"From a positional recipe. It runs with: qwen3vl finetune --plan {Path(options.save).name}"
        target = write_plan(options.save, recipe.options, comment)
        print(f"plan saved: {target}", file=sys.stderr)
    return EXIT_DONE
