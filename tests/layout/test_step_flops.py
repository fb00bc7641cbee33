"""FLOPs of a step, by hand and against a measurement."""

from __future__ import annotations

import pytest

from qwen3vl_core.layout.flops import step_flops, step_seconds, vision_forward
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.options import FinetuneOptions

TWO = published("2B")


def test_flops_of_the_language_tower_by_hand():
    found = step_flops(FinetuneOptions(seq_length=1024, global_batch_size=4), TWO, 0)
    layer = 2048 * 4096 + 2048 * 2048 + 3 * 2048 * 6144
    assert found.language == 6 * 28 * layer * 4 * 1024
    assert found.vocabulary == 6 * 2048 * 151936 * 4 * 1024
    assert found.attention == 3 * 28 * 2 * 1024 * 1024 * 2048 * 4
    assert found.vision == found.recompute == 0


def test_they_agree_with_a_measured_utilisation():
    """29,712 tokens/s were MFU 0.352 of 989 TFLOP/s: a 2B-sized language tower on one H100, rows of 4096."""
    found = step_flops(FinetuneOptions(seq_length=4096, global_batch_size=1), TWO, 0)
    assert found.model / 4096 * 29712 / 989e12 == pytest.approx(0.352, abs=0.001)


def test_only_chosen_experts_count():
    a = published("A3B")
    found = step_flops(FinetuneOptions(seq_length=1, global_batch_size=1), a, 0)
    layer = 2048 * (4096 + 2 * 512) + 4096 * 2048 + 2048 * 128 + 8 * 3 * 2048 * 768
    assert found.language == 6 * 48 * layer


def test_the_vision_tower_by_hand():
    tower, mergers = vision_forward(TWO, 256)
    patches = 1024
    layer = 2 * patches * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * patches**2 * 1024
    assert tower == 24 * layer + 2 * patches * 1536 * 1024
    assert mergers == 4 * 2 * 256 * (4096 * 4096 + 4096 * 2048)


def test_frozen_and_recomputed_parts_count_their_actual_flops():
    whole = step_flops(FinetuneOptions(), TWO, 256)
    assert step_flops(FinetuneOptions(freeze="vision"), TWO, 256).vision < whole.vision
    frozen = step_flops(FinetuneOptions(freeze="vision,projector"), TWO, 256)
    tower, mergers = vision_forward(TWO, 256)
    assert frozen.vision == 8 * (tower + mergers) and frozen.language == whole.language
    assert step_flops(FinetuneOptions(freeze="language"), TWO, 256).language == pytest.approx(whole.language * 2 / 3)
    again = step_flops(FinetuneOptions(recompute="full"), TWO, 256)
    assert again.model == whole.model and again.recompute == pytest.approx((whole.language + whole.attention) / 3 + 8 * tower)


def test_more_gpus_are_faster_and_a_pipeline_has_a_bubble():
    one = step_seconds(FinetuneOptions(), TWO, 1, 0, mfu=0.4)
    assert step_seconds(FinetuneOptions(), TWO, 2, 0, mfu=0.4) == pytest.approx(one / 2)
    # 8 micro batches over 2 stages: one eighth longer
    assert step_seconds(FinetuneOptions(pp=2), TWO, 2, 0, mfu=0.4) == pytest.approx(one / 2 * 9 / 8)
    assert step_seconds(FinetuneOptions(), TWO, 1, 0, mfu=0.2) == pytest.approx(2 * one)
