"""A free port for torchrun, before each attempt at a run. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from console.runs.state import read_json
from qwen3vl_core.run_record import PLAN, TORCHRUNS, PlanRecord


def with_a_free_port(run_dir: Path, restart: int = 0) -> PlanRecord:
    """The plan, whose torchrun gets a port that is free now; the rest of the command stays as it was.

    On several nodes all have to use the same one, without a word between them: the next one after each restart, so that none joins
    the store of the attempt before.
    """
    plan = cast(PlanRecord, read_json(run_dir / PLAN))
    command = plan.get("command")
    if not isinstance(command, list) or not any(module in command for module in TORCHRUNS):
        return plan
    if "--master-port" in command[:-1]:
        from console.runs.plan_record import write_record
        from qwen3vl_core.layout.torchrun_command import free_port

        command[command.index("--master-port") + 1] = str(free_port())
        write_record(run_dir, plan)
    elif restart and "--rdzv-endpoint" in command[:-1]:
        place = command.index("--rdzv-endpoint") + 1
        address, _, port = str(command[place]).rpartition(":")
        if port.isdecimal():
            command[place] = f"{address}:{1024 + (int(port) + restart - 1024) % (65536 - 1024)}"
    return plan
