"""Every screen as text with its colours, at two sizes, dark and light.

The expected screens are text files in `snapshots`. After an intended change: QWEN3VL_SNAPSHOTS=write pytest ...
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from textual.widgets import Tabs
from textual_image.widget import HalfcellImage

from qwen3vl_core.options import COMMANDS
from qwen3vl_core.options.declare import option
from tests.console.app.driving import LARGE, SMALL, Store, driven, looked, press, text_of, until


@dataclass
class FormOptions:
    """A form that does not depend on the options of the commands."""

    source: str = option(help="Model or checkpoint to read", group="Checkpoint", positional=True, path="model")
    target: str = option(help="Folder to write", group="Checkpoint", positional=True, path="folder")
    dtype: str = option("keep", help="Precision to write", group="Checkpoint", choices=("keep", "bf16", "fp32"))
    shards: int = option(1, help="Files to write", group="Checkpoint", minimum=1, maximum=512)
    verify: bool = option(False, help="Read the target again and compare", group="Report")
    report: str | None = option(None, help="Write what was done as JSON", group="Report", path="file")


FOLDER = Path(__file__).parent / "snapshots"
LOOKS = [(SMALL, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark"), (LARGE, "textual-light")]


def screen_of(app) -> str:
    """The screen's text, then for each row one letter per cell for its style: cells of the same style have the same letter."""
    width, height = app.size
    letters: dict[tuple, str] = {}
    rows = []
    for strip in app.screen._compositor.render_strips()[:height]:
        cells = []
        for segment in strip.crop(0, width):
            style = segment.style
            look = (str(style.color), str(style.bgcolor), style.bold, style.underline, style.strike, style.reverse) if style else ()
            cells.append(letters.setdefault(look, chr(ord("a") + len(letters)) if len(letters) < 26 else chr(0x3B1 + len(letters) - 26))
                         * segment.cell_length)  # fmt: skip
        rows.append(re.sub(r"(.)\1*", lambda found: f"{found[1]}{len(found[0])}", "".join(cells)))
    legend = [f"{letter} = {' '.join(map(str, look))}" for look, letter in letters.items()]
    return "\n".join([*(line.rstrip() for line in text_of(app).splitlines()), "", *rows, "", *legend]) + "\n"


def check(name: str, app) -> None:
    """The screen equals the file; with QWEN3VL_SNAPSHOTS=write the file is rewritten."""
    file, found = FOLDER / f"{name}.txt", screen_of(app)
    if os.environ.get("QWEN3VL_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    expected = file.read_text(encoding="utf-8")
    changed = "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", n=0, lineterm=""))
    assert found == expected, f"{name}: QWEN3VL_SNAPSHOTS=write rewrites it if this is intended\n{changed}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    # the bar shows the end of the store's path
    folder = tmp_path / "the-folder-of-the-screens"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("console.screens.compare.PictureWidget", HalfcellImage)
    made = Store(folder / "runs")
    yield made
    made.tidy()


def placed(run):
    """Paths independent of the test's folder."""
    plan = json.loads((run.path / "plan.json").read_text())
    plan["options"] |= {"load": "/models/base", "train_data": "/data/train", "sample_images": ["/data/beach.jpg"]}
    (run.path / "plan.json").write_text(json.dumps(plan))


