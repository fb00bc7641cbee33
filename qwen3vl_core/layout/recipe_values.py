"""The values of the published recipe by position: what each one is, and the rules they follow, alone and with each other.

The script takes 26 values; the table published with it lists 24, without ETP and EP (13 and 14), which the
example on the same page passes. Both forms are accepted. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.problems import Problem
from qwen3vl_core.sizes import SIZES

LEFT_OUT = (13, 14)
NODE_GPUS = 8
# valid values of other positions: a path is never one of these
WORDS = ("true", "false", "dsw", "dlc", "bf16", "fp16", "fp8", "fp32", "sel", "full", "offload", "none")


@dataclass(frozen=True)
class Position:
    """One value of the positional form."""

    number: int
    name: str
    kind: str
    """env, size, int, count (a whole number, 0 too), float, precision, bool, recompute, share or path."""
    option: str
    """The option with the same meaning; empty if there is none."""


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


def value_of(kind: str, text: str) -> Any:
    """The value that the text stands for. Raises ValueError when the text is not of this kind."""
    word = text.strip().lower()
    if kind == "env" and word in ("dsw", "dlc"):
        return word
    if kind == "size":
        return next((s for s in SIZES if s.lower() == word and s != "tiny"), None) or _reject(text)
    if kind in ("int", "count"):
        number = int(word)
        return number if (kind == "int") <= number <= limits.NUMBER else _reject(text)
    if kind in ("float", "share"):
        if kind == "share" and word in ("false", "true"):
            return float(word == "true")
        value = float(word)
        if not math.isfinite(value) or value < 0 or (kind == "share" and value > 1):
            _reject(text)
        return value
    if kind == "precision" and word in ("bf16", "fp16", "fp8", "fp32"):
        return word
    if kind == "bool" and word in ("true", "false"):
        return word == "true"
    if kind == "recompute" and word in ("none", "false", "sel", "full", "offload"):
        return "none" if word == "false" else word
    # nearly everything is a path, but a number or a value of another position is not meant as one
    if kind == "path" and word and not _is_number(word) and word not in WORDS:
        return text
    return _reject(text)


def _reject(text: str) -> Any:
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
    """The form with this many values; None if there is none."""
    if count == len(FORM):
        return FORM
    if count == len(SHORT_FORM):
        return SHORT_FORM
    return None


def _problem(code: str, position: Position, value: Any, text: str, **rule: Any) -> Problem:
    """A problem of a position. text: its value as the message shows it."""
    return Problem(code, position.option or None, value, {"written": f"{position.number} {position.name} {text}".rstrip(), **rule})


def count_problems(values: list[str]) -> list[Problem]:
    """Problems of a wrong number of values, which is likely one of the two forms with a value missing or added."""
    problems = [Problem("recipe-count", rule={"written": f"{len(values)} values", "count": len(values)})]
    for form in (FORM, SHORT_FORM):
        if len(values) == len(form) - 1:
            gaps = [p for i, p in enumerate(form) if all(map(_fits, form[:i] + form[i + 1 :], values))]
            if gaps:
                names = [f"{p.number} {p.name}" for p in gaps]
                problems.append(Problem("recipe-value-missing", rule={"form": len(form), "positions": names}))
        elif len(values) == len(form) + 1:
            extra = [i for i in range(len(values)) if all(map(_fits, form, values[:i] + values[i + 1 :]))]
            if extra:
                words = [f"{i + 1} ({values[i]!r})" for i in extra]
                problems.append(Problem("recipe-value-too-many", rule={"form": len(form), "positions": words}))
    return problems


def parse(form: tuple[Position, ...], values: list[str]) -> tuple[dict[str, Any], list[Problem]]:
    """(name -> value, problems). Each value is checked by the rule of its position; two invalid values may have been swapped."""
    parsed: dict[str, Any] = {}
    invalid: list[int] = []
    problems = []
    for index, (position, text) in enumerate(zip(form, values, strict=True)):
        try:
            parsed[position.name] = value_of(position.kind, text)
        except ValueError:
            invalid.append(index)
    swapped: set[int] = set()
    for i in invalid:
        for j in invalid:
            if i < j and not {i, j} & swapped and _fits(form[i], values[j]) and _fits(form[j], values[i]):
                both = " and ".join(f"{form[k].number} {form[k].name} {values[k]!r}" for k in (i, j))
                problems.append(Problem("recipe-swapped", form[i].option or None, values[i], {"written": both}))
                swapped |= {i, j}
    for i in invalid:
        if i not in swapped:
            p = form[i]
            fit = [q for q in form if q.kind not in ("path", "float", p.kind) and _fits(q, values[i])] if not _is_number(values[i]) else []
            hint = f"; it would fit {fit[0].number} {fit[0].name}: are the values shifted?" if fit else ""
            problems.append(_problem("recipe-value", p, values[i], repr(values[i]), rule=RULES[p.kind], hint=hint))
    return parsed, problems


POSITIONS = {p.name: p for p in FORM}


def order_problems(v: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of pairs of numbers in the wrong order, as when two values were swapped."""
    for big, small, reason in (
        ("GLOBAL_BATCH_SIZE", "BATCH_SIZE", "a micro batch cannot be larger than"),
        ("LR", "MIN_LR", "the lowest learning rate must be at most"),
        ("PAD_LEN", "SEQ_LEN", "padding cannot be shorter than the sequence:"),
    ):
        if big in v and small in v and v[small] > v[big]:
            other, position = POSITIONS[big], POSITIONS[small]
            swap = {other.option: v[small], position.option: v[big]}
            # a whole number may be too large for a float
            text = str(v[small]) if isinstance(v[small], int) else f"{v[small]:g}"
            rule = {"reason": reason, "bound": v[big], "other": f"{other.number} {big}"}
            problem = _problem("recipe-order", position, v[small], text, **rule)
            yield dataclasses.replace(problem, remedies=(swap,))
    if "TRAIN_ITERS" in v and v.get("LR_WARMUP_ITERS", 0) >= v["TRAIN_ITERS"]:
        bound, instead, number = v["TRAIN_ITERS"], v["TRAIN_ITERS"] // 10, v["LR_WARMUP_ITERS"]
        problem = _problem("recipe-warmup", POSITIONS["LR_WARMUP_ITERS"], number, str(number), bound=bound, instead=instead)
        yield dataclasses.replace(problem, remedies=({"lr_warmup_iters": instead},))


