"""The planned parameters are those of the model, on every rank of every layout that the rules accept."""

from __future__ import annotations

import itertools
import json

import pytest

from qwen3vl_core.layout.parameters import published, stages, total_parameters
from qwen3vl_core.layout.rules import layout_problems
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from tests import tiny
from tests.layout import parameter_counts
from tests.ranks import run_ranks

RANKS = 4


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        # of the published checkpoints
        ("2B", 2_127_532_032), ("4B", 4_437_815_808), ("8B", 8_767_123_696), ("32B", 33_357_390_064), ("A3B", 31_070_754_032),
        ("A22B", 235_670_022_896),
    ],
)  # fmt: skip
def test_a_published_size_has_its_parameters(size, parameters):
    assert total_parameters(published(size)) == parameters


def test_the_shipped_models_parameters_are_counted_exactly():
    from safetensors import safe_open

    from qwen3vl_core.layout.parameters import TINY

    with safe_open(TINY.with_name("model.safetensors"), "np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    sizes = [1] * len(shapes)
    for i, shape in enumerate(shapes):
        for n in shape:
            sizes[i] *= n
    assert total_parameters(published("tiny")) == sum(sizes)


def accepted(architecture: Architecture) -> list[dict]:
    """Layouts on RANKS processes that the rules accept."""
    experts = ((1, 1), (2, 1), (1, 2), (4, 1)) if architecture.is_moe else ((1, 1),)
    found = []
    # experts have nothing to do with context parallelism and unequal stages, which the dense model shows
    others = ((1,), (0,)) if architecture.is_moe else ((1, 2), (0, 4))
    for tp, pp, cp, (ep, etp), first in itertools.product((1, 2, 4), (1, 2, 4), others[0], experts, others[1]):
        layout = dict(tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, pp0_layers=first, sequence_parallel=tp > 1)
        if RANKS % (tp * pp * cp) == 0 and not list(layout_problems(FinetuneOptions(**layout), architecture, RANKS)):
            found.append(layout)
    return found


@pytest.mark.parametrize("kind", ["tied", "untied", "experts"])
def test_every_accepted_layout_builds_with_the_planned_parameters(kind, tmp_path):
    if kind == "experts":
        config = tiny.hf_moe_model(0, layers=6).config
    else:
        config = tiny.hf_config(tied=kind == "tied", layers=6)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    architecture = Architecture.read(file)
    layouts = accepted(architecture)
    assert len(layouts) >= 6
    for rank in run_ranks(RANKS, parameter_counts.counts, file, layouts):
        for layout, (stage, held) in zip(layouts, rank, strict=True):
            assert stages(FinetuneOptions(**layout), architecture)[stage].counts == held, layout
