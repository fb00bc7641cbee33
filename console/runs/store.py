"""The run store: a folder of runs, each a folder of plain files. No server; safe to read while runs are written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

from console.runs.state import boot_id, host, is_here, judge, read_json, write_json
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled
from qwen3vl_core.locations import store_folder
from qwen3vl_core.run_record import ALIVE, LOG, METRICS_FILE, PLAN, STATE, PlanRecord, StateRecord

_ID = re.compile(r"(\d{4,12})-(.+)")
_NAME_LENGTH = 40
_LARGEST = 10**9
"""Numbers from here on are of no run of ours: the next ones would have more digits than are read."""


class Run:
    """One run. Every property reads the run's folder, so no value is stale."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plan: tuple[tuple[int, int, int], PlanRecord] | None = None

    def __repr__(self) -> str:
        return f"Run({self.id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def id(self) -> str:
        """`0007-name`: number and name."""
        return self.path.name

    @property
    def number(self) -> int:
        """The number that the id begins with."""
        return int(self.id.partition("-")[0])

    @property
    def plan(self) -> PlanRecord:
        """`plan.json`; empty if it is damaged. Read again only when the file has changed."""
        try:
            status = (self.path / PLAN).stat()
        except OSError:
            return {}
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._plan is None or self._plan[0] != seen:
            self._plan = (seen, cast(PlanRecord, read_json(self.path / PLAN)))
        return self._plan[1]

    @property
    def kind(self) -> str:
        """`finetune`, `prepare`, `convert` or `compare`; `unknown` when the plan is damaged."""
        kind = self.plan.get("kind")
        return kind if isinstance(kind, str) else "unknown"

    @property
    def name(self) -> str:
        """The run's name, which several runs may share."""
        name = self.plan.get("name")
        return name if isinstance(name, str) else self.id.partition("-")[2]

    @property
    def options(self) -> dict[str, Any]:
        """The options in the plan, by name."""
        options = self.plan.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def command(self) -> list[str]:
        """The command as a list of words."""
        words = self.plan.get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def created(self) -> float | None:
        """Time of creation, in Unix seconds."""
        return _number(self.plan.get("created"))

    @property
    def state(self) -> StateRecord:
        """`state.json` with the current `status`: `lost` if the file says that the run is alive but no supervisor is."""
        status, state = judge(self.path)
        return {**state, "status": status}

    @property
    def status(self) -> str:
        """queued, starting, running, stopping, done, failed, stopped or lost."""
        return judge(self.path)[0]

    @property
    def alive(self) -> bool:
        """Whether a supervisor is running it, or is about to."""
        return self.status in ALIVE

    @property
    def exit_code(self) -> int | None:
        """Exit code of the command, or 128 + signal; None before its end."""
        code = self.state.get("exit_code")
        return code if isinstance(code, int) else None

    @property
    def error(self) -> str | None:
        """Why it failed, in one line, if the log does not say so."""
        error = self.state.get("error")
        return error if isinstance(error, str) else None

    @property
    def started(self) -> float | None:
        """Time of the latest start, in Unix seconds."""
        return _number(self.state.get("started"))

    @property
    def ended(self) -> float | None:
        """Time of the end, in Unix seconds."""
        return _number(self.state.get("ended"))

    @property
    def log(self) -> Path:
        """The output of its processes."""
        return self.path / LOG

    @property
    def metrics(self) -> Path:
        """Its metrics, one JSON object per line."""
        return self.path / METRICS_FILE