def combination_problems(v: Mapping[str, Any], gpus: int, known: bool) -> Iterator[Problem]:
    """Broken rules between values."""
    tp, pp, cp = v.get("TP", 1), v.get("PP", 1), v.get("CP", 1)
    if v.get("SP") and tp == 1:
        problem = _problem("recipe-sequence-parallel", POSITIONS["SP"], True, "true")
        yield dataclasses.replace(problem, remedies=({"sequence_parallel": None}, {"tp": 2}))
    if v.get("OPTIMIZER_OFFLOAD") and v.get("DO") is False:
        share = v["OPTIMIZER_OFFLOAD"]
        problem = _problem("recipe-optimizer-offload", POSITIONS["OPTIMIZER_OFFLOAD"], share, f"{share:g}")
        yield dataclasses.replace(problem, remedies=({"distributed_optimizer": True}, {"optimizer_offload": None}))
    limit = gpus if known else NODE_GPUS
    if v.get("ENV") == "dsw" and tp * pp * cp > limit:
        whose = "this machine has" if known else "one machine has at most"
        rule = {"model": tp * pp * cp, "whose": whose, "limit": limit}
        yield Problem("recipe-gpus", rule={"written": f"10 TP {tp} x 11 PP {pp} x 12 CP {cp} = {tp * pp * cp} GPUs", **rule})
