"""The monitor beyond one curve: events, metrics, captions, the diagnosis, the whole log, saving, neighbours, TensorBoard."""

from __future__ import annotations

import json
import urllib.request

import pytest

from console import runs_command
from console.readers.monitor import LOG_LINES
from console.runs import launch
from console.runs.state import read_state, write_json
from console.widgets.curve import Curve
from console.widgets.log_pane import LogPane
from tests.console.app.driving import LARGE, SMALL, driven, looked, press, said, scalars, text_of, until

SAVES = """
import signal, time, os
def save(*_): print('a checkpoint', flush=True)
signal.signal(signal.SIGUSR1, save)
print('at work', flush=True)
while True: time.sleep(0.02)
"""


async def watching(pilot, run):
    pilot.app.watch_run(run.id)
    await until(pilot, lambda: pilot.app.current_mode == "monitor" and pilot.app.screen.view is not None
                and pilot.app.screen.view.run_id == run.id)  # fmt: skip
    await looked(pilot)
    return pilot.app.screen


def event(run, step, kind, text):
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"v": 1, "kind": "event", "step": step, "event": kind, "text": text}) + "\n")


def test_checkpoints_spikes_and_nans_are_marked_and_visited_by_key(store):
    run = store.ended(store.finetune("marked", 100))
    for step, kind in ((20, "save"), (50, "spike"), (80, "nan"), (90, "resume")):
        event(run, step, kind, f"it was {kind}")

    async def scene(pilot):
        screen = await watching(pilot, run)
        curve = screen.query_one(Curve)
        rule = next(line for line in text_of(pilot.app).splitlines() if "└" in line)
        assert [c for c in rule if c in "◆▲✗↻"] == ["◆", "▲", "✗", "↻"]
        for step, kind in ((20, "save"), (50, "spike"), (80, "nan"), (90, "resume"), (90, "resume")):
            await press(pilot, "e")
            assert curve.crosshair == step and f"it was {kind}" in text_of(pilot.app).splitlines()[1]
        await press(pilot, "E")
        assert curve.crosshair == 80
        await press(pilot, "escape", "plus", "plus", "plus", "e")  # one that is not in view is scrolled to
        assert curve.crosshair == 20 and curve.shown[0] <= 20 <= curve.shown[1]

    driven(scene, store.app(), LARGE)


def test_any_metric_is_chosen_from_a_list(store):
    run = store.ended(store.finetune("many", 20))
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"kind": "train", "step": 21, "loss": 1.0, "mfu": 0.43, "router_entropy": 2.5}) + "\n")

    async def scene(pilot):
        screen = await watching(pilot, run)
        await press(pilot, "v")
        text = text_of(pilot.app)
        assert "grad norm" in text and "MFU" in text and "router entropy" in text and "2.5" in text
        await press(pilot, "end", "enter")
        await until(pilot, lambda: screen.view.metric == "router_entropy")
        await looked(pilot)
        assert " router entropy" in text_of(pilot.app).splitlines()[1]

    driven(scene, store.app(), LARGE)


def test_sample_captions_replace_the_log_with_new_words_marked(store):
    run = store.finetune("talks", 40)
    rows = [
        {"step": 10, "image": "a/beach.jpg", "prompt": "What?", "text": "a picture"},
        {"step": 20, "image": "a/beach.jpg", "prompt": "What?", "text": "a picture of a dog"},
        {"step": 20, "image": "b.jpg", "prompt": "What?", "text": "\x1b[31mred"},
        {"step": "x"}, {"image": 3},
    ]  # fmt: skip
    file = run.path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def scene(pilot):
        screen = await watching(pilot, run)
        await press(pilot, "a")
        text = text_of(pilot.app)
        assert "beach.jpg  What?" in text and "step     10  a picture" in text and "step     20  a picture of a dog" in text
        assert "\x1b" not in text and "output.log" not in text and "2 pictures" in text
        with open(file, "a") as more:  # a resumed run goes back: what came after that step is replaced
            more.write(json.dumps({"step": 20, "image": "a/beach.jpg", "prompt": "What?", "text": "a picture of a cat"}) + "\n")
        await until(pilot, lambda: "a cat" in text_of(pilot.app))
        assert "a dog" not in text_of(pilot.app)
        await press(pilot, "a")
        assert "output.log" in text_of(pilot.app) and screen.query_one(LogPane).has_focus

    driven(scene, store.app(), LARGE)


