"""One declaration defines the command line, the plan and the form; invalid values are one-line errors."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import (
    COMMANDS,
    FinetuneOptions,
    add_arguments,
    from_mapping,
    options_of,
    to_arguments,
    to_mapping,
)
from tests.options.drawn import admitted

REQUIRED = {"load": "base", "train_data": "data"}
WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


def parse(cls, words):
    parser = argparse.ArgumentParser()
    add_arguments(parser, cls)
    return from_mapping(cls, vars(parser.parse_args(words)))


@pytest.mark.parametrize("command", COMMANDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_command_line_of_a_plan_reproduces_the_plan(command, data):
    cls = COMMANDS[command]
    chosen = {o.name: data.draw(admitted(o, WORDS)) for o in options_of(cls) if o.required or data.draw(st.booleans())}
    options = from_mapping(cls, chosen)
    assert parse(cls, to_arguments(options)) == options
    assert from_mapping(cls, to_mapping(options)) == options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command):
    for o in options_of(COMMANDS[command]):
        assert o.help and o.help[0].isupper() and not o.help.endswith("."), o.name
        assert o.required or o.default is not dataclasses.MISSING


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lr": "fast"}, "--lr fast: must be a number"),
        ({"micro_batch_size": "0"}, "--micro-batch-size 0: must be at least 1; use 1"),
        ({"precision": "fp7"}, "--precision fp7: must be one of bf16, fp16, fp8, fp32"),
        ({"sequence_parallel": "true"}, "--sequence-parallel: needs --tp above 1; leave it out, or use --tp 2"),
        ({"lr_warmup_iters": "100"}, "--lr-warmup-iters 100: must be below --train-iters 100; use 10"),
        ({"min_lr": "1"}, "--min-lr 1: must be at most --lr 1e-05; use 1e-06"),
        ({"freeze": "eyes"}, "--freeze eyes: there is no part eyes; choose from vision, projector, language"),
        ({"freeze": "vision,projector,language"}, "nothing is left to train"),
        ({"speed": "9"}, "speed: no such option"),
        ({"load": ""}, "--load: required"),
    ],
)
def test_a_wrong_value_gets_one_line_with_a_fix(changes, line):
    with pytest.raises(RequestError, match=line.replace("(", r"\(")) as caught:
        from_mapping(FinetuneOptions, REQUIRED | changes).check()
    assert "\n" not in str(caught.value)
