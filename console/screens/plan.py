"""From what a form holds to options, the command and the first broken rule. Imports no Textual."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.widgets.fields import text_of, value_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import is_url
from qwen3vl_core.layout.advice import LAYOUT
from qwen3vl_core.layout.command import process_count
from qwen3vl_core.layout.plan import architecture_for, figures, gpu_memory, report
from qwen3vl_core.layout.rules import check_plan, layout_faults
from qwen3vl_core.options import COMMANDS, from_mapping, options_of, shell_line, to_arguments
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.progress import quantity

KINDS = ("prepare", "convert", "finetune", "compare")
"""Commands that the console starts, in the order of the work."""
INPUTS = ("model", "checkpoint", "dataset", "pictures", "captions")
"""Kinds of paths that a command reads."""
OUTPUTS = ("target", "to")
"""Options whose folder a command fills."""
PRESETS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "finetune": (
        ("smoke test", "10 steps, to see that everything runs",
         {"train_iters": 10, "lr_warmup_iters": 0, "log_interval": 1, "save_interval": 0}),
        ("full finetune", "every weight, lr 1e-5, warmup, evaluations and the last 2 checkpoints kept",
         {"freeze": "", "lr": 1e-5, "min_lr": 1e-6, "train_iters": 1000, "lr_warmup_iters": 30, "save_interval": 200, "keep": 2,
          "eval_interval": 100}),
        ("projector only", "vision and language frozen, lr 1e-3: aligns new pictures cheaply",
         {"freeze": "vision,language", "lr": 1e-3, "min_lr": 1e-5, "train_iters": 500, "lr_warmup_iters": 15}),
        ("language only", "the vision tower as it is: less memory, the usual choice for captions in a new style",
         {"freeze": "vision", "lr": 1e-5, "min_lr": 1e-6}),
        ("LoRA", "adapters of rank 16 in the language model, lr 1e-4: a fraction of the memory",
         {"lora_rank": 16, "lr": 1e-4, "min_lr": 1e-5}),
        ("packed rows", "samples joined to rows of 8192 tokens: no padding computed",
         {"packing": True, "micro_batch_size": 1, "seq_length": 8192}),
        ("least memory", "activations computed again, optimizer state split, micro batch 1",
         {"recompute": "full", "distributed_optimizer": True, "micro_batch_size": 1}),
    ),
    "prepare": (
        ("quick", "pictures' headers are looked at", {"check": "header", "skip_missing": False}),
        ("thorough", "every picture is decoded, bad records are left out and counted", {"check": "decode", "skip_missing": True}),
    ),
    "convert": (
        ("verified", "read again and compared bitwise", {"verify": True}),
        ("bf16", "written in bf16, half the disk of fp32", {"dtype": "bf16"}),
    ),
    "compare": (
        ("greedy", "the same caption every time", {"temperature": 0.0, "top_p": 1.0, "top_k": 0}),
        ("sampled", "temperature 0.7, top-p 0.9", {"temperature": 0.7, "top_p": 0.9}),
        ("first look", "8 pictures, short captions", {"limit": 8, "max_new_tokens": 64}),
    ),
}  # fmt: skip
"""Values by name, with a line about each; beside these the layouts that fit (`suggestions`)."""


@dataclass(frozen=True)
class Plan:
    """A form's content."""

    kind: str
    command: str
    """What a person would type; leaves out what cannot be understood yet."""
    options: Any = None
    """The options object; None while a rule is broken."""
    problems: tuple[str, ...] = ()
    """Every broken rule that needs neither disk nor machine, one line each."""
    partial: Any = None
    """The options as far as they can be understood; what cannot is as by default."""

    @property
    def problem(self) -> str:
        """The first of them."""
        return self.problems[0] if self.problems else ""


