"""`qwen3vl inspect` for data: counts, lengths, and samples with what is trained marked; one line for what is no data."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core import cli
from qwen3vl_core.data.inspect import command as inspect
from qwen3vl_core.data.inspect import show
from qwen3vl_core.data.sample_encoder import messages_of
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.data.token_lengths import histogram
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import InspectOptions
from tests.data import samples

MODEL = str(samples.CHECKPOINT)


def found_by(path, tmp_path, **options) -> dict:
    inspect.run(InspectOptions(path=str(path), json=str(tmp_path / "found.json"), **options))
    return json.loads((tmp_path / "found.json").read_text())


def lengths_of(dataset, processor) -> list[int]:
    made = []
    for split in ("train", "val"):
        shards = ShardSplit(dataset, split)
        for number in range(len(shards)):
            _, parts = shards.read(number)
            made.append(len(processor.encode(messages_of(parts), parts).ids))
    return made


def test_lengths_are_those_that_the_loader_counts(tmp_path, dataset, processor):
    lengths = lengths_of(dataset, processor)
    middle = sorted(lengths)[len(lengths) // 2]
    found = found_by(dataset, tmp_path, model=MODEL, seq_length=middle)
    assert found["tokens"]["total"] == sum(lengths) and found["tokens"]["longest"] == max(lengths)
    assert found["too_long"] == sum(length > middle for length in lengths)
    assert found["too_long_tokens"] == sum(length for length in lengths if length > middle)
    assert sum(count for _, _, count in found["histogram"]) == len(lengths) == found["looked_at"]
    assert (found["samples"], found["pictures"]) == ({"train": 23, "val": 3}, 28)


@samples.many(60)
@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50), st.integers(16, 50_000))
def test_the_histogram_holds_every_sample_and_parts_at_the_sequence_length(lengths, seq_length):
    made = histogram(np.array(lengths), seq_length)
    assert sum(count for _, _, count in made) == len(lengths)
    assert sum(count for begin, _, count in made if begin > seq_length) == sum(length > seq_length for length in lengths)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(made))


def test_what_is_marked_is_what_is_trained(dataset, processor):
    for shown in show.select_samples({"train": ShardSplit(dataset, "train")}, 5, processor):
        marked = "".join(piece.text for piece in shown.pieces if piece.trained)
        assert re.fullmatch(r"Picture number \d+ has a dog on the beach\.<\|im_end\|>", marked), marked
        assert shown.thumbnails or not any(piece.medium for piece in shown.pieces)
        tokens = sum(int(piece.text.split(", ")[1].split()[0]) for piece in shown.pieces if piece.medium)
        rest = "".join(piece.text for piece in shown.pieces if not piece.medium)
        assert tokens + len(processor.tokenizer(rest)["input_ids"]) == shown.tokens


def test_a_source_and_a_shard_are_looked_into_as_what_they_will_be(tmp_path, dataset, capsys):
    source = dataset.parent / "captions.json"
    raw, whole = found_by(source, tmp_path, model=MODEL), found_by(dataset, tmp_path, model=MODEL)
    assert raw["kind"] == "LLaVA JSON, not prepared"
    assert {key: raw["tokens"][key] for key in ("total", "trained", "longest")} == {
        key: whole["tokens"][key] for key in ("total", "trained", "longest")
    }
    shard = found_by(dataset / "val-00000.tar", tmp_path, model=MODEL)
    assert shard["samples"] == {"val-00000.tar": 3} and 0 < shard["tokens"]["total"] < whole["tokens"]["total"]
    assert "⟦Picture number" in capsys.readouterr().out


def test_the_page_holds_everything_itself(tmp_path, dataset):
    found_by(dataset, tmp_path, model=MODEL, html=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 20 and "<mark>Picture number" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_texts_cannot_steer_the_terminal_or_the_page(tmp_path, capsys):
    answer = "\x1b[2Jgone \x9b31m <script>alert(1)</script> \u202e"
    source = tmp_path / "bad.jsonl"
    source.write_text(json.dumps(samples.record(0, answer=answer)) + "\n")
    assert cli.main(["inspect", str(source), "--html", str(tmp_path / "page.html")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    for text in (printed, page):
        assert not set(text) & set("\x1b\x9b\u202e") and "gone" in text
    assert "<script>" not in page


def test_what_cannot_be_used_is_counted_with_an_example(tmp_path, capsys):
    broken = samples.encoded(samples.picture(1))[:60]
    path = samples.raw_dataset(
        tmp_path / "data",
        [
            ("good", {"json": samples.conversation(pictures=0)}),
            ("torn", {"json": b"{"}),
            ("gone", {"json": samples.conversation()}),
            ("half", {"json": samples.conversation(), "img0.jpg": broken}),
            ("token", {"json": samples.conversation("<|im_end|>", 0)}),
        ],
    )
    found = found_by(path, tmp_path, model=MODEL)
    assert found["faults"] == {"bad_json": 1, "missing_picture": 1, "broken_picture": 1, "control_token": 1}
    assert set(found["examples"]) == set(found["faults"])
    assert "4 cannot be used" in capsys.readouterr().out
    only = samples.raw_dataset(tmp_path / "only", [("torn", {"json": b"{"})])
    with pytest.raises(WorkError, match="none of its samples can be used"):
        inspect.run(InspectOptions(path=str(only)))


def test_part_of_a_large_dataset_is_said_to_be_part(tmp_path, dataset, capsys):
    found = found_by(dataset, tmp_path, limit=10, show=0)
    assert 8 <= found["looked_at"] <= 11
    assert "evenly spread" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["no file", "no tar", "empty json", "no model", "no split", "no place"])
def test_what_cannot_be_looked_into_ends_in_one_line(tmp_path, dataset, capsys, wrong):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    (tmp_path / "a.json").write_text("")
    words = {
        "no file": [str(tmp_path / "none.json")],
        "no tar": [str(tmp_path / "a.tar")],
        "empty json": [str(tmp_path / "a.json")],
        "no model": [str(dataset), "--model", str(tmp_path / "none")],
        "no split": [str(dataset), "--split", "test"],
        "no place": [str(dataset), "--html", str(tmp_path / "none" / "page.html")],
    }[wrong]
    assert cli.main(["inspect", *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qwen3vl: ")]
    assert len(error) == 1 and len(error[0]) > 20


def test_a_folder_that_holds_no_data_is_left_to_others(tmp_path):
    assert not inspect.holds_data(tmp_path)
    with pytest.raises(RequestError, match="no dataset, shard"):
        inspect.run(InspectOptions(path=str(tmp_path)))