def test_a_failed_run_shows_the_reason_a_fix_and_the_log_line(store):
    run = store.finetune("greedy", 5)
    lines = [f"line {i}" for i in range(200)]
    lines[50] = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    run.log.write_text("\n".join(lines) + "\n")
    store.ended(run, "failed", 1)
    fine = store.ended(store.finetune("fine", 5))

    async def scene(pilot):
        app = pilot.app
        screen = await watching(pilot, run)
        text = " ".join(text_of(app).split())
        assert "✗ out of GPU memory exit code 1" in text and "CUDA out of memory. Tried to allocate 2 GiB" in text
        assert "fix --recompute none → full: activations are recomputed" in text and "g starts a new run with it" in text
        assert "R resumes unchanged from the beginning w shows the line" in text
        await press(pilot, "w")
        assert "CUDA out of memory. Tried" in text_of(app) and screen.query_one(LogPane).has_focus
        screen = await watching(pilot, fine)
        assert "out of GPU memory" not in text_of(app)
        await press(pilot, "w")
        assert "no known error" in said(app)

    driven(scene, store.app(), SMALL)


def test_the_log_shows_our_own_lines_without_their_tags(store):
    run = store.finetune("stopped", 5)
    own = ["qwen3vl[stop]: asked to stop; 60 s to end", "qwen3vl[bad-steps]: step 5: the loss is nan; 5 bad steps in a row"]
    run.log.write_text("\n".join(["step 5", *own]))
    store.ended(run, "failed", 1)

    async def scene(pilot):
        screen = await watching(pilot, run)
        text = text_of(pilot.app)
        assert "qwen3vl: asked to stop; 60 s to end" in text and "qwen3vl: step 5: the loss is nan" in text and "qwen3vl[" not in text
        await press(pilot, "w")
        assert screen.query_one(LogPane).needle.startswith("qwen3vl: step 5: the loss"), "and its reason is still found by the tag"
        await press(pilot, "1")
        assert pilot.app.snapshot.get(run.id).last_line.startswith("qwen3vl: step 5") and "qwen3vl[" not in text_of(pilot.app)

    driven(scene, store.app(), LARGE)


def on_card(app, words: str) -> tuple[int, int]:
    """Where these words stand on the screen."""
    return next((line.index(words), y) for y, line in enumerate(text_of(app).splitlines()) if words in line)


