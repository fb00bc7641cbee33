"""Our own lines in a run's log: tagged for programs, shown to users without the tag."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core import log_lines
from qwen3vl_core.errors import RequestError, WorkError, error_lines
from qwen3vl_core.problem_texts import TEXTS
from qwen3vl_core.problems import Problem


def test_a_log_line_round_trips():
    assert log_lines.read(log_lines.written("a: b; c", log_lines.SAVE_ASKED)) == ("save", "a: b; c")
    assert log_lines.read(log_lines.written("a")) == ("", "a")
    assert log_lines.read("step 3  loss 2.1") is None and log_lines.read("qwen3vl-core 1.0 installed") is None
    assert log_lines.text_of("qwen3vl[work]: the disk is full") == "the disk is full" and log_lines.text_of("other: x") == "other: x"


def test_untagged_lines_of_older_versions_are_read():
    assert log_lines.read("qwen3vl: resumed 2026-01-01 10:00:00 on here").tag == log_lines.RESUMED
    assert log_lines.read("qwen3vl: asked to stop; 60 s to end").tag == log_lines.STOP_ASKED
    assert log_lines.read("qwen3vl finetune: --lr: required") == ("", "--lr: required")


def test_errors_have_a_tag_in_a_run_only():
    request = RequestError(Problem("no-such-plan", rule={"written": "x.yaml"}), "--tp: a line")
    assert [log_lines.read(line).tag for line in error_lines(request, in_a_run=True)] == ["no-such-plan", "request"]
    assert [line.startswith("qwen3vl: ") for line in error_lines(request, in_a_run=False)] == [True, True]
    assert log_lines.read(error_lines(WorkError("x", log_lines.BAD_STEPS), in_a_run=True)[0]) == ("bad-steps", "x")


def test_problem_codes_and_tags_do_not_conflict():
    assert not set(TEXTS) & set(log_lines.TAGS)


LINES = st.sampled_from([
    "qwen3vl[work]: a", "qwen3vl[", "qwen3vl[no end", "step qwen3vl[work]: b", "q", "", "é", "qwen3vl[x]", "\rx", "50%\rqwen3vl[work]: a",
])  # fmt: skip


@given(st.lists(LINES), st.booleans(), st.lists(st.integers(0, 60)))
def test_tags_are_removed_for_any_chunking_of_the_log(lines, ended, cuts):
    log = ("\n".join(lines) + "\n" * ended).encode()
    places = sorted({min(cut, len(log)) for cut in cuts} | {0, len(log)})

    def shown(in_place):
        remover = log_lines.TagRemover(in_place)
        return b"".join(remover.removed(log[a:b]) for a, b in pairwise(places)) + remover.removed(b"")

    tag = "qwen3vl[work]: a"
    for in_place, text in ((False, "qwen3vl: a"), (True, "\0" * 6 + "qwen3vl: a")):
        expected = [line.removesuffix(tag) + text if line in (tag, f"50%\r{tag}") else line for line in lines]
        assert shown(in_place) == ("\n".join(expected) + "\n" * ended).encode()
    assert len(shown(True)) == len(log)


@given(LINES)
def test_a_line_is_read_by_people_without_its_tag(line):
    assert log_lines.untagged(line) == ("qwen3vl: a" if line == "qwen3vl[work]: a" else line)


@pytest.mark.parametrize("tag", log_lines.TAGS)
def test_every_tag_fits_into_the_held_back_bytes(tag):
    assert len(log_lines.written("", tag)) < 64
