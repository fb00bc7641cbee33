"""Captions side by side: live, with their differences, and saved votes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from console.notebook import CompareCaptions, captions, scores
from console.runs import captions as console_votes
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
    run = recorded(store, "compare", base="/models/base", tuned=["/models/tuned"])
    for n, path in enumerate(pictures):
        write(run, path, "base", f"The picture shows a red ball and {n} <b>cats</b>.")
        write(run, path, "tuned", f"A red ball and {n} dogs.")
    return run


def test_pictures_captions_and_differences_are_shown(comparison, store):
    view = CompareCaptions(comparison, store=store)
    assert "<ins>dogs</ins>" in view.columns["tuned"].value
    assert "<del>The picture shows</del>" in view.columns["base"].value and "<b>cats" not in view.columns["base"].value
    assert "6 words · 1.5 s" in view.columns["tuned"].value
    assert "“What is it?”" in view.headline.value and "/models/tuned" in view.headline.value
    assert bytes(view.image.value[:2]) == b"\xff\xd8"
    first = bytes(view.image.value)
    view.next_button.click()
    assert view.index == 1 and "1 <ins>dogs" in view.columns["tuned"].value and bytes(view.image.value) != first
    view.go(99)
    assert view.index == 2
    view.mark_box.value = False
    assert "<ins>" not in view.columns["tuned"].value


def test_captions_of_a_live_run_appear_as_they_are_written(store, pictures):
    view = CompareCaptions(store=store)
    assert "no comparison" in view.headline.value
    run = recorded(store, "compare", jobs.UNTIL_GO)
    launch.start(run)
    write(run, pictures[0], "base", "A long", done=False)
    until(lambda: view.columns and "writing …" in view.columns["base"].value and "waiting …" in view.columns["tuned"].value)
    until(lambda: "running" in view.headline.value)
    write(run, pictures[0], "base", "A long one.")
    write(run, pictures[0], "tuned", "A short one.")
    until(lambda: "<ins>short</ins>" in view.columns["tuned"].value)
    (run.path / "go").touch()
    until(lambda: "done" in view.headline.value)


def test_votes_are_saved_with_the_captions_and_restored(comparison, store, pictures):
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


def test_the_next_picture_without_a_vote_is_a_click_away_and_the_votes_are_counted(comparison, store):
    view = CompareCaptions(comparison, store=store)
    assert "voted" not in view.headline.value
    view.vote("tuned", index=1)
    view.unvoted_button.click()
    assert view.index == 2 and "3 pictures, 1 voted" in view.headline.value
    view.unvoted_button.click()
    assert view.index == 0, "from the first again"
    for place in range(3):
        view.vote("same", index=place)
    view.unvoted_button.click()
    assert view.index == 0 and "3 voted" in view.headline.value
    CompareCaptions(recorded(store, "compare"), store=store).unvoted_button.click()


def test_the_data_frame_has_texts_word_counts_and_seconds(comparison):
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
    assert view.run == newer and "Newer." in view.columns["base"].value


def test_a_missing_or_broken_picture_is_reported_and_its_captions_shown(comparison, store, pictures):
    pictures[0].unlink()
    pictures[1].write_bytes(b"no picture")
    view = CompareCaptions(comparison, store=store)
    assert "cannot be shown" in view.message.value and "dogs" in view.columns["tuned"].value
    view.go(1)
    assert "cannot be shown" in view.message.value
    view.go(2)
    assert view.message.value == "" and view.image.value


def test_malformed_rows_are_ignored(store):
    run = recorded(store, "compare")
    rows = ["no json", "[]", "{}", '{"image":1,"model":"base","text":"x"}', '{"image":"a","model":"third","text":"x"}',
            '{"image":"<script>","model":"base","text":"<script>alert(1)</script>\\u001b[31m","seconds":"soon"}']  # fmt: skip
    (run.path / "samples.jsonl").write_text("\n".join(rows) + "\n")
    (run.path / "votes.json").write_text('{"votes": {"<script>": ["base"]}}')
    view = CompareCaptions(run, store=store)
    assert len(view.samples) == 1
    base = view.columns["base"].value
    assert "<script" not in base + view.headline.value + view._repr_html_() and "\x1b" not in base


def test_a_static_viewer_shows_pictures_and_differences(comparison, store):
    page = CompareCaptions(comparison, store=store)._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 3 and "<ins>" in page and "<del>" in page


@pytest.fixture
def checkpoints(store, pictures) -> Run:
    """A comparison of the base model and two checkpoints, with references, as `qwen3vl compare` records one."""
    run = recorded(store, "compare", base="/models/base", tuned=["/run/iter_0000010", "/run/iter_0000020"])
    names = {"base": "/models/base", "step 10": "/run/iter_0000010", "step 20": "/run/iter_0000020"}
    head = {
        "v": 1, "prompt": "What is it?", "models": {name: {"path": path, "size": "tiny"} for name, path in names.items()},
        "sampling": {"seed": 0}, "notes": [], "pictures": [{"image": str(p), "references": ["A red ball."]} for p in pictures],
    }  # fmt: skip
    (run.path / "comparison.json").write_text(json.dumps(head))
    for n, path in enumerate(pictures):
        for name in names:
            write(run, path, name, "A red ball." if name == "step 20" else f"A picture of {name} {n}.")
    return run


def test_without_a_comparison_there_is_nothing_to_vote_on_or_to_write(comparison, store):
    view = CompareCaptions(comparison, store=store)
    with pytest.raises(RequestError, match="vote: no picture 3; there are 3, numbered from 0"):
        view.vote("base", index=3)
    view.vote("base", index=0)
    shutil.rmtree(comparison.path)
    until(lambda: "no comparison" in view.headline.value)
    assert not view.samples and not view.columns and not view.image.value and view.vote_buttons.disabled
    with pytest.raises(RequestError, match="vote: no comparison is chosen"):
        view.vote("base")
    with pytest.raises(RequestError, match="page: no comparison is chosen"):
        view.to_html()
    view.page_button.click()
    assert "no comparison is chosen" in view.message.value


def test_any_number_of_checkpoints_is_compared(checkpoints, store, pictures):
    view = CompareCaptions(checkpoints, store=store)
    assert list(view.columns) == ["base", "step 10", "step 20"] and "/run/iter_0000020" in view.headline.value
    assert "<ins>" in view.columns["step 10"].value and "<del>" not in view.columns["base"].value
    assert "reference: A red ball." in view.columns["base"].value
    assert [label for label, _ in view.vote_buttons.options] == ["no vote", "base is best", "step 10 is best", "step 20 is best", "as good"]
    view.vote_buttons.value = "step 20"
    assert "★" in view.columns["step 20"].value and "★" not in view.columns["base"].value
    table = scores(checkpoints)
    assert table.columns.tolist() == ["base", "step 10", "step 20"]
    assert table.loc["ROUGE-L", "step 20"] == 1.0 and table.loc["votes"].tolist() == [0, 0, 1] and table.loc["words", "step 20"] == 3
    assert set(table.dtypes) == {np.dtype(float)}
    assert "ROUGE-L" in view.score_table.value and "1.000" in view.score_table.value
    frame = captions(checkpoints)
    assert frame["step 20"].tolist() == ["A red ball."] * 3 and frame["vote"].tolist()[0] == "step 20"
    assert frame["references"].tolist() == [["A red ball."]] * 3


def test_a_vote_made_elsewhere_appears(checkpoints, store, pictures):
    view = CompareCaptions(checkpoints, store=store)
    console_votes.vote(checkpoints, str(pictures[0]), "step 10", view.names)
    until(lambda: view.vote_buttons.value == "step 10" and "★" in view.columns["step 10"].value)


def test_a_blind_comparison_reveals_the_models_after_the_vote(checkpoints, store, pictures):
    view = CompareCaptions(checkpoints, store=store, blind=True)

    def shown() -> str:
        return view.headline.value + view.score_table.value + "".join(column.value.split("<p")[0] for column in view.columns.values())

    orders = set()
    for number in range(3):
        view.go(number)
        assert [label[0] for label, value in view.vote_buttons.options if value in view.names] == ["A", "B", "C"]
        assert "step" not in shown() and "/models" not in shown() and "1.5 s" not in shown()
        orders.add(tuple(view.columns))
    assert all(set(order) == set(view.names) for order in orders)
    first = dict(view.vote_buttons.options)["A is best"]
    view.vote_buttons.value = first
    assert f"<b>{first} ★</b>" in view.columns[first].value and tuple(view.columns) in orders
    kept = json.loads((checkpoints.path / "votes.json").read_text())
    assert kept["votes"] == {str(pictures[2]): first} and kept["blind"] == [str(pictures[2])]
    assert "ROUGE-L" not in view._repr_html_()
    view.blind_box.value = False
    assert "ROUGE-L" in view.score_table.value and list(view.columns) == list(view.names)


def test_the_page_of_a_comparison_is_one_file(checkpoints, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view = CompareCaptions(checkpoints, store=store)
    view.page_button.click()
    page = (tmp_path / f"captions-{checkpoints.number:04d}.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "step 20" in page and "wrote" in view.message.value
    other = CompareCaptions(recorded(store, "compare"), store=store)
    other.page_button.click()
    assert "no picture has all its captions" in other.message.value
