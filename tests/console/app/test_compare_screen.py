"""Screen 4: captions side by side."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from console.runs import launch
from console.widgets.caption import count_words, pair, words_of
from console.widgets.picture import read_picture
from tests.console.app.driving import LARGE, LOOKS, SMALL, driven, looked, press, said, text_of, until

LONG = "Of course. The picture shows a meadow with three red horses and a dog."
SHORT = "Three red horses and a dog in a meadow."


def rows_of(pictures, model, text, done=True):
    return "".join(
        json.dumps({"v": 1, "image": str(p), "prompt": "What is it?", "model": model, "text": text, "seconds": 1.0, "done": done}) + "\n"
        for p in pictures
    )


@pytest.fixture
def pictures(tmp_path):
    made = []
    for i in range(3):
        made.append(tmp_path / f"scene-{i}.png")
        Image.new("RGB", (64, 48), (200, 30 + 60 * i, 40)).save(made[-1])
    return made


@pytest.fixture
def compared(store, pictures):
    run = store.other("compare", "print('3 of 3 captions')")
    launch.wait(run, 30)
    (run.path / "samples.jsonl").write_text(rows_of(pictures, "base", LONG) + rows_of(pictures, "tuned", SHORT))
    return run


async def at_compare(pilot):
    await press(pilot, "4")
    await looked(pilot)
    return pilot.app.screen


def half_cells(app):
    """Colours of the half cells on the screen."""
    strips = app.screen._compositor.render_strips()
    return {(s.style.color, s.style.bgcolor) for strip in strips for s in strip if "▀" in s.text and s.style}


@pytest.mark.parametrize("size, theme", LOOKS)
def test_picture_and_both_captions(store, compared, size, theme):
    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app) and half_cells(pilot.app))
        text = text_of(pilot.app)
        assert "base · 14 words" in text and "tuned · 9 words" in text
        assert "Of course." in text and "Three red horses" in text and "“What is it?”" in text and "greedy" in text
        assert "✓ done" in text and "scene-0.png" in text
        first = half_cells(pilot.app)
        await press(pilot, "right")
        await until(pilot, lambda: "scene-1.png" in text_of(pilot.app) and half_cells(pilot.app) != first)
        await press(pilot, "left", "left")
        assert "Picture 3/3" in text_of(pilot.app)
        assert screen.sample.image.endswith("scene-2.png")

    driven(scene, store.app(), size, theme)


def test_differences_are_marked_and_not_by_colour_alone(store, compared):
    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "Three red" in text_of(pilot.app))

        def styles():
            strips = pilot.app.screen._compositor.render_strips()
            return [(s.text, s.style) for strip in strips for s in strip if s.style]

        assert any("Of course" in text and style.strike for text, style in styles())
        assert any("in a" in text and style.underline and style.bold for text, style in styles())
        await press(pilot, "w")
        assert not any(style.strike or style.underline for _, style in styles())

    driven(scene, store.app())


def test_captions_stream_in_while_they_are_written(store, pictures):
    run = store.other("compare", "import time; print('base 0 of 3', flush=True); time.sleep(600)")
    file = run.path / "samples.jsonl"

    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "base 0 of 3" in text_of(pilot.app))
        assert "captions come as they are written" in text_of(pilot.app)
        file.write_text(rows_of(pictures[:1], "base", "Of co", False))
        await until(pilot, lambda: "Of co" in text_of(pilot.app))
        assert "not written yet" in text_of(pilot.app) and "words …" in text_of(pilot.app)
        with open(file, "a") as more:
            more.write(rows_of(pictures, "base", LONG) + rows_of(pictures[:1], "tuned", SHORT))
        await until(pilot, lambda: "Three red" in text_of(pilot.app))
        assert "Picture 1/3" in text_of(pilot.app) and "1 with both captions" in text_of(pilot.app)

    driven(scene, store.app())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_without_a_comparison_the_form_is_there_and_enter_starts_one(store, tmp_path, pictures, size, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    values = {"base": str(tmp_path / "a"), "tuned_hf": str(tmp_path / "b"), "heldout_images": str(tmp_path), "prompt": "What is it?"}
    (tmp_path / "workspace.json").write_text(json.dumps(values))
    started = []
    monkeypatch.setattr(launch, "start", lambda run: started.append(run) or (run.path / "samples.jsonl").write_text(
        rows_of(pictures, "base", LONG) + rows_of(pictures, "tuned", SHORT)
    ))  # fmt: skip

    async def scene(pilot):
        screen = await at_compare(pilot)
        text = text_of(pilot.app)
        assert "tuned" in text and "temperature" in text and "What is it?" in text
        assert ("No comparison yet" in text) == (size == LARGE)
        assert screen.focused.id == "o-base"
        await press(pilot, "enter")
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        assert pilot.app.current_mode == "compare" and screen.run_id == "0001-compare" == started[0].id
        assert started[0].options["prompt"] == "What is it?" and started[0].options["html"].endswith("captions.html")
        await press(pilot, "t")
        assert screen.has_class("-ask") == (size == SMALL)
        await press(pilot, "escape")
        assert not screen.has_class("-ask")

    driven(scene, store.app(tmp_path), size)


def test_a_form_that_breaks_a_rule_starts_nothing(store):
    async def scene(pilot):
        screen = await at_compare(pilot)
        await press(pilot, "enter")
        assert "--base: required" in said(pilot.app)
        from console.widgets.optionform import OptionForm

        screen.query_one(OptionForm).fill({"base": "none", "tuned": "none", "images": ["none"]})
        await press(pilot, "ctrl+g")
        assert "--base none: no such file or folder" in said(pilot.app) and store.store.list() == []

    driven(scene, store.app())


def test_a_comparison_that_failed_says_why(store):
    run = store.other("compare", "import sys; print('qwen3vl: --base x: no such folder', file=sys.stderr); raise SystemExit(2)")
    launch.wait(run, 30)

    async def scene(pilot):
        await at_compare(pilot)
        text = text_of(pilot.app)
        assert "✗ failed" in text and "no such folder" in text and "3 shows its log" in text

    driven(scene, store.app())


def test_where_the_page_is(store, compared, tmp_path):
    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        await press(pilot, "e")
        assert "is written when all captions are" in said(pilot.app)
        (tmp_path / "captions.html").write_text("<html>")
        await press(pilot, "e")
        assert pilot.app.clipboard == str(tmp_path / "captions.html")

    driven(scene, store.app())


def test_the_comparison_chosen_in_the_table_is_the_one_shown(store, compared):
    newer = store.other("compare", "pass")
    launch.wait(newer, 30)

    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: screen.run_id == "0002-compare")
        pilot.app.set_focus(None)
        await press(pilot, "escape", "1", "down", "enter")
        assert pilot.app.screen.run_id == "0001-compare"
        await press(pilot, "4")
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))

    driven(scene, store.app(), LARGE)


def test_a_picture_that_is_gone_or_no_picture_is_one_line(store, compared, pictures):
    pictures[0].unlink()
    pictures[1].write_text("no picture")

    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "is not there any more" in said(pilot.app))
        assert "Of course." in text_of(pilot.app)
        await press(pilot, "right")
        await until(pilot, lambda: "cannot be shown" in said(pilot.app))

    driven(scene, store.app())


def test_pictures_are_read_upright_and_small(tmp_path):
    picture = Image.new("RGB", (3000, 1500), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(str(tmp_path / "turned.jpg")).size == (512, 1024)
    Image.new("RGBA", (10, 10), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_picture(str(tmp_path / "clear.png")).mode == "RGB"


def test_words():
    text = "The dog's well-lit  bowl, 3.5 m."
    assert "".join(words_of(text)) == text and count_words(text) == 7
    first, second = pair("A red dog.", "A blue dog.", True)
    assert first.plain == "A red dog." and [first.plain[s.start : s.end] for s in first.spans if s.style] == ["red"]
    assert [second.plain[s.start : s.end] for s in second.spans if s.style] == ["blue"]
    same, _ = pair("Same.", "same.", True)
    assert not [s for s in same.spans if s.style]
    assert "\x1b" not in pair("a\x1b[31mb", "c", True)[0].plain
