"""One thread per widget, one widget per cell, and no leftovers."""

from __future__ import annotations

import threading

import ipywidgets
import pytest
from ipywidgets.widgets.widget import _instances

from console.notebook import CompareCaptions, DatasetPreview, Launcher, RunMonitor, RunsTable, live
from console.notebook.live import Live, Updater, execution
from tests.console.runs.jobs import until
from tests.notebooks.conftest import finetune_options


def updaters() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "qwen3vl-notebook"]


class Counter(Live):
    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.begin(0.01)

    def look(self) -> None:
        self.looks += 1


class FakeShell:
    """A kernel's shell with the message that it is handling."""

    def __init__(self, monkeypatch) -> None:
        self.parent: dict = {}
        monkeypatch.setattr("IPython.get_ipython", lambda: self)

    def get_parent(self) -> dict:
        return self.parent

    def run(self, code: str, message: str, cell: str | None = None, kind: str = "execute_request") -> None:
        metadata = {"cellId": cell} if cell else {}
        self.parent = {"header": {"msg_type": kind, "msg_id": message}, "metadata": metadata, "content": {"code": code}}


def test_a_widget_is_updated_until_it_is_closed():
    counter = Counter()
    until(lambda: counter.looks > 3)
    assert counter.updating
    counter.close()
    assert not counter.updating
    seen = counter.looks
    assert not updaters() and counter.looks == seen


def test_closing_every_widget_ends_every_thread():
    [Counter() for _ in range(3)]
    assert len(updaters()) == 3
    ipywidgets.Widget.close_all()
    assert not updaters()


def test_an_error_is_shown_and_does_not_end_the_updates():
    class Failing(Counter):
        def look(self) -> None:
            super().look()
            if self.looks == 3:
                raise ValueError("three <is> enough")

    failing = Failing()
    until(lambda: failing.looks > 5)
    assert "ValueError: three &lt;is&gt; enough" in failing.message.value and failing.updating


def test_an_updater_may_stop_itself():
    done = threading.Event()

    def look() -> None:
        updater.stop()
        done.set()

    updater = Updater(look, lambda error: None, 0.001)
    updater.start()
    assert done.wait(150)
    until(lambda: not updater.alive)


@pytest.mark.parametrize("cell", ["cell-7", None], ids=["named", "unnamed"])
def test_a_rerun_cell_leaves_one_widget(monkeypatch, cell):
    shell = FakeShell(monkeypatch)
    shell.run("Counter()", "first", cell)
    one, two = Counter(), Counter()
    assert one.updating and two.updating
    shell.run("Counter()", "second", cell)
    three = Counter()
    assert not one.updating and not two.updating and three.updating
    shell.run("other = Counter()", "third", cell and "cell-8")
    four = Counter()
    assert three.updating and four.updating


def test_an_edited_cell_is_the_same_cell(monkeypatch):
    shell = FakeShell(monkeypatch)
    shell.run("Counter()", "first", "cell-9")
    one = Counter()
    shell.run("Counter()  # edited", "second", "cell-9")
    two = Counter()
    assert not one.updating and two.updating


def test_a_widget_made_by_a_click_closes_no_other(monkeypatch):
    shell = FakeShell(monkeypatch)
    shell.run("Counter()", "first", "cell-10")
    one = Counter()
    shell.run("", "second", kind="comm_msg")
    assert execution() is None
    Counter()
    assert one.updating


def test_outside_of_a_kernel_there_is_no_cell():
    assert execution() is None


@pytest.mark.parametrize("kind", ["Launcher", "RunMonitor", "CompareCaptions", "RunsTable", "DatasetPreview"])
def test_showing_a_widget_again_leaves_one_view(kind, monkeypatch, store, dataset):
    """Of each kind: one widget on the page, one thread at most, no timer of one that is gone."""
    make = {
        "Launcher": lambda: Launcher("finetune", finetune_options(dataset), store=store), "RunMonitor": lambda: RunMonitor(store=store),
        "CompareCaptions": lambda: CompareCaptions(store=store), "RunsTable": lambda: RunsTable(store),
        "DatasetPreview": lambda: DatasetPreview(dataset),
    }[kind]  # fmt: skip
    before = timers()
    shell, made, opened = FakeShell(monkeypatch), [], []
    for message in ("a", "b", "c"):
        shell.run("show()", message, f"cell-of-{kind}")
        made.append(make())
        opened.append(len(_instances))
    assert opened[1] == opened[2], "models of a widget that is gone stay open"
    assert [widget.comm is None for widget in made] == [True, True, False]
    assert len(updaters()) == (1 if kind in ("RunMonitor", "CompareCaptions", "RunsTable") else 0)
    assert len(timers() - before) <= 1
    assert live.SECONDS == 0.5


def timers() -> set[threading.Thread]:
    """Timers that have not gone off."""
    return {t for t in threading.enumerate() if isinstance(t, threading.Timer) and not t.finished.is_set()}
