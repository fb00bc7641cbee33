"""Megatron's optimizer with part of its state on the host: it trains like the plain one, and is saved and resumed."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.ranks import run_ranks
from tests.training.host_and_device import offloaded


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_offloaded_optimizer_trains_the_same_and_resumes_bitwise(tmp_path, share):
    folder = tiny.save(tiny.hf_model(3, layers=2, vision_layers=2, deepstack=(0,)).bfloat16(), tmp_path / "hf")
    changes = dict(precision="bf16", micro_batch_size=4, optimizer_offload=share, distributed_optimizer=True)
    ((plain, moved, went_on, resumed),) = run_ranks(1, offloaded, folder, tmp_path / "checkpoints", changes)
    assert moved == pytest.approx(plain, rel=1e-3)
    assert resumed == went_on
