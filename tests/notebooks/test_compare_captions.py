"""Captions side by side: as they are written, with what differs, and votes that stay."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from console.notebook import CompareCaptions, captions
from console.notebook.words import pair
from console.runs import launch
from console.runs.store import Run
from qwen3vl_core.errors import RequestError
from tests.console.runs import jobs
from tests.console.runs.jobs import until
from tests.notebooks.conftest import recorded


def write(run: Run, image, model: str, text: str, done: bool = True, seconds: float = 1.5) -> None:
    row = {"v": 1, "image": str(image), "prompt": "What is it?", "model": model, "text": text, "seconds": seconds, "done": done}
    with open(run.path / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        Image.new("RGB", (40, 30), (80 * n, 0, 0)).save(path)
    return paths


@pytest.fixture
def comparison(store, pictures) -> Run:
    run = recorded(store, "compare", base="/models/base", tuned="/models/tuned")
    for n, path in enumerate(pictures):
        write(run, path, "base", f"The picture shows a red ball and {n} <b>cats</b>.")
        write(run, path, "tuned", f"A red ball and {n} dogs.")
    return run


def test_pictures_captions_and_differences_are_shown(comparison, store):
    view = CompareCaptions(comparison, store=store)
    assert "<ins>dogs</ins>" in view.tuned.value
    assert "<del>The picture shows</del>" in view.base.value and "<b>cats" not in view.base.value
    assert "6 words · 1.5 s" in view.tuned.value
    assert "“What is it?”" in view.headline.value and "/models/tuned" in view.headline.value
    assert bytes(view.image.value[:2]) == b"\xff\xd8"
    first = bytes(view.image.value)
    view.next_button.click()
    assert view.index == 1 and "1 <ins>dogs" in view.tuned.value and bytes(view.image.value) != first
    view.go(99)
    assert view.index == 2
    view.mark_box.value = False
    assert "<ins>" not in view.tuned.value


def test_captions_of_a_live_run_appear_as_they_are_written(store, pictures):
    view = CompareCaptions(store=store)
    assert "no comparison" in view.headline.value
    run = recorded(store, "compare", jobs.UNTIL_GO)
    launch.start(run)
    write(run, pictures[0], "base", "A long", done=False)
    until(lambda: "writing …" in view.base.value)
    assert "waiting …" in view.tuned.value and "running" in view.headline.value
    write(run, pictures[0], "base", "A long one.")
    write(run, pictures[0], "tuned", "A short one.")
    until(lambda: "<ins>short</ins>" in view.tuned.value)
    (run.path / "go").touch()
    until(lambda: "done" in view.headline.value)


def test_votes_are_kept_beside_the_captions_and_come_back(comparison, store, pictures):
    view = CompareCaptions(comparison, store=store)
    view.vote_buttons.value = "tuned"
    view.go(1)
    assert view.vote_buttons.value == ""
    view.vote_buttons.value = "same"
    view.vote("base", index=2)
    assert captions(comparison)["vote"].tolist() == ["tuned", "same", "base"]
    view.close()
    again = CompareCaptions(comparison, store=store)
    assert again.vote_buttons.value == "tuned"
    again.vote_buttons.value = ""
    assert json.loads((comparison.path / "votes.json").read_text())["votes"] == {str(pictures[1]): "same", str(pictures[2]): "base"}
    with pytest.raises(RequestError, match="must be one of"):
        again.vote("both")


def test_the_frame_has_texts_words_and_seconds(comparison):
    frame = captions(comparison)
    assert frame["tuned_words"].tolist() == [6, 6, 6] and frame["base_seconds"].tolist() == [1.5] * 3
    assert frame["base"][0].startswith("The picture") and frame["vote"].isna().all()


def test_another_comparison_can_be_chosen(comparison, store, pictures):
    newer = recorded(store, "compare")
    write(newer, pictures[2], "base", "Newer.")
    view = CompareCaptions(store=store)
    assert view.run == newer
    view.run_menu.value = comparison.id
    assert view.run == comparison and len(view.samples) == 3
    view.show(newer)
    assert view.run == newer and "Newer." in view.base.value


def test_a_picture_that_is_gone_or_broken_is_said_and_the_captions_stay(comparison, store, pictures):
    pictures[0].unlink()
    pictures[1].write_bytes(b"no picture")
    view = CompareCaptions(comparison, store=store)
    assert "cannot be shown" in view.message.value and "dogs" in view.tuned.value
    view.go(1)
    assert "cannot be shown" in view.message.value
    view.go(2)
    assert view.message.value == "" and view.image.value


def test_rows_of_any_shape_do_no_harm(store):
    run = recorded(store, "compare")
    rows = ["no json", "[]", "{}", '{"image":1,"model":"base","text":"x"}', '{"image":"a","model":"third","text":"x"}',
            '{"image":"<script>","model":"base","text":"<script>alert(1)</script>\\u001b[31m","seconds":"soon"}']  # fmt: skip
    (run.path / "samples.jsonl").write_text("\n".join(rows) + "\n")
    (run.path / "votes.json").write_text('{"votes": {"<script>": ["base"]}}')
    view = CompareCaptions(run, store=store)
    assert len(view.samples) == 1
    assert "<script" not in view.base.value + view.headline.value + view._repr_html_() and "\x1b" not in view.base.value


def test_a_static_viewer_gets_pictures_and_differences(comparison, store):
    page = CompareCaptions(comparison, store=store)._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 3 and "<ins>" in page and "<del>" in page


def test_differences_ignore_the_case_and_keep_every_word():
    assert pair("The red ball.", "the blue ball.") == ("The <del>red</del> ball.", "the <ins>blue</ins> ball.")
    assert pair("It leaves a lot.", "It is quite simple.") == ("It <del>leaves a lot</del>.", "It <ins>is quite simple</ins>.")
    assert pair("", "a") == ("", "a")
    assert pair("same", "same", marked=True) == ("same", "same")
