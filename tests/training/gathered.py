"""Trainings on a CPU whose experts are computed as on a GPU: sorted or gathered tokens, grouped products, gradients in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

from qwen3vl_core.model import experts, specs

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP

from qwen3vl_core.structure.micro_batch import IGNORED
from tests.training import trainings

LENGTH = 128
"""Of a packed row: ranks that gather tokens have the same number of them."""
called: list[str] = []


def whole_rows(batch: trainings.Micro, multiple: int, pack=trainings.pack) -> trainings.Micro:
    packed = pack(batch, multiple)
    padding = LENGTH - packed.inputs["input_ids"].shape[1]
    assert padding > 0
    inputs = packed.inputs | {name: F.pad(packed.inputs[name], (0, padding)) for name in ("input_ids", "attention_mask")}
    inputs["cu_seqlens"] = F.pad(packed.inputs["cu_seqlens"], (0, 1), value=LENGTH)
    return replace(packed, inputs=inputs, labels=F.pad(packed.labels, (0, padding), value=IGNORED))


def grouped(self, rows, ends, probs):
    """Transformer Engine's experts with bounds on the device, of Megatron's modules for a CPU."""
    assert ends.dtype == torch.int32 and len(ends) == self.num_local_experts
    called.append("grouped")
    into, out = ([getattr(e, name).weight for e in reversed(self.local_experts)] for name in ("linear_fc1", "linear_fc2"))
    gate, up = experts.product(rows, ends, into, in_place=True).chunk(2, -1)
    return experts.product(F.silu(gate) * up * probs[:, None], ends, out, in_place=True), None


def with_layer(spec, module=None, original=specs._with, **submodules):
    return original(spec, experts.ExpertLayer, **submodules)


def gradients(folder: Path, changes: dict):
    """`trainings.gradients` of packed rows, so computed."""
    called.clear()
    patches = (
        mock.patch.object(trainings, "pack", whole_rows), mock.patch.object(experts, "on_device", lambda config: True),
        mock.patch.object(specs, "_with", with_layer), mock.patch.object(SequentialMLP, "forward", grouped),
    )  # fmt: skip
    for patch in patches:
        patch.start()
    try:
        result = trainings.gradients(folder, changes, True)
    finally:
        for patch in patches:
            patch.stop()
    assert called
    return result
