"""The first step of a training without the checks of `plan`."""

from __future__ import annotations

from pathlib import Path

BATCH = 8


def first_loss(folder: Path, values: dict) -> float:
    """Loss of the first step of one global batch in this layout. Raises whatever prevents it."""
    from qwen3vl_core.model import process_groups

    from megatron.core import parallel_state

    from qwen3vl_core.checkpoint.source import open_source
    from qwen3vl_core.errors import RequestError
    from qwen3vl_core.layout.machine_rules import machine_problems
    from qwen3vl_core.training import setup, step
    from tests.training import trainings

    o = trainings.options(folder, global_batch_size=BATCH, **({"precision": "fp32"} | values))
    if problems := list(machine_problems(o, setup.this_machine())):
        raise RequestError(*problems)
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        training = setup.build(o, open_source(folder))
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        return step.train_step(training, trainings.micro_batches(7, o.micro_batch_size, rank, dp)).loss
    finally:
        process_groups.destroy()
