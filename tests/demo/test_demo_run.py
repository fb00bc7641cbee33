"""`qwen3vl demo --headless`: the whole loop through the commands that a user types, and its result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.shared import demo, run_demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loop(tmp_path_factory) -> tuple[Path, str]:
    return demo(tmp_path_factory)


def test_the_finetuned_models_captions_are_shorter_and_still_correct(loop):
    report = json.loads((loop[0] / "report.json").read_text())
    assert report["pictures"] == 64
    assert report["base_words"] > 90 and report["base_accuracy"] > 0.97
    assert 5 < report["tuned_words"] < 20
    assert report["tuned_accuracy"] >= 0.95
    # a short caption that named nothing would be right about all it names
    assert report["tuned_attributes"] > 5.5
    assert set(report["seconds"]) == {"prepare", "convert", "finetune", "convert back", "compare"}
    # its summary and the comparison's table count the same words
    scores = json.loads((loop[0] / "captions.json").read_text())["scores"]
    assert [report[f"{name}_words"] for name in ("base", "tuned")] == [round(scores[name]["words"], 1) for name in ("base", "tuned")]


def test_every_stage_is_an_ordinary_command_that_is_printed_and_recorded(loop):
    folder, printed = loop
    for command in ("prepare", "convert", "finetune", "compare"):
        assert f"$ qwen3vl {command} " in printed
    runs = sorted((folder / "runs").iterdir())
    assert [r.name for r in runs] == ["0001-prepare", "0002-convert", "0003-demo", "0004-convert", "0005-compare"]
    assert all(json.loads((r / "state.json").read_text())["status"] == "done" for r in runs)
    rows = [json.loads(line) for line in (runs[2] / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if r["kind"] == "train"]
    assert len(losses) == 200 and losses[-1] < 0.2 < 5 < losses[0]


def test_it_says_what_the_model_is_and_shows_captions_side_by_side(loop):
    out = loop[1]
    assert "knows drawn scenes only" in out and "photograph" in out
    assert out.count("held-out/0000") == 3 and "tuned" in out
    assert re.search(r"64 held-out pictures: base 1\d\d words, .* finetuned 1\d words", out)


def test_the_report_is_one_page_that_needs_nothing_else(loop):
    page = (loop[0] / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 64
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_a_second_demo_reuses_what_is_done(loop):
    folder, _ = loop
    before = (folder / "report.json").read_text()
    again = run_demo(folder)
    assert again.returncode == 0
    assert again.stdout.count("done before") == 5 and "$ qwen3vl" not in again.stdout
    assert (folder / "report.json").read_text() == before
    assert len(list((folder / "runs").iterdir())) == 5
