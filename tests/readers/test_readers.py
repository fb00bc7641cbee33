"""Whatever is read from outside ends in what was read or in one line: damaged by its structure, with a fixed seed.

QWEN3VL_READERS=10000 damages each so many times; `python -m tests.readers.fuzz` prints a table.
"""

from __future__ import annotations

import os

import pytest

from tests.readers.fuzz import tried
from tests.readers.outside_files import READERS

INPUTS = int(os.environ.get("QWEN3VL_READERS", "200"))
SLOW = ("tokenizer", "processor", "chat template", "run record", "events and metrics", "comparison")
"""Readers that take tens of milliseconds an input."""


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "none")
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "settings.yaml"))
    tally = tried(name, range(INPUTS // 4 if name in SLOW else INPUTS), tmp_path)
    assert not tally.wrong, "\n".join(f"number {number}:\n{text}" for number, text in tally.wrong[:3])
    # damage that no reader notices would show that nothing is damaged; some readers show a damaged run as far as it is whole
    assert tally.endings["refused"] or name in ("run record", "events and metrics", "comparison", "settings", "recipe")
