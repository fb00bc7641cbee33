"""The change of options that gets a failed run to work, of the causes that one can: what the memory is then, by the planner. Blocking."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from console.runs import check
from console.runs.diagnosis import Diagnosis
from console.runs.store import Run
from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import tr
from qwen3vl_core.layout.gpus import gpu_memory
from qwen3vl_core.layout.resuming import change_problems
from qwen3vl_core.layout.verdict import Verdict, judge
from qwen3vl_core.options import FinetuneOptions, from_mapping, option_problems, options_of
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import flag_of

LESS = 0.9
"""Share of the memory that a change must at most leave to be worth another attempt."""
LARGEST_SKIP_SHARE = 0.5
"""With more unusable samples than this, the data is what must be corrected."""
_CAPACITY = re.compile(r"total capacity of ([\d.]+) GiB")
_UNUSABLE = re.compile(r"(\d+) of (\d+) samples could not be used \((\d+ )?(\w*)")


@dataclass(frozen=True)
class Remedy:
    """A change of a failed finetune's options."""

    changes: Mapping[str, Any]
    """Options and their new values; empty: the same options work at the next attempt."""
    before: Mapping[str, Any]
    """The values of the same options."""
    why: str = ""
    """What the change does, in a few words."""
    memory: tuple[float, float, float] | None = None
    """GiB of the fullest GPU before and after by the estimate, and what it has; None where they are not known."""
    resumes: int | None = None
    """The step of the checkpoint from which the run can resume with the change; None: a new run is needed."""

    @property
    def headline(self) -> str:
        """`--micro-batch-size 16 → 8: 84.1 → 51.3 of 80 GiB a GPU by the estimate`, in the user's language."""
        text = ", ".join(f"{flag_of(name)} {_shown(self.before[name])} → {_shown(value)}" for name, value in self.changes.items())
        facts = [tr(self.why)] if self.why else []
        if self.memory is not None:
            before, after, total = self.memory
            facts.append(tr("{before:.1f} → {after:.1f} of {total:.4g} GiB a GPU by the estimate", before=before, after=after, total=total))
        return ": ".join(filter(None, [text, ", ".join(facts)]))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return tr("on") if value else tr("off")
    return f"{value:g}" if isinstance(value, float) else tr("default") if value is None else str(value)


def remedy(run: Run, diagnosis: Diagnosis | None) -> Remedy | None:
    """The change for what ended a finetune; None where no option changes it, or for a run of another kind. Never raises."""
    if diagnosis is None or run.kind != "finetune":
        return None
    try:
        return _remedy(run, diagnosis)
    except Exception:
        return None  # a record of another version, or a damaged one: what is known of its end must be shown all the same


def _remedy(run: Run, diagnosis: Diagnosis) -> Remedy | None:
    try:
        options = from_mapping(FinetuneOptions, dict(run.options))
    except RequestError:
        return None
    step = max((step for step, _ in check.checkpoints(run)), default=None)
    if diagnosis.name == "gpu_memory":
        return _for_memory(run, options, diagnosis, step)
    for changes, why in _candidates(run, options, diagnosis):
        if changes is not None and not option_problems(dataclasses.replace(options, **changes)):
            return _made(run, options, changes, why, None, step)
    return None


def _made(
    run: Run, options: FinetuneOptions, changes: Mapping[str, Any], why: str, memory: tuple[float, float, float] | None, step: int | None
) -> Remedy:
    before = {name: getattr(options, name) for name in changes}
    refused = next(change_problems(dict(run.options), changes, step or 0), None) is not None
    # without a checkpoint the same run can begin again, but its record would tell of two
    resumes = step if step and not refused else None
    return Remedy(changes, before, why, memory, resumes if changes else step or 0)


