"""Samples of a prepared dataset, and their trained tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from console.notebook import DatasetPreview
from console.notebook.shards import Split
from qwen3vl_core.data.prepare.command import run as prepare
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import PrepareOptions
from tests.data import videos


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def test_every_sample_can_be_shown(dataset):
    preview = DatasetPreview(dataset)
    assert len(preview) == 28 and preview.split_menu.options == ("train", "val")
    seen = set()
    for number in range(len(preview)):
        preview.go(number)
        seen.add(preview.sample.key)
        assert "data:image/jpeg;base64," in preview.page.value and "What is it?" in preview.page.value
    assert len(seen) == 28
    preview.next_button.click()
    assert preview.index == 27
    preview.back_button.click()
    assert preview.index == 26
    preview.random_button.click()
    preview.split_menu.value = "val"
    assert len(preview) == 4 and preview.index == 0 and preview.place.max == 4


def test_the_highlighted_tokens_are_those_that_training_uses(dataset):
    """Token for token, against the labels that the loader makes."""
    preview = DatasetPreview(dataset, model=BASE)
    processor = ChatProcessor.from_pretrained(BASE)
    split = Split(dataset)
    for number in range(8):
        sample = split[number]
        labels = np.asarray(processor.encode(sample.messages, sample.parts).labels)
        (answer,) = [m["content"][0]["text"] for m in sample.messages if m["role"] == "assistant"]
        tokens = preview.trained_tokens(answer)
        assert len(tokens) == int((labels >= 0).sum())
        assert "".join(tokens) == answer + "<|im_end|>"
    preview.go(0)
    count = len(preview.trained_tokens(next(m for m in preview.sample.messages if m["role"] == "assistant")["content"][0]["text"]))
    assert f"{count} trained tokens" in preview.page.value and preview.page.value.count("<mark style") == count


def test_without_a_model_the_answer_is_highlighted(dataset):
    preview = DatasetPreview(dataset)
    answer = next(m for m in preview.sample.messages if m["role"] == "assistant")["content"][0]["text"]
    assert f"<mark>{answer}&lt;|im_end|&gt;</mark>" in preview.page.value
    with pytest.raises(RequestError, match="needs a tokenizer"):
        preview.trained_tokens("x")


def test_the_samples_are_a_data_frame(dataset):
    frame = DatasetPreview(dataset, model=BASE).frame(limit=5)
    assert len(frame) == 5 and (frame["pictures"] == 1).all() and (frame["turns"] == 2).all() and (frame["trained_tokens"] > 3).all()
    assert (frame["question"] == "What is it?").all()
    assert DatasetPreview(dataset).frame(limit=1)["trained_tokens"].isna().all()


def test_a_static_page_contains_the_report_and_the_samples(dataset):
    page = DatasetPreview(dataset)._repr_html_()
    assert page.count("data:image/jpeg") == 4 and "train" in page and "28" in page


def test_a_grid_shows_samples_with_their_tokens_and_finds_texts(dataset, copy):
    preview = DatasetPreview(dataset, model=BASE, grid=True)
    grid, split = preview.grid, Split(dataset)
    assert len(grid.cards.children) == 12 and preview.page.layout.display == "none"
    page, _ = grid.cards.children[0].children
    sample = split[0]
    encoded = ChatProcessor.from_pretrained(BASE).encode(sample.messages, sample.parts)
    assert f"{int((np.asarray(encoded.labels) >= 0).sum())} trained" in page.value
    pictures = int(encoded.grids.prod(axis=1).sum()) // 4  # four patches are a token
    assert f"{pictures} picture tokens" in page.value and "data:image/jpeg" in page.value
    grid.next_button.click()
    grid.next_button.click()
    assert grid.numbers == [24, 25, 26, 27] and grid.next_button.disabled
    grid.search.value = "TWO CATS"
    expected = [n for n in range(len(split)) if "two cats" in json.dumps(split[n].messages)]
    assert grid.numbers == expected and f"{len(expected)} found in all 28" in grid.told.value
    _, button = grid.cards.children[1].children
    button.click()
    assert preview.index == expected[1] and not preview.view_buttons.value and split[expected[1]].key in preview.page.value
    preview.split_menu.value = "val"
    assert all(number < 4 for number in grid.numbers)
    grid.search.value = "<no such text>"
    assert grid.numbers == [] and "0 found in all 4" in grid.told.value


def test_other_folders_are_refused_in_one_line(tmp_path, dataset, copy):
    for place, split, words in (
        (tmp_path, None, "give a folder made by qwen3vl prepare"), (dataset, "test", "no split test; there are: train, val"),
        (tmp_path / "none", None, "no such folder"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            DatasetPreview(place, split)
    (copy / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [../../etc/passwd]}")
    with pytest.raises(RequestError, match="lies outside the dataset"):
        DatasetPreview(copy)
    (copy / ".nv-meta" / "split.yaml").write_text("[1")
    with pytest.raises(RequestError, match=r"split.yaml: cannot be read"):
        DatasetPreview(copy)
    with pytest.raises(RequestError, match=r"no tokenizer\.json"):
        DatasetPreview(dataset, model=tmp_path)


def test_a_damaged_sample_is_reported_and_the_others_are_shown(copy):
    shard = next(copy.glob("train-*.tar"))
    table = np.fromfile(f"{shard}.idx", dtype="<u8")
    with open(shard, "r+b") as file:
        file.seek(int(table[3]))
        file.write(b"\xff" * 512)
    preview = DatasetPreview(copy)
    preview.go(3)
    assert "✗" in preview.page.value and "sample 3: cannot be read" in preview.page.value
    preview.go(4)
    assert "✗" not in preview.page.value
    (shard.parent / f"{shard.name}.idx").write_bytes(table[:1].tobytes())
    with pytest.raises(RequestError, match=r"holds 0 samples, the index says \d+; copy both again"):
        DatasetPreview(copy)


def test_html_in_a_sample_is_escaped(copy):
    shard = next(copy.glob("train-*.tar"))
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"What is it?", b"<b>&what</b"))
    assert "&lt;b&gt;&amp;what" in DatasetPreview(copy).page.value


def test_a_video_is_played_and_one_of_frames_is_shown_frame_by_frame(tmp_path):
    (tmp_path / "a.mp4").write_bytes(videos.video(frames=8))
    (tmp_path / "frames").mkdir()
    for number in range(9):
        Image.new("RGB", (32, 24), (20 * number, 0, 0)).save(tmp_path / "frames" / f"{number}.jpg")
    turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A pattern."}]
    records = [{"id": str(n), "video": name, "conversations": turns} for n, name in enumerate(("a.mp4", "frames"))]
    (tmp_path / "list.json").write_text(json.dumps(records))
    prepare(PrepareOptions(source=str(tmp_path / "list.json"), to=str(tmp_path / "data"), split="1,0,0"))
    preview = DatasetPreview(tmp_path / "data")
    pages = []
    for number in range(2):
        preview.go(number)
        pages.append(preview.page.value)
    played, drawn = sorted(pages, key=lambda page: "<video" not in page)
    assert "<video controls muted" in played and "data:video/mp4;base64," in played and "✗" not in played
    assert drawn.count("data:image/jpeg;base64,") == 6 and "9 frames" in drawn and "✗" not in drawn
