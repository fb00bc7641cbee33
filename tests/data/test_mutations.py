"""Damaged inputs end in a dataset, in counted refusals, or in one line.

QWEN3VL_MUTATIONS=10000 tries so many; `python -m tests.data.mutations` says how each kind ended.
"""

from __future__ import annotations

import os

import pytest

from tests.data.mutations import KINDS, Fuzzer

MUTATIONS = int(os.environ.get("QWEN3VL_MUTATIONS", "480"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_counted_or_refused_in_one_line(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "none")
    fuzzer = Fuzzer(tmp_path)
    numbers = range(KINDS.index(kind), MUTATIONS, len(KINDS))
    endings = {number: fuzzer.outcome(number) for number in numbers}
    # damage that nobody notices would show that nothing is damaged
    assert set(endings.values()) & {"counted", "refused", "failed"}
