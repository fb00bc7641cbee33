"""Votes for captions: by key and mouse, saved on disk, and blind."""

from __future__ import annotations

import asyncio
import threading

from console.readers.captions import shuffled
from console.runs.captions import read_votes
from console.widgets.caption_columns import CaptionBox
from tests.console.app.comparisons import at_compare
from tests.console.app.driving import LARGE, driven, finished, looked, press, said, text_of, until


def test_votes_by_key_and_mouse_are_saved_and_withdrawn(store, compared, pictures):
    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        names = [str(p) for p in pictures]
        await press(pilot, "right_square_bracket")
        assert read_votes(compared).choices == {names[0]: "tuned"} and "★ tuned" in text_of(pilot.app)
        await press(pilot, "N")
        assert screen.index == 1, "the next picture without a vote"
        await press(pilot, "equals_sign")
        assert read_votes(compared).choices[names[1]] == "same" and "equally good" in text_of(pilot.app)
        await press(pilot, "end", "tab", "v")
        assert read_votes(compared).choices[names[2]] == "tuned"
        await pilot.click(screen.query(CaptionBox).first(), times=2)
        await looked(pilot)
        assert read_votes(compared).choices[names[2]] == "base"
        await press(pilot, "left_square_bracket")
        assert names[2] not in read_votes(compared).choices
        await press(pilot, "N", "N")
        assert screen.index == 2
        assert "★ 1" in text_of(pilot.app) and "1 equal" in text_of(pilot.app)

    driven(scene, store.app(), LARGE)

    async def later(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "★ tuned" in text_of(pilot.app))

    driven(later, store.app(), LARGE)


def test_a_read_that_began_before_a_vote_does_not_undo_it(store, compared, monkeypatch):
    held, go = threading.Event(), threading.Event()

    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        read = screen.feed.read

        def slow(run):
            view = read(run)
            held.set()
            assert go.wait(300)
            return view

        monkeypatch.setattr(screen.feed, "read", slow)
        screen.read()
        assert await asyncio.to_thread(held.wait, 150)
        monkeypatch.setattr(screen.feed, "read", read)
        await pilot.press("right_square_bracket")
        go.set()
        await finished(pilot.app)
        assert "★ tuned" in text_of(pilot.app)
        await press(pilot, "right_square_bracket")
        assert read_votes(compared).choices == {}, "the same again takes the vote back"

    driven(scene, store.app())


def test_votes_that_cannot_be_saved_are_reported(store, compared):
    (compared.path / "votes.json.tmp").mkdir()

    async def scene(pilot):
        await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        await press(pilot, "left_square_bracket")
        assert "the vote was not saved" in said(pilot.app) and "★" not in text_of(pilot.app)

    driven(scene, store.app())


def test_a_blind_comparison_hides_the_models_until_it_is_left(store, compared, pictures):
    async def scene(pilot):
        screen = await at_compare(pilot)
        await until(pilot, lambda: "Picture 1/3" in text_of(pilot.app))
        await press(pilot, "b")
        text = text_of(pilot.app)
        assert "BLIND" in text and " A " in text and " B " in text and "0 of 3 voted" in text
        assert not any(told in text for told in ("base", "tuned", "14 words", "1.0 s"))
        styles = [s.style for strip in screen._compositor.render_strips() for s in strip if s.style]
        assert not any(style.strike for style in styles), "the marks must not tell which is which"
        await press(pilot, "r")
        left = screen.order[0]
        assert f"A = {left}" in text_of(pilot.app)
        await press(pilot, "r")
        assert f"A = {left}" not in text_of(pilot.app)
        # votes go to the models that were shown there, and to the next picture without one
        expected = {}
        for picture in pictures:
            assert screen.sample.image == str(picture)
            expected[str(picture)] = screen.order[0]
            assert "★" not in text_of(pilot.app)
            await press(pilot, "left_square_bracket")
        votes = read_votes(compared)
        assert votes.choices == expected and votes.blind == set(expected)
        await press(pilot, "b")
        counts = [list(expected.values()).count(model) for model in ("base", "tuned")]
        assert f"base {counts[0]} · tuned {counts[1]} · as good 0" in said(pilot.app)
        assert "BLIND" not in text_of(pilot.app) and "3 blind" in text_of(pilot.app)

    driven(scene, store.app(), LARGE)


def test_the_order_of_a_blind_comparison_is_random_and_stays():
    names, pictures = ("base", "tuned"), [f"{i}.png" for i in range(200)]
    orders = [shuffled(names, picture, "secret") for picture in pictures]
    assert orders == [shuffled(names, picture, "secret") for picture in pictures]
    assert 60 < sum(order == names for order in orders) < 140 and set(orders) == {names, names[::-1]}