def fill(store):
    """Runs of every kind and state, with fixed numbers and times."""
    store.ended(store.finetune("first captions", 100, 100, size="2B", lr=3e-5))
    convert = store.store.create("convert", {"source": "/models/base", "target": "/models/base-mcore"}, ["true"])
    convert.log.write_text("verified: 750 tensors bitwise the same\n")
    store.ended(convert)
    broken = store.finetune("broken", 3, 100, size="8B", tp=2)
    broken.log.write_text("step 3/100\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB\nChildFailedError\n")
    store.ended(broken, "failed", 1)
    live = store.finetune("beach", 60, 100, "import time; time.sleep(600)", size="8B", tp=4, sample_interval=20)
    for run in store.store.list():
        if run.kind == "finetune":
            placed(run)
    with open(live.metrics, "a") as file:
        for step, event, text in ((20, "save", "checkpoint iter_0000020 in 1.0 s"), (33, "spike", "step 33: loss 9.1 is a spike"),
                                  (40, "save", "checkpoint iter_0000040 in 1.1 s"), (50, "nan", "step 50: the loss is nan")):  # fmt: skip
            file.write(json.dumps({"v": 1, "kind": "event", "step": step, "event": event, "text": text}) + "\n")
        gpu = {"mfu": 0.43, "tflops": 425.0, "gpu_utilisation": 97.0, "gpu_watts": 640.0, "memory_gib": 61.3, "data_seconds": 0.1}
        file.write(json.dumps({"v": 1, "kind": "train", "step": 61, "time": 1122.0, "loss": 1.142, "lr": 1e-5, "grad_norm": 0.5,
                               "step_seconds": 2.0, "tokens_per_second": 41200.0, **gpu}) + "\n")  # fmt: skip
    words = ["a picture", "a woman on a beach", "a woman and her dog on the beach"]
    rows = [{"step": 20 * (i + 1), "image": "beach.jpg", "prompt": "What is here?", "text": text} for i, text in enumerate(words)]
    (live.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return live


@pytest.mark.parametrize("size, theme", LOOKS, ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}")
def test_screens_match_their_snapshots(store, size, theme, monkeypatch):
    live = fill(store)
    monkeypatch.setattr("console.readers.run_rows.RunRow.age", lambda self, now: 61.0 * (1 + self.run.number))
    monkeypatch.setattr("console.widgets.run_numbers._elapsed", lambda row: 605.0)
    monkeypatch.setitem(COMMANDS, "convert", FormOptions)
    tag = f"{size[0]}x{size[1]}-{theme.removeprefix('textual-')}"

    async def scene(pilot):
        app = pilot.app

        def snap(name):
            app.clear_notifications()
            check(f"{name}-{tag}", app)

        await until(pilot, lambda: len(app.screen.rows) == 4 and app.screen.rows[0].step == 61)
        await press(pilot, "space")
        app.clear_notifications()
        await looked(pilot)
        snap("runs")
        await press(pilot, "question_mark")
        if size == SMALL:  # a larger one shows the other screens' keys too
            snap("help")
        await press(pilot, "escape", "escape", "home", "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.stories)
        await looked(pilot)
        await press(pilot, "E")
        snap("monitor")
        await press(pilot, "a")
        snap("captions")
        app.watch_run("0003-broken")
        await until(pilot, lambda: app.screen.view is not None and app.screen.view.diagnosis is not None)
        await looked(pilot)
        snap("failed")
        await press(pilot, "2")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None)
        app.screen.query_one(Tabs).active = "kind-convert"
        await until(pilot, lambda: app.screen.kind == "convert" and app.screen.plan.kind == "convert" and app.screen.form is not None)
        app.screen.form.fill({"shards": 0, "verify": True})
        app.screen.form.focus_first()
        await looked(pilot)
        snap("launch")

    driven(scene, store.app(), size, theme)
    assert live.alive


def fill_comparison(store, folder):
    """A finished comparison with references and scores of one picture that looks the same everywhere."""
    run = store.store.create("compare", {"base": "/models/base", "tuned": ["/models/tuned"], "images": ["/pictures"]}, ["true"])
    store.ended(run)
    picture = Image.new("RGB", (96, 64), (110, 170, 230))
    picture.paste((60, 140, 70), (0, 40, 96, 64))
    picture.paste((250, 210, 60), (70, 6, 86, 22))
    pictures = [folder / f"meadow-{number}.png" for number in range(3)]
    for file in pictures:
        picture.save(file)
    said = {"base": "Of course. The picture shows a wide green meadow below a blue sky, and the sun stands on the right.",
            "tuned": "A green meadow under a blue sky, the sun on the right."}  # fmt: skip
    references = ["A green meadow, a blue sky and the sun.", "Grass below a clear sky.", "The sun over a field."]
    head = {
        "v": 1, "prompt": "Describe the picture.", "models": {name: {"path": f"/models/{name}", "size": "4B"} for name in said},
        "notes": [], "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_new_tokens": 64},
        "pictures": [{"image": str(p), "references": [text]} for p, text in zip(pictures, references, strict=True)],
    }  # fmt: skip
    (run.path / "comparison.json").write_text(json.dumps(head))
    rows = [{"v": 1, "image": str(p), "prompt": head["prompt"], "model": name, "text": text, "seconds": 1.5, "done": True}
            for p in pictures for name, text in said.items()]  # fmt: skip
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize("size, theme", LOOKS, ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}")
def test_compare_and_the_first_page_match_their_snapshots(store, size, theme, tmp_path):
    fill_comparison(store, tmp_path)
    tag = f"{size[0]}x{size[1]}-{theme.removeprefix('textual-')}"
    names = {name: f"/demo/{name}" for name in ("train_json", "data", "base", "base_mcore", "tuned_hf", "heldout_images")}

    async def scene(pilot):
        app = pilot.app

        def snap(name):
            app.clear_notifications()
            check(f"{name}-{tag}", app)

        await press(pilot, "4")
        await until(pilot, lambda: app.screen.sample is not None and "▀" in text_of(app) and app.screen.view.scores is not None)
        await press(pilot, "right_square_bracket")
        await until(pilot, lambda: "★ tuned" in text_of(app))
        app.clear_notifications()
        await looked(pilot)
        snap("compare")
        app.store_root = Path("/home/me/.qwen3vl/runs")
        app.action_start_page()
        await looked(pilot)
        snap("first")
        await press(pilot, "p")
        app.screen.query_one("#asked").cursor_blink = False
        await pilot.pause()
        snap("recipe")
        await press(pilot, "escape", "escape")
        app.workspace, app.workspace_folder = names, Path("/home/me/.qwen3vl")
        app.action_start_page()
        await looked(pilot)
        snap("steps")

    driven(scene, store.app(), size, theme)