@pytest.mark.parametrize("size", [(60, 18), SMALL, LARGE])
def test_a_lost_run_says_what_is_known_and_how_to_go_on(store, size):
    run = store.ended(store.finetune("orphan", 20))
    write_json(run.path / "state.json", read_state(run.path) | {"status": "running", "supervisor_pid": 999_999_99, "ended": None})

    async def scene(pilot):
        app = pilot.app
        await watching(pilot, run)
        text = " ".join(text_of(app).split())
        assert "? its supervisor is gone" in text and "R resumes" in text and "x ends what is left" in text
        await pilot.click(offset=on_card(app, "c clones"))
        await until(pilot, lambda: app.current_mode == "launch" and app.screen.form is not None and app.screen.plan is not None)
        assert app.screen.form.texts()["name"] == "orphan"

    driven(scene, store.app(), size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_failed_conversion_is_explained_and_cloned(store, size):
    run = store.other("convert", "raise SystemExit(3)")
    launch.wait(run, 150)

    async def scene(pilot):
        app = pilot.app
        await watching(pilot, run)
        text = " ".join(text_of(app).split())
        assert "✗ it ended without a known error; the end of its log is below exit code 3" in text
        assert "R resumes c clones, with other options" in text and "w shows the line" not in text
        await press(pilot, "c")
        await until(pilot, lambda: app.current_mode == "launch" and app.screen.kind == "convert" and app.screen.form is not None)

    driven(scene, store.app(), size)


def test_the_cause_of_a_failure_is_what_runs_show_says(store, capsys):
    run = store.finetune("talks", 5)
    run.log.write_text("qwen3vl[bad-steps]: 3 steps in a row had a loss that is NaN; the samples are in skipped.jsonl\n")
    store.ended(run, "failed", 1)
    assert runs_command.runs(["show", "1", "--runs", str(store.root)]) == 0
    shown = " ".join(capsys.readouterr().out.split())

    async def scene(pilot):
        screen = await watching(pilot, run)
        text = " ".join(text_of(pilot.app).split())
        headline = screen.view.diagnosis.headline
        assert f"✗ {headline}" in text and f"why it ended: {headline}" in shown
        assert all(words in text and words in shown for words in ("samples are in skipped.jsonl", "more --lr-warmup-iters"))

    driven(scene, store.app(), LARGE)


def test_home_reads_all_of_a_long_log_and_search_covers_it(store):
    run = store.ended(store.finetune("long", 5))
    count = LOG_LINES * 3
    run.log.write_text("".join(f"line {i}{' Needle' if i in (7, count - 3) else ''}\n" for i in range(count)))

    async def scene(pilot):
        app = pilot.app
        screen = await watching(pilot, run)
        pane = screen.query_one(LogPane)
        assert f"line {count - 1}" in text_of(app) and len(pane.lines) == LOG_LINES
        pane.focus()
        await press(pilot, "home")
        await until(pilot, lambda: pane.all is not None)
        await looked(pilot)
        assert "line 0 " in text_of(app) and f"all {count:,} lines" in text_of(app)
        with open(run.log, "a") as file:
            file.write("one more\n")
        await looked(pilot)
        assert "line 0 " in text_of(app)
        await press(pilot, "F")
        assert pane.all is None and "one more" in text_of(app)
        await press(pilot, "slash", *"needle", "enter")
        assert "2 of 2" not in text_of(app) and f"line {count - 3} Needle" in text_of(app)
        await press(pilot, "escape")
        pane.focus()
        await press(pilot, "home")
        await until(pilot, lambda: pane.all is not None)
        await press(pilot, "slash")
        screen.query_one("#find").value = "line 7 "
        await press(pilot, "enter")
        await until(pilot, lambda: "line 7 Needle" in text_of(app) and "1 of 1" in text_of(app))
        await press(pilot, "escape", "end")
        assert pane.all is None and "one more" in text_of(app)

    driven(scene, store.app(), LARGE)


def test_save_now_reaches_the_training_and_is_confirmed(store):
    run = store.finetune("saves", 10, 100, SAVES)

    async def scene(pilot):
        await watching(pilot, run)
        await until(pilot, lambda: "at work" in run.log.read_text())
        await press(pilot, "s")
        await until(pilot, lambda: "asked to save at its next step" in said(pilot.app))
        await until(pilot, lambda: "a checkpoint" in text_of(pilot.app), "the checkpoint")
        assert run.alive
        launch.stop(run)
        launch.wait(run, 150)
        await press(pilot, "s")
        await until(pilot, lambda: "only a live finetune can save" in said(pilot.app))

    driven(scene, store.app(), LARGE)


def test_neighbouring_runs_and_a_single_pane(store):
    for name in ("one", "two"):
        store.ended(store.finetune(name, 20))

    async def scene(pilot):
        app = pilot.app
        screen = await watching(pilot, store.store.get(2))
        await press(pilot, "right_square_bracket")
        await until(pilot, lambda: screen.run_id == "0001-one" and screen.view is not None)
        await press(pilot, "right_square_bracket")
        assert "this is the oldest run" in said(app)
        await press(pilot, "left_square_bracket")
        await until(pilot, lambda: screen.run_id == "0002-two")
        screen.query_one(Curve).focus()
        await press(pilot, "z")
        assert "output.log" not in text_of(app) and screen.query_one(Curve).size.height > 15
        await press(pilot, "z")
        assert "output.log" in text_of(app)
        screen.query_one(LogPane).focus()
        await press(pilot, "z")
        assert not screen.query_one("#top").display
        await press(pilot, "z")

    driven(scene, store.app(), SMALL)


def test_tensorboard_is_started_on_the_runs_and_its_link_is_copied(store):
    """The real TensorBoard, queried over HTTP; it ends with the console."""
    run = store.ended(store.finetune("board", 5))
    none = store.ended(store.finetune("none", 5))
    scalars(run)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 2)
        await press(pilot, "b")
        await until(pilot, lambda: f"{none.id}: no scalars for TensorBoard" in said(app))
        await press(pilot, "down", "b")
        await until(pilot, lambda: app.clipboard.startswith("http://127.0.0.1:"))
        assert app.subcommand.startswith("qwen3vl runs tensorboard 1")

        def tags():
            with urllib.request.urlopen(app.clipboard + "data/plugin/scalars/tags", timeout=60) as answer:
                return json.load(answer)

        await until(pilot, lambda: tags() != {})  # it answers before it has read the files
        assert [list(found) for found in tags().values()] == [["lm loss"]]
        board = app._tensorboards[0]
        app.copy_to_clipboard("")
        await press(pilot, "b")
        await until(pilot, lambda: app.clipboard == board.url)
        assert app._tensorboards == [board] and board.alive, "the one that runs is shown again"

    app = driven(scene, store.app(), LARGE)
    assert not app._tensorboards[0].alive
