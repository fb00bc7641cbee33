"""Builds models on gloo ranks and counts what each rank holds."""

from __future__ import annotations

from pathlib import Path

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.build import build_model
from qwen3vl_core.model.config import transformer_config

import torch.distributed as dist
from megatron.core import parallel_state

from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.setup import PARTS


def counts(config: Path, layouts: list[dict]) -> list[tuple[int, dict[str, int]]]:
    """For each layout (pipeline stage of this rank, parameters of each part), one model after the other."""
    architecture = Architecture.read(config)
    found = []
    for layout in layouts:
        sizes = {k: v for k, v in layout.items() if k not in ("sequence_parallel", "pp0_layers")}
        groups = {k: v for k, v in sizes.items() if k not in ("tp", "pp")}
        process_groups.initialize(sizes.get("tp", 1), sizes.get("pp", 1), **groups)
        shape = transformer_config(
            architecture, **sizes, first_stage_layers=layout.get("pp0_layers", 0), sequence_parallel=layout.get("sequence_parallel", False)
        )
        model = build_model(
            architecture, shape, pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage()
        )
        held = dict.fromkeys(("vision", "projector", "language", "experts"), 0)
        for name, parameter in model.named_parameters():
            part = next(p for p, beginnings in PARTS.items() if name.startswith(beginnings))
            held["experts" if ".mlp.experts." in name else part] += parameter.numel()
        found.append((parallel_state.get_pipeline_model_parallel_rank(), held))
        # the groups of the layout only; the process group stays for the next one
        parallel_state.destroy_model_parallel()
    assert dist.is_initialized()
    return found
