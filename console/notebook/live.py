"""A box of widgets that looks at its files again and again: one thread a box, and one box a cell."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets

from console.notebook.html import say
from qwen3vl_core.errors import RequestError, WorkError

SECONDS = 0.5
"""From one look to the next."""
PAUSE = 0.05
"""Between two looks of which the first left something to read: long enough for a click to get the lock."""


class Updater:
    """Calls `look` every `seconds` in a thread of its own until it is stopped; `failed` is called with an error.

    A look that says there is more to read is followed by the next one almost immediately.
    """

    def __init__(self, look: Callable[[], bool | None], failed: Callable[[Exception], None], seconds: float = SECONDS) -> None:
        self.look, self.failed, self.seconds = look, failed, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go, name="qwen3vl-notebook", daemon=True)

    def start(self) -> None:
        """Begin, once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """No look begins after this; it waits for one that is under way, except when that one asks."""
        self._stopped.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _go(self) -> None:
        more = False
        while not self._stopped.wait(PAUSE if more else self.seconds):
            more = False
            try:
                more = bool(self.look())
            except Exception as error:
                # whatever a run's files hold must not end the updates
                self.failed(error)


def execution() -> tuple[str, str] | None:
    """(the cell, this execution of it) in a kernel; None elsewhere, and in the answer to a click.

    A front end that names its cells gives the id, which outlives an edit; else the cell's text stands for it.
    """
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        if parent["header"]["msg_type"] != "execute_request":
            return None
        cell = (parent.get("metadata") or {}).get("cellId") or parent["content"]["code"]
        return str(cell), str(parent["header"]["msg_id"])
    except (ImportError, AttributeError, KeyError, TypeError):
        return None


_in_cells: dict[tuple[type, str], tuple[str, weakref.WeakSet[ipywidgets.Widget]]] = {}


def take_cell(widget: ipywidgets.Widget) -> None:
    """Close the widgets of this kind that an earlier execution of the same cell made."""
    now = execution()
    if now is None:
        return
    cell, this = now
    before, made = _in_cells.get((type(widget), cell), ("", weakref.WeakSet()))
    if before != this:
        for old in list(made):
            old.close()
        made = weakref.WeakSet()
    made.add(widget)
    _in_cells[type(widget), cell] = (this, made)


@contextlib.contextmanager
def telling(message: ipywidgets.HTML) -> Iterator[None]:
    """Errors inside the block appear in the message line: a click has no traceback."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, RequestError | WorkError)
        message.value = say(str(error) if known else f"{type(error).__name__}: {error}", "bad")


class Live(ipywidgets.VBox):
    """A box that `look`s every half second until it is closed, or its cell runs again.

    A subclass sets its children and calls `begin` when it is ready. All that changes it holds `lock`.
    """

    _ended = True  # until it is made: one that could not be has nothing to close

    def __init__(self, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        self.message = ipywidgets.HTML()
        self._updater: Updater | None = None
        self._ended = False
        super().__init__(**kwargs)

    def begin(self, seconds: float = SECONDS) -> None:
        """Take the cell over, look once, and keep looking."""
        take_cell(self)
        self._look()
        self._updater = Updater(self._look, self.tell, seconds)
        self._updater.start()

    @property
    def updating(self) -> bool:
        """Whether its thread runs."""
        return self._updater is not None and self._updater.alive

    def look(self) -> bool | None:
        """Read what is new and show it; True: it was too much for one look, and there may be more."""
        raise NotImplementedError

    def _look(self) -> bool | None:
        with self.lock:
            return None if self._ended else self.look()

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Clear the message line, then show errors inside the block in it."""
        self.message.value = ""
        with telling(self.message):
            yield

    def tell(self, error: Exception) -> None:
        """Put an error in the message line."""
        with telling(self.message):
            raise error

    def close(self) -> None:
        """Stop looking, and take the box and all in it off the screen."""
        if self._ended:
            return
        self._ended = True
        if self._updater is not None:
            self._updater.stop()
        close_all(self)
        super().close()


def close_all(widget: ipywidgets.Widget) -> None:
    """Close everything inside a box, and what says how it looks: each is a model of its own, here and in the page."""
    for child in getattr(widget, "children", ()):
        close_all(child)
        child.close()
    for part in ("layout", "style"):
        if isinstance(model := getattr(widget, part, None), ipywidgets.Widget):
            model.close()
