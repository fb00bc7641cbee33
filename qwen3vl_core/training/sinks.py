"""Experiment trackers that a run can log to: Weights & Biases and SwanLab, each through its own client.

A run's record is `metrics.jsonl`. A sink that fails during the run is reported once and dropped; the run continues.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3vl_core.addresses import without_secrets
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.sink_packages import NAMES
from qwen3vl_core.options import FinetuneOptions, to_mapping
from qwen3vl_core.run_record import SWANLAB, WANDB


class _Wandb:
    """Mode, server and key come from wandb's own environment variables and login."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        import wandb

        # the run directory's name is the W&B id, so that a resumed run continues the same curve
        self._run = wandb.init(
            project=project, id=run_dir.name, name=run_dir.name, config=config, dir=str(run_dir), resume="allow",
            settings=wandb.Settings(quiet=True),
        )  # fmt: skip
        self.location = self._run.url or f"offline; wandb sync {run_dir / WANDB / 'latest-run'}"

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _SwanLab:
    """Mode, server and key come from SwanLab's own environment variables and login."""

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]) -> None:
        import swanlab

        folder = run_dir / SWANLAB
        folder.mkdir(exist_ok=True)
        # an id may hold letters, digits, - and _ only
        name = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in run_dir.name)[-64:]
        self._swanlab = swanlab
        self._swanlab.init(project=project, name=run_dir.name, id=name, config=config, log_dir=str(folder), resume="allow")
        self.location = str(folder)

    def log(self, values: dict[str, float], step: int) -> None:
        self._swanlab.log(values, step=step)

    def close(self, failed: bool) -> None:
        self._swanlab.finish(state="crashed" if failed else "success")


CLIENTS = {"wandb": _Wandb, "swanlab": _SwanLab}


class Sinks:
    """The sinks that a run's options ask for. Created on rank 0 only."""

    def __init__(self, run_dir: Path, options: FinetuneOptions, say: Callable[[str], None], *, resumed: bool = False) -> None:
        """Raises RequestError when a sink cannot be started: otherwise the user would miss the run in that tracker. One of a run that
        resumes is left out, and that is said: a restart at night must not fail because a tracker does not answer."""
        self._say = say
        self._open: dict[str, Any] = {}
        config = to_mapping(options)
        for name, client in CLIENTS.items():
            project = getattr(options, name)
            if not project:
                continue
            try:
                self._open[name] = client(run_dir, project, config)
            except Exception as error:
                if resumed:
                    say(f"{NAMES[name]} did not start ({_line(error)}); the run continues without it")
                    continue
                self.close(failed=True)
                reason = f"{NAMES[name]} did not start ({_line(error)})"
                raise RequestError(f"--{name} {project}: {reason}; fix that, or leave --{name} out") from None
            say(f"{NAMES[name]}: {project}/{run_dir.name}, {self._open[name].location}")

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the scalars of a step, by tag."""
        for name in list(self._open):
            try:
                self._open[name].log(values, step)
            except Exception as error:
                self._say(f"{NAMES[name]} failed ({_line(error)}); the run continues without it")
                del self._open[name]

    def close(self, failed: bool) -> None:
        """Flush and finish all sinks."""
        for name, sink in self._open.items():
            try:
                sink.close(failed)
            except Exception as error:
                self._say(f"{NAMES[name]} did not finish cleanly ({_line(error)})")
        self._open = {}


def _line(error: Exception) -> str:
    return without_secrets(next(iter(str(error).strip().splitlines()), type(error).__name__))[:200]
