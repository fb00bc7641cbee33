"""FLOPs of a batch equal torch's count, and the layout does not change what is reported."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen3vl_core.data.batch import Encoded, collate, pack
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.layout.flops import attention_forward
from qwen3vl_core.layout.gpus import peak_flops
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.throughput import training_flops
from tests import tiny

PARTS = ("vision", "projector", "language")


@pytest.fixture(scope="module")
def batch():
    """One row, as torch counts whole rows: 8 x 12 and 4 x 4 patches, and words."""
    inputs = tiny.Conversations(3).row(5, ("image", 8, 12), ("image", 4, 4), 21).inputs()
    return inputs, SimpleNamespace(lengths=torch.tensor([inputs["input_ids"].shape[1]]), image_grid_thw=inputs["image_grid_thw"])


@pytest.fixture(scope="module")
def model():
    made = tiny.hf_model(0, layers=4, hidden=64)
    made.set_attn_implementation("eager")
    return made


def counted(model, inputs, backward):
    with FlopCounterMode(display=False) as counter:
        output = model(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits
        if backward:
            output.float().logsumexp(-1).sum().backward()
    model.zero_grad()
    return counter.get_total_flops()


def test_forward_flops_are_the_sum_of_the_matrix_products(model, batch):
    inputs, seen = batch
    a = Architecture.from_config(model.config.to_dict())
    # torch's plain attention computes the half that the mask throws away
    expected = training_flops(a, seen, PARTS) + attention_forward(a, int(seen.lengths[0]))
    assert counted(model, inputs, False) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "frozen", [(), ("vision",), ("vision", "projector"), ("language",)], ids=lambda parts: "-".join(parts) or "all trained"
)
def test_training_flops_exclude_unneeded_gradients(model, batch, frozen):
    inputs, seen = batch
    a = Architecture.from_config(model.config.to_dict())
    visual = model.model.visual
    mergers = {id(p) for module in (visual.merger, visual.deepstack_merger_list) for p in module.parameters()}
    tower = {id(p) for p in visual.parameters()} - mergers
    for parameter in model.parameters():
        part = "vision" if id(parameter) in tower else "projector" if id(parameter) in mergers else "language"
        parameter.requires_grad_(part not in frozen)
    try:
        expected = training_flops(a, seen, frozen) + 3 * attention_forward(a, int(seen.lengths[0]))
        assert counted(model, inputs, True) == pytest.approx(expected, rel=0.01)
    finally:
        model.requires_grad_(True)


def test_documents_of_a_packed_row_count_separately_without_padding(model):
    a = Architecture.from_config(model.config.to_dict())
    rules, nothing = PictureRules(), np.zeros((0, 3), dtype=np.int64)
    words = [np.arange(n, dtype=np.int64) for n in (30, 71)]
    samples = [Encoded("", ids, ids, np.zeros((0, rules.patch_bytes), dtype=np.uint8), nothing) for ids in words]
    packed, apart = pack(samples, 0, rules, multiple=8), collate(samples, 0, rules)
    assert packed.input_ids.shape == (1, 32 + 72) and int(packed.attention_mask.sum()) == 30 + 71
    assert training_flops(a, packed) == training_flops(a, apart) > 0
    assert training_flops(a, SimpleNamespace(labels=torch.zeros(1, 4))) == 0


def test_the_peak_flops_are_found_by_the_drivers_gpu_name():
    assert (
        peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA L40S") == 362e12
    )
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("a new one") is None
