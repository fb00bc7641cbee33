"""Every action of the Compare screen works by each of its keys and by mouse, as those of `test_every_action`."""

from __future__ import annotations

import json

from PIL import Image

from console.runs import launch
from console.runs.captions import read_votes
from console.widgets.caption_columns import CaptionBox
from console.widgets.option_form import OptionForm
from qwen3vl_core.options import CompareOptions
from tests.console.app.action_cases import (
    TALL,
    Case,
    copies,
    dialog,
    every,
    opens,
)
from tests.console.app.driving import SLEEPER, driven, looked, until


def test_compare(store, tmp_path):
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for number, picture in enumerate(pictures):
        # flat: every cell of a picture is drawn again under each dialog
        Image.new("RGB", (64, 4), (200, 60 * number, 40)).save(picture)
    older, run = (compared(store, pictures) for _ in range(2))
    live = store.other("compare", SLEEPER)
    store.ended(store.finetune("one", 5))

    def again(app):
        if not live.alive:
            launch.resume(live)

    def choices(app):
        return read_votes(run).choices

    def asks(app):
        return app.screen.has_class("-ask")

    async def scene(pilot):
        app = pilot.app

        async def show(which):
            app.comparison = which.id
            app.action_show_screen("compare")
            await until(pilot, lambda: app.current_mode == "compare" and app.screen.query("#nothing"))
            app.screen._ask(False)
            app.screen.show_snapshot(app.snapshot)
            await until(pilot, lambda: app.screen.run_id == which.id and (which is live or len(app.screen.samples) == 3))
            app.screen.index = 0
            app.screen._focus_caption()
            await looked(pilot)

        async def home(app):
            await show(run)

        await until(pilot, lambda: len(app.screen.rows) == 4)
        await home(app)

        async def put_in(app):
            app.screen.open_form({"prompt": f"Why {app.screen.query_one(OptionForm).texts()['prompt']}"})
            # the form takes the focus, and letters are no keys there
            await looked(pilot)
            app.screen.set_focus(None)

        picture = lambda app: app.screen.index  # noqa: E731
        await every(pilot, "compare", {
            "compare.before": Case(picture, after=home, wanted=2), "compare.after": Case(picture, after=home, wanted=1),
            "compare.form": Case(asks, after=home, wanted=True),
            "compare.vote_left": Case(lambda app: choices(app).get(str(pictures[0])), after=("left_square_bracket",), wanted="base"),
            "compare.vote_right": Case(lambda app: choices(app).get(str(pictures[0])), after=("right_square_bracket",), wanted="tuned"),
            "compare.vote": Case(lambda app: choices(app).get(str(pictures[0])), lambda app: app.screen.query(CaptionBox).last().focus(),
                                 ("right_square_bracket",), wanted="tuned"),
            "compare.same": Case(lambda app: choices(app).get(str(pictures[0])), after=("equals_sign",), wanted="same"),
            "compare.blind": Case(lambda app: bool(app.screen.blind)),
            "compare.reveal": Case(lambda app: app.screen.hidden, ("b",), ("b",), wanted=False),
            "compare.words": Case(lambda app: app.screen.marked),
            "compare.models": Case(dialog, None, ("escape",), wanted="PickModels"),
            "compare.report": Case(lambda app: (run.path / "captions.html").exists(),
                                   lambda app: (run.path / "captions.html").unlink(missing_ok=True), wanted=True),
            "compare.full": opens("FullPicture"),
            "compare.unvoted": Case(picture, after=home, wanted=1),
            "compare.another_seed": Case(lambda app: app.screen.run_id, after=home, sure=True),
            "compare.clone": Case(asks, after=home, wanted=True),
            "compare.undo": Case(lambda app: app.screen.query_one(OptionForm).texts()["prompt"], put_in, home),
            "compare.older": Case(lambda app: app.screen.run_id, after=home, wanted=older.id),
            "compare.newer": Case(lambda app: app.screen.run_id, lambda app: show(older), home, wanted=run.id),
            "compare.first": Case(picture, ("right",), home, wanted=0), "compare.last": Case(picture, after=home, wanted=2),
            "compare.start": Case(asks, after=home, wanted=True), "compare.start_field": Case(asks, after=home, wanted=True),
            "compare.copy": copies(lambda app: app.screen.row.command),
            "compare.stop": Case(lambda app: live.status, lambda app: (again(app), show(live))[1], home, sure=True, wanted="stopped"),
            "compare.leave": Case(asks, ("t",), home, wanted=False, on_bar=True),
        })  # fmt: skip

    driven(scene, store.app(), TALL)


def compared(store, pictures):
    """A comparison that is done, sampled at a temperature."""
    options = CompareOptions(base="base", tuned=["tuned"], images=["pictures"], temperature=0.8)
    run = store.store.create("compare", options, ["true"])
    rows = [
        {"v": 1, "image": str(picture), "prompt": "What?", "model": model, "text": f"a field {model}", "seconds": 1.0, "done": True}
        for model in ("base", "tuned") for picture in pictures
    ]  # fmt: skip
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return store.ended(run)