class RunStore:
    """The runs under one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = store_folder(root)

    def list(self) -> list[Run]:
        """All runs, newest first. Raises RequestError when the folder cannot be read."""
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RequestError(filled("--runs {}: {}; choose a folder that you can read", self.root, error.strerror)) from None
        # a name that could steer a terminal is none of ours
        runs = [Run(self.root / name) for name in names if name.isprintable() and _ID.fullmatch(name) and _is_run(self.root / name)]
        return sorted(runs, key=lambda run: (run.number, run.id), reverse=True)

    def get(self, ref: str | int) -> Run:
        """The run with this number, id, beginning of an id, or name. Raises RequestError if there is none, or several."""
        from console.runs.other_stores import elsewhere  # late: only where there is no run

        text = str(ref).strip()
        runs = self.list()
        tests = (
            lambda run: run.id == text,
            lambda run: text.isdecimal() and run.number == int(text),
            lambda run: run.name == text,
            lambda run: bool(text) and run.id.startswith(text),
        )
        for test in tests:
            matching = [run for run in runs if test(run)]
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise RequestError(filled("run {}: {} runs match, {}; give the number", text, len(matching), _some(matching)))
        advice = f"choose from {_some(runs)}" if runs else f"there are none; qwen3vl finetune starts one{elsewhere(self.root)}"
        raise RequestError(filled("run {}: no such run in {}; {}", text, self.root, advice))

    def create(self, kind: str, options: Any, command: Sequence[str] | None = None) -> Run:
        """Create a new run, ready to start, with the next free number. Atomic.

        kind: `finetune`, `prepare`, `convert` or `compare`. options: that kind's options object, whose paths become
        absolute; with a `command` of its own the run may be of any kind, and options any mapping.
        Raises RequestError (invalid options, or a folder that cannot be written) and WorkError (the disk is full).
        """
        # late: these import the option declarations, which lists of runs do not need
        from console.runs import plan_record
        from qwen3vl_core.options import to_mapping

        try:
            if is_dataclass(options):
                taken = self._taken_gpus(getattr(options, "gpu_ids", None))
                options = plan_record.with_chosen_gpus(plan_record.with_absolute_paths(options), taken)
            values = dict(options) if isinstance(options, Mapping) else to_mapping(options)
            label = values.get("name") or kind
            plan_record.check_recordable(values, [str(word) for word in command or ()])
            self.root.mkdir(parents=True, exist_ok=True)
            number, claim = self._claim_number()
        except FileNotFoundError as error:
            raise RequestError(
                filled("{}: no longer exists; change to a folder that exists", error.filename or "the current folder")
            ) from None
        except OSError as error:
            raise RequestError(filled("--runs {}: {}; choose a folder that you can write to", self.root, error.strerror)) from None
        path = self.root / f"{number:04d}-{_slug(str(label))}"
        try:
            words = command if command is not None else plan_record.child_command(kind, options, path)
            plan_record.write_record(claim, plan_record.make_plan(kind, str(label), values, [str(w) for w in words]), path)
            write_json(claim / STATE, {
                "status": "starting", "supervisor_pid": None, "supervisor_start": None, "pid": None, "host": host(), "boot_id": boot_id(),
                "exit_code": None, "started": None, "ended": None, "error": None, "stalled": None, "restarts": 0, "mirror": None,
                "gpus": None, "any_gpus": None, "queued": None,
            })  # fmt: skip
            os.rename(claim, path)
        except BaseException as error:
            shutil.rmtree(claim, ignore_errors=True)
            if isinstance(error, OSError):
                raise WorkError(
                    filled("{}: {}; the run was not created; free some space or choose another folder with --runs", path, error.strerror)
                ) from error
            raise
        return Run(path)

    def _taken_gpus(self, ids: str | None) -> set[str]:
        """With --gpu-ids free: GPUs of this machine that live runs hold, whether they use memory of them yet or not, or wait for."""
        from qwen3vl_core.layout.gpus import FREE  # lists of runs do not need it

        if not ids or ids.strip() != FREE:
            return set()
        states = [run.state for run in self.list()]
        return {
            gpu for state in states if state["status"] in ALIVE and is_here(state) and isinstance(state.get("gpus"), list)
            for gpu in state["gpus"] or () if isinstance(gpu, str)
        }  # fmt: skip

    def _claim_number(self) -> tuple[int, Path]:
        """The next free number, and a hidden folder that reserves it. Raises OSError."""
        while True:
            taken = {int(m[1]) for name in os.listdir(self.root) if (m := _ID.fullmatch(name.removeprefix("."))) and int(m[1]) < _LARGEST}
            number = max(taken, default=0) + 1
            claim = self.root / f".{number:04d}-claimed"
            with contextlib.suppress(FileExistsError):
                claim.mkdir()
                # between listing and claiming another run may have taken the number and its final name
                if not any((m := _ID.fullmatch(name)) and int(m[1]) == number for name in os.listdir(self.root)):
                    return number, claim
                claim.rmdir()
            time.sleep(0)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a plan that is a regular file."""
    try:
        return stat.S_ISREG(os.lstat(folder / PLAN).st_mode)
    except OSError:
        return False


def _slug(name: str) -> str:
    """A name for a folder: lower case, words joined by dashes, at most 40 characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_NAME_LENGTH].rstrip("-") or "run"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _some(runs: list[Run], limit: int = 5) -> str:
    more = f" and {len(runs) - limit} more" if len(runs) > limit else ""
    return ", ".join(run.id for run in runs[:limit]) + more