@dataclass(frozen=True)
class Verdict:
    """What the disk and the machine say about a plan."""

    problems: tuple[str, ...] = ()
    note: str = ""
    report: dict[str, Any] | None = None
    """Of a finetune: what `qwen3vl plan --json` says; None where the model is not known."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """What a form of this kind says. Needs neither disk nor machine."""
    cls = COMMANDS[kind]
    values, problems = {}, []
    for option in options_of(cls):
        try:
            values[option.name] = value_of(option, texts.get(option.name, text_of(option, option.default)))
        except RequestError as error:
            problems.append(str(error))
    partial = cls(**values)
    command = shell_line(["qwen3vl", kind, *to_arguments(partial)])
    for option in options_of(cls):
        if option.required and option.name in values and values[option.name] in (None, "", []):
            problems.append(f"{option.flag}: required; {option.help[0].lower()}{option.help[1:]}")
    faults = getattr(partial, "faults", None)
    if callable(faults):
        problems += faults()
    elif not problems:
        try:
            from_mapping(cls, values)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        return Plan(kind, command, None, tuple(dict.fromkeys(problems)), partial)
    return Plan(kind, command, from_mapping(cls, values), (), partial)


@functools.cache
def _gpu_memory() -> float | None:
    return gpu_memory()


def look_here(kind: str, options: Any) -> Verdict:
    """What the disk and the machine say. Blocking; never raises for a bad plan."""
    try:
        if kind == "finetune":
            return _look_at_finetune(options)
        problems, note = _look_at_paths(options)
        return Verdict(tuple(problems), note)
    except (RequestError, WorkError) as error:
        return Verdict((str(error),))
    except OSError as error:
        return Verdict((f"{error.filename}: {error.strerror}",))


def check_here(kind: str, options: Any) -> tuple[str, str]:
    """(the first broken rule or empty, a note): what the disk and the machine say. Blocking; never raises for a bad plan."""
    verdict = look_here(kind, options)
    return (verdict.problems[0] if verdict.problems else ""), ("" if verdict.problems else verdict.note)


def _look_at_finetune(options: Any) -> Verdict:
    problems, count = [], 0
    try:
        count = process_count(options)
    except RequestError as error:
        problems.append(str(error))
    found = None
    if options.load or options.size:
        try:
            planned = PlanOptions(gpus=count or options.tp * options.pp * options.cp, memory=_gpu_memory() or 0.0)
            found = report(options, planned)
            problems += found["faults"]
            a = architecture_for(options)
            if "stages" not in found and count and next(layout_faults(options, a, count), None) is None:
                found |= figures(options, a, count, found["memory_gib"], planned)
        except RequestError as error:
            problems.append(str(error))
    if options.load and not problems:
        try:
            check_plan(options, count)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        return Verdict(tuple(dict.fromkeys(problems)), "", found)
    model = options.tp * options.pp * options.cp
    parts = f"TP {options.tp} · PP {options.pp} · CP {options.cp} · DP {count // model}"
    return Verdict((), f"{parts} = {count} process{'es' if count > 1 else ''}", found)


def _look_at_paths(options: Any) -> tuple[list[str], str]:
    """(broken rules, a note) of a command that reads and writes: what it reads is there, where it writes is free."""
    problems: list[str] = []
    read, written = 0, None
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if not value:
            continue
        if option.path in INPUTS or (option.path == "file" and option.required):
            for path in value if option.many else [value]:
                if is_url(path):
                    continue
                whole = Path(path).expanduser()
                if not whole.exists():
                    problems.append(f"{option.flag} {path}: no such file or folder; correct the path")
                elif option.name == "source" and whole.is_dir():
                    read += sum(each.stat().st_size for each in itertools.islice(whole.glob("*.safetensors"), 1000))
        elif option.name in OUTPUTS:
            written = Path(value).expanduser()
            full = written.is_dir() and any(written.iterdir())
            if full and getattr(options, "overwrite", True) is False:
                problems.append(f"{option.flag} {value}: is there already; choose another folder or add --overwrite")
    if written is None:
        return problems, ""
    place = next((p for p in (written, *written.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if read > free:
        problems.append(f"{written}: {quantity(read, 'B')} to write, {quantity(free, 'B')} free on that disk; choose another folder")
    return problems, (f"{quantity(read, 'B')} to read, " if read else "") + f"{quantity(free, 'B')} free where it writes"


def suggestions(options: Any) -> list[dict[str, Any]]:
    """Layouts for these GPUs, best first: {"values": …, "gib", "fits", "seconds", "dp"}. Blocking. Raises RequestError."""
    count = options.nproc or process_count(dataclasses.replace(options, tp=1, pp=1, cp=1))
    found = report(options, PlanOptions(gpus=count, memory=_gpu_memory() or 0.0, suggest=True))
    declared = {option.flag: option for option in options_of(type(options))}
    made = []
    for each in found.get("suggestions", []):
        values = {name: option.default for name, option in ((o.name, o) for o in declared.values()) if name in LAYOUT}
        words = iter(each["options"])
        for word in words:
            option = declared[word]
            values[option.name] = True if option.type is bool else option.parse(next(words))
        made.append({**{k: each[k] for k in ("gib", "fits", "seconds", "dp")}, "values": values, "of": found["memory_gib"], "gpus": count})
    return made


def read_workspace(folder: Path | None) -> dict[str, Any]:
    """`workspace.json` of a demo workspace; empty when there is none."""
    if folder is None:
        return {}
    try:
        value = json.loads((Path(folder) / "workspace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def gpu_here() -> bool:
    """Whether this machine has a GPU that says how much it holds; as it was when first asked."""
    return _gpu_memory() is not None


def free_path(path: Any) -> Any:
    """The path, or with -2, -3, … the first that nothing stands on yet."""
    if not isinstance(path, str | Path) or not str(path):
        return None
    found, number = Path(path).expanduser(), 2
    while found.exists():
        whole = Path(path).expanduser()
        found, number = whole.with_name(f"{whole.stem}-{number}{whole.suffix}"), number + 1
    return str(found)


def prefill(kind: str, workspace: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Values that a new form of this kind begins with; only those that the workspace gives and the options know."""
    get = workspace.get
    finetune = get("finetune")
    values: dict[str, Any] = {
        "prepare": {"source": get("train_json"), "to": free_path(get("data"))},
        "convert": {"source": get("base"), "target": free_path(get("base_mcore"))},
        "finetune": {"load": get("base_mcore"), "train_data": get("data"), **(finetune if isinstance(finetune, dict) else {})},
        "compare": {
            "base": get("base"), "tuned": get("tuned_hf"), "prompt": get("prompt"), "references": get("references"),
            "images": [get("heldout_images")] if isinstance(get("heldout_images"), str) else None,
        },
    }.get(kind, {})  # fmt: skip
    known = {option.name for option in options_of(COMMANDS[kind])}
    return {name: value for name, value in values.items() if name in known and value is not None}
