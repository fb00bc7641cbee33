"""The log pane: follow, scroll, search."""

from __future__ import annotations

from textual.app import App

from console.runs.tail import LogView
from console.widgets.log_pane import LogPane
from tests.console.app.driving import driven, text_of

CSS = "LogPane { height: 100%; } " + " ".join(
    f"LogPane > .log--{name} {{ color: ansi_red; }}" for name in ("problem", "warning", "hit", "current", "empty", "cut")
)


class Bench(App):
    CSS = CSS

    def compose(self):
        yield LogPane()


def numbered(begin: int, end: int) -> tuple[str, ...]:
    return tuple(f"line {i}" for i in range(begin, end))


def look(scene):
    async def play(pilot):
        await scene(pilot, pilot.app.query_one(LogPane))

    return driven(play, Bench())


def test_the_log_follows_its_end_and_the_incomplete_line():
    async def scene(pilot, pane):
        pane.show(LogView(numbered(0, 100)))
        await pilot.pause()
        assert "line 99" in text_of(pilot.app) and "line 10 " not in text_of(pilot.app)
        assert pane.vertical_scrollbar.position == pane.scroll_y > 0
        pane.show(LogView(numbered(0, 200), "half a li"))
        await pilot.pause()
        assert "line 199" in text_of(pilot.app) and "half a li" in text_of(pilot.app)

    look(scene)


def test_scrolling_up_stops_following_until_it_is_resumed():
    async def scene(pilot, pane):
        pane.show(LogView(numbered(0, 100)))
        await pilot.pause()
        pane.scroll_to(y=0, animate=False, force=True)
        await pilot.pause()
        assert not pane.follow
        pane.show(LogView(numbered(0, 300)))
        await pilot.pause()
        assert text_of(pilot.app).startswith("line 0 ")
        pane.set_follow(True)
        await pilot.pause()
        assert "line 299" in text_of(pilot.app)

    look(scene)


def test_the_view_stays_while_the_oldest_lines_are_dropped():
    async def scene(pilot, pane):
        pane.show(LogView(numbered(0, 100)))
        pane.follow = False
        pane.scroll_to(y=50, animate=False, force=True)
        await pilot.pause()
        assert text_of(pilot.app).startswith("line 50 ")
        pane.show(LogView(numbered(30, 130), dropped=30))
        await pilot.pause()
        assert text_of(pilot.app).startswith("line 50 ")

    look(scene)


def test_search_goes_to_the_last_match_and_wraps_around():
    async def scene(pilot, pane):
        pane.show(LogView((*numbered(0, 200), "Loss NaN here", *numbered(200, 300), "again nan", *numbered(300, 400))))
        pane.find("nan")
        await pilot.pause()
        assert len(pane.hits) == 2 and pane.hit == 1 and "again nan" in text_of(pilot.app)
        pane.find_step(1)
        await pilot.pause()
        assert pane.hit == 0 and "Loss NaN here" in text_of(pilot.app) and not pane.follow
        pane.find("nowhere")
        assert pane.hits == []
        pane.find_step(1)
        pane.find("")
        assert pane.hits == [] and pane.needle == ""

    look(scene)


def test_a_match_stays_marked_while_lines_are_added():
    async def scene(pilot, pane):
        pane.show(LogView((*numbered(0, 50), "needle one", *numbered(50, 100), "needle two")))
        pane.find("needle")
        pane.find_step(-1)
        assert pane.hits[pane.hit] == 50
        pane.show(LogView((*numbered(20, 50), "needle one", *numbered(50, 100), "needle two", "needle three"), dropped=20))
        assert pane.hits[pane.hit] == 30

    look(scene)


def test_a_long_line_is_cut_and_an_empty_log_says_so():
    async def scene(pilot, pane):
        pane.clear("nothing printed yet")
        await pilot.pause()
        assert "nothing printed yet" in text_of(pilot.app)
        pane.show(LogView(("z" * 4000, "short", "wide 漢字 text"), resets=pane.shown.resets))
        await pilot.pause()
        rows = text_of(pilot.app).splitlines()
        assert rows[0].startswith("zzzz") and rows[1].startswith("short") and "漢字" in rows[2]

    look(scene)
