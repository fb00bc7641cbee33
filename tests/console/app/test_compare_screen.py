"""Screen 4: captions side by side."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from console.runs import launch
from console.widgets.caption import several
from console.widgets.caption_columns import CaptionBox
from console.widgets.option_form import OptionForm
from console.widgets.picture import read_picture
from tests.console.app.comparisons import LONG, SHORT, at_compare, rows_of
from tests.console.app.driving import LARGE, LOOKS, SMALL, driven, press, said, text_of, until


def half_cells(app):
    """Colours of the half cells on the screen."""
    strips = app.screen._compositor.render_strips()
    return {(s.style.color, s.style.bgcolor) for strip in strips for s in strip if "▀" in s.text and s.style}


@pytest.mark.parametrize("size, theme", LOOKS)
def test_the_picture_and_both_captions_are_shown(store, compared, size, theme):
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


def test_differences_are_marked_by_more_than_colour(store, compared):
    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "Three red" in text_of(pilot.app))

        def styles():
            strips = pilot.app.screen._compositor.render_strips()
            return [(s.text, s.style) for strip in strips for s in strip if s.style]

        assert any("Of course" in text and style.strike for text, style in styles())
        assert any("in a" in text and style.underline and style.bold for text, style in styles())
        await press(pilot, "d")
        assert not any(style.strike or style.underline for _, style in styles())

    driven(scene, store.app())


def test_captions_stream_in_while_they_are_written(store, pictures):
    run = store.other("compare", "import time; print('base 0 of 3', flush=True); time.sleep(600)")
    file = run.path / "samples.jsonl"

    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "base 0 of 3" in text_of(pilot.app))
        assert "captions appear as they are written" in text_of(pilot.app)
        file.write_text(rows_of(pictures[:1], "base", "Of co", False))
        await until(pilot, lambda: "Of co" in text_of(pilot.app))
        assert "not written yet" in text_of(pilot.app) and "words …" in text_of(pilot.app)
        with open(file, "a") as more:
            more.write(rows_of(pictures, "base", LONG) + rows_of(pictures[:1], "tuned", SHORT))
        await until(pilot, lambda: "Three red" in text_of(pilot.app))
        assert "Picture 1/3" in text_of(pilot.app) and "1 with both captions" in text_of(pilot.app)

    driven(scene, store.app())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_without_a_comparison_the_form_is_shown_and_enter_starts_one(store, tmp_path, pictures, size, monkeypatch):
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
        assert "Start this compare?" in text_of(pilot.app) and not started
        await press(pilot, "y")
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        assert pilot.app.current_mode == "compare" and screen.run_id == "0001-compare" == started[0].id
        assert started[0].options["prompt"] == "What is it?" and started[0].options["tuned"] == [str(tmp_path / "b")]
        assert not screen.has_class("-ask")
        # the prompt is edited, and enter asks again
        await press(pilot, "t")
        assert screen.has_class("-ask") and screen.focused.id == "o-prompt" and screen.focused.value == "What is it?"
        await press(pilot, "end", "!", "enter", "y")
        await until(pilot, lambda: screen.run_id == "0002-compare")
        assert started[1].options["prompt"] == "What is it?!"
        await press(pilot, "t", "escape")
        assert not screen.has_class("-ask")

    driven(scene, store.app(tmp_path), size)


def test_a_form_that_breaks_a_rule_starts_nothing(store):
    async def scene(pilot):
        screen = await at_compare(pilot)
        await press(pilot, "enter")
        assert "--base: required" in said(pilot.app)
        screen.query_one(OptionForm).fill({"base": "none", "tuned": "none", "images": ["none"]})
        await press(pilot, "ctrl+g")
        assert "--base none: no such file or folder" in said(pilot.app) and store.store.list() == []

    driven(scene, store.app())


def test_a_failed_comparison_shows_the_reason(store):
    run = store.other("compare", "import sys; print('qwen3vl: --base x: no such folder', file=sys.stderr); raise SystemExit(2)")
    launch.wait(run, 150)

    async def scene(pilot):
        await at_compare(pilot)
        text = text_of(pilot.app)
        assert "✗ failed" in text and "no such folder" in text and "3 shows its log" in text

    driven(scene, store.app())


def test_captions_are_exported_as_a_page_and_as_json_with_the_votes(store, compared):
    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        await press(pilot, "right_square_bracket", "e")
        await until(pilot, lambda: pilot.app.clipboard == str(compared.path / "captions.html"))
        page, data = (compared.path / "captions.html").read_text(), json.loads((compared.path / "captions.json").read_text())
        assert page.count("data:image/jpeg;base64,") == 3 and "★ best" in page
        assert data["votes"] == {"base": 0, "tuned": 1, "same": 0} and data["captions"][0]["vote"] == "tuned"

    driven(scene, store.app())


def several_checkpoints(store, pictures):
    """A comparison of three checkpoints with references, the last one still writing."""
    run = store.other("compare", "import time; print('step 300 40%', flush=True); time.sleep(600)")
    names = ("base", "step 100", "step 200", "step 300")
    head = {
        "v": 1, "prompt": "What?", "models": {n: {"path": f"run/{n}", "size": "tiny"} for n in names}, "notes": ["Mind this."],
        "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3, "max_new_tokens": 64},
        "pictures": [{"image": str(p), "references": [SHORT]} for p in pictures],
    }  # fmt: skip
    (run.path / "comparison.json").write_text(json.dumps(head))
    rows = rows_of(pictures, "base", LONG) + rows_of(pictures, "step 100", "A horse.") + rows_of(pictures, "step 200", SHORT)
    (run.path / "samples.jsonl").write_text(rows + rows_of(pictures[:2], "step 300", SHORT))
    return run


@pytest.mark.parametrize("size", [SMALL, (200, 50)])
def test_several_checkpoints_are_compared_with_scores(store, pictures, size):
    several_checkpoints(store, pictures)

    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: len(screen.query(CaptionBox)) == 4 and "ROUGE-L" in text_of(pilot.app))
        text = text_of(pilot.app)
        assert "step 100 · 2 words" in text and "reference" in text and "seed 3" in text and "2 with all captions" in text
        assert screen.view.scores.models["step 200"].rouge_l == 1 > screen.view.scores.models["step 100"].rouge_l
        # the last column is scrolled to if it does not fit
        await press(pilot, "tab", "tab", "tab")
        assert "step 300 · 9 words" in text_of(pilot.app)
        await press(pilot, "end")
        await until(pilot, lambda: "not written yet" in text_of(pilot.app))
        await press(pilot, "v")
        assert "a vote needs all captions" in said(pilot.app)

    driven(scene, store.app(), size)


def test_checkpoints_of_runs_are_chosen_from_a_list(store, tmp_path, pictures, compared):
    run = store.finetune("caption", steps=40)
    for step in (20, 40):
        folder = run.path / "checkpoints" / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / ".metadata").write_bytes(b"")
    (run.path / "checkpoints" / "iter_0000060").mkdir()  # not whole

    async def scene(pilot):
        screen = await at_compare(pilot)
        await press(pilot, "m")
        await until(pilot, lambda: "step 40" in text_of(pilot.app))
        text = text_of(pilot.app)
        assert "0002-caption  step 20" in text and "loss 2.104" in text and "step 60" not in text
        await press(pilot, "space", "down", "space", "enter")
        await until(pilot, lambda: screen.has_class("-ask"))
        chosen = screen.query_one(OptionForm).texts()["tuned"].split()
        assert [path.rpartition("/")[2] for path in chosen] == ["iter_0000020", "iter_0000040"]
        # from within a field, and cancelled
        await press(pilot, "f2")
        await until(pilot, lambda: "step 40" in text_of(pilot.app))
        await press(pilot, "escape")
        assert screen.query_one(OptionForm).texts()["tuned"].split() == chosen

    driven(scene, store.app())


def test_another_seed_is_refused_with_greedy_decoding(store, compared, pictures, monkeypatch):
    monkeypatch.setattr(launch, "start", lambda run: None)

    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        await press(pilot, "n")
        assert "greedy, so every seed gives the same" in said(pilot.app)
        plan = json.loads((compared.path / "plan.json").read_text())
        plan["options"]["temperature"] = 0.8
        (compared.path / "plan.json").write_text(json.dumps(plan))
        screen.row = None
        pilot.app._watcher = None
        await until(pilot, lambda: screen.row is not None and screen.row.run.options["temperature"] == 0.8)
        await press(pilot, "n", "y")
        await until(pilot, lambda: screen.run_id == "0002-compare")
        assert store.store.get("2").options["seed"] == 1 and store.store.get("2").options["temperature"] == 0.8
        # and back to the one before
        await press(pilot, "greater_than_sign", "less_than_sign")
        await until(pilot, lambda: screen.run_id == "0001-compare" and "Picture 1/3" in text_of(pilot.app))
        assert "there is no newer comparison" in said(pilot.app)

    driven(scene, store.app())


def test_the_picture_fills_the_terminal_and_its_path_is_copied(store, compared, pictures):
    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: half_cells(pilot.app))
        await press(pilot, "o")
        await until(pilot, lambda: "esc closes" in text_of(pilot.app) and half_cells(pilot.app))
        lines = text_of(pilot.app).splitlines()
        assert sum("▀" in line for line in lines) >= 22
        await press(pilot, "y", "escape")
        assert pilot.app.clipboard == str(pictures[0]) and "Picture 1/3" in text_of(pilot.app)

    driven(scene, store.app())


def test_the_comparison_chosen_in_the_table_is_the_one_shown(store, compared):
    newer = store.other("compare", "pass")
    launch.wait(newer, 150)

    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: screen.run_id == "0002-compare")
        pilot.app.set_focus(None)
        await press(pilot, "escape", "1", "down", "enter")
        assert pilot.app.screen.run_id == "0001-compare"
        await press(pilot, "4")
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))

    driven(scene, store.app(), LARGE)


def test_missing_and_invalid_pictures_are_one_line_errors(store, compared, pictures):
    pictures[0].unlink()
    pictures[1].write_text("no picture")

    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "does not exist any more" in said(pilot.app))
        assert "Of course." in text_of(pilot.app)
        await press(pilot, "right")
        await until(pilot, lambda: "cannot be shown" in said(pilot.app))

    driven(scene, store.app())


def test_pictures_are_read_upright_and_scaled_down(tmp_path):
    picture = Image.new("RGB", (3000, 1500), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(str(tmp_path / "turned.jpg")).size == (512, 1024)
    Image.new("RGBA", (10, 10), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert read_picture(str(tmp_path / "clear.png")).mode == "RGB"


def test_different_words_are_marked():
    def marked(content):
        return [content.plain[s.start : s.end] for s in content.spans if s.style]

    first, second = several(["A red dog.", "A blue dog."], True)
    assert first.plain == "A red dog." and marked(first) == ["red"] and marked(second) == ["blue"]
    same, _ = several(["Same.", "same."], True)
    assert not marked(same)
    assert "\x1b" not in several(["a\x1b[31mb", "c"], True)[0].plain
    base, one, two = several(["a red dog", "a dog", "a big red dog"], True)
    assert (marked(base), marked(one), marked(two)) == ([], [], ["big"])
    assert not any(marked(text) for text in several(["a", "b", "c"], True, blind=True))