def _candidates(run: Run, o: FinetuneOptions, diagnosis: Diagnosis) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """(changes, why) for a cause other than memory of a GPU, best first; None: another line of the table."""
    name = diagnosis.name
    if name == "port":
        yield {}, "a resume is given a free port" if o.env == "dsw" else "the cluster gives the next attempt its own port"
    elif name == "nan":
        if o.precision == "fp16":
            yield {"precision": "bf16"}, "bf16 has the range of fp32"
        lower = float(f"{o.lr / 2:.6g}")
        changes: dict[str, Any] = {"lr": lower, "min_lr": min(o.min_lr, lower)} if o.min_lr > lower else {"lr": lower}
        warmup = max(o.train_iters // 20, 1)
        if o.lr_warmup_iters < warmup < o.train_iters and (not o.lr_decay_iters or o.lr_decay_iters > warmup):
            changes["lr_warmup_iters"] = warmup
        yield changes, "smaller steps at the beginning"
    elif name == "disk":
        if not o.keep or o.keep > 2:
            yield {"keep": 2}, "free some space first; it then keeps two checkpoints"
        yield {}, "free some space first; a resume goes on from the last checkpoint"
    elif name == "shared_memory":
        yield {"num_workers": 0}, "samples then need no shared memory"
    elif name in ("host_memory", "killed"):
        if o.async_save:
            yield {"async_save": False}, "no copy of the weights in host memory"
        if o.num_workers != 0:
            yield {"num_workers": (o.num_workers or 2) // 2}, "fewer loader processes hold samples in host memory"
    elif name == "nccl_timeout":
        longer = min(o.distributed_timeout_minutes * 3, 1440.0)
        if longer > o.distributed_timeout_minutes:
            yield {"distributed_timeout_minutes": longer}, "ranks wait longer for a slow one"
    elif name in ("nccl", "stalled", "connection") and not o.max_restarts:
        changes = {"max_restarts": 3, "restart_stalled": True} if name == "stalled" else {"max_restarts": 3}
        yield changes, "it then resumes by itself"
    elif (found := _UNUSABLE.search(diagnosis.line)) is not None:
        skipped, seen = int(found[1]), int(found[2])
        if found[4] == "too_long" and not o.packing:
            yield {"seq_length": 2 * o.seq_length}, "rows long enough for more samples"
        share = skipped / seen if seen else 1.0
        if share < LARGEST_SKIP_SHARE:
            yield (
                {"max_skip_share": round(min(1.25 * share + 0.05, LARGEST_SKIP_SHARE), 2)},
                tr("{share:.0%} of the samples are left out", share=share),
            )


def _for_memory(run: Run, options: FinetuneOptions, diagnosis: Diagnosis, step: int | None) -> Remedy | None:
    """The first change that fits by the estimate and saves enough; without one that fits, the one that saves most."""
    known = _CAPACITY.search(diagnosis.line)
    memory = float(known[1]) if known else (gpu_memory() or 0.0)
    plan = PlanOptions(gpus=_processes(run), memory=memory)
    now = judge(options, plan)
    smallest: tuple[float, dict[str, Any], Verdict] | None = None
    changes_tried = list(_less_memory(options, bool(step)))
    for changes in changes_tried:
        verdict = judge(dataclasses.replace(options, **changes), plan, architecture=now.architecture)
        if any(problem not in now.problems for problem in verdict.problems):
            continue  # what broke the options before, such as a model that was moved, does not matter here
        if now.estimate is None or verdict.estimate is None:
            return _made(run, options, changes, _MEANINGS[next(iter(changes))], None, step)
        peak = verdict.estimate.peak_gib
        if verdict.estimate.fits and peak <= LESS * now.estimate.peak_gib:
            return _made(run, options, changes, _MEANINGS[next(iter(changes))], (now.estimate.peak_gib, peak, now.memory_gib), step)
        if peak < now.estimate.peak_gib and (smallest is None or peak < smallest[0]):
            smallest = peak, changes, verdict
    if smallest is None or now.estimate is None:
        return None
    peak, changes, _ = smallest
    return _made(run, options, changes, _MEANINGS[next(iter(changes))], (now.estimate.peak_gib, peak, now.memory_gib), step)


_MEANINGS = {
    "micro_batch_size": "the same steps in smaller parts", "recompute": "activations are recomputed",
    "distributed_optimizer": "ranks share the optimizer state", "seq_length": "shorter rows",
}  # fmt: skip


def _less_memory(o: FinetuneOptions, resumes: bool) -> Iterator[dict[str, Any]]:
    """Changes that need less memory of a GPU, gentle ones first. resumes: first those with which the run can resume."""
    halves: list[dict[str, Any]] = []
    size = o.micro_batch_size // 2
    while size >= 1:
        halves.append({"micro_batch_size": size})
        size //= 2
    layout: list[dict[str, Any]] = []
    if o.recompute == "none":
        layout.append({"recompute": "full"})
    if not o.distributed_optimizer:
        layout.append({"distributed_optimizer": True})
        if o.recompute == "none":
            layout.append({"recompute": "full", "distributed_optimizer": True})
    yield from (*layout, *halves) if resumes else (*halves, *layout)
    yield from ({**change, **half} for change in layout for half in halves)
    if o.seq_length >= 1024:
        yield {**(layout[-1] if layout else {}), **(halves[-1] if halves else {}), "seq_length": o.seq_length // 2}


def _processes(run: Run) -> int:
    """Processes of the whole run, by its command."""
    words = run.command

    def after(flag: str) -> int:
        index = words.index(flag) + 1 if flag in words else len(words)
        return int(words[index]) if index < len(words) and words[index].isdecimal() else 1

    return after("--nnodes") * after("--nproc-per-node")


def command_words(run: Run, found: Remedy) -> list[str]:
    """The words of `qwen3vl runs` that start it with the change: `["clone", "7", "--set", "micro_batch_size=8"]`."""
    if found.resumes is None:
        changes = {name: str(value).lower() if isinstance(value, bool) else value for name, value in found.changes.items()}
        return ["clone", str(run.number), "--set", *(f"{name}={value}" for name, value in changes.items())]
    flags = {o.name: o.flag for o in options_of(FinetuneOptions)}
    words = ["resume", str(run.number)]
    for name, value in found.changes.items():
        if isinstance(value, bool):
            words.append(flags[name] if value else flags[name].replace("--", "--no-", 1))
        else:
            words += [flags[name], str(value)]
    return words
