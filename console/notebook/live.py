"""A box of widgets that reads its files periodically: one thread per box, and one box per cell."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ipywidgets

from console.notebook.answers import BOX, Answers
from console.notebook.brief import Brief
from console.notebook.html import say
from console.notebook.stored import Stored
from qwen3vl_core.errors import RequestError, WorkError

SECONDS = 0.5
"""Seconds from one look to the next."""
PAUSE = 0.05
"""Seconds to the next look when there is more to read: long enough for a click to get the lock."""


class Updater:
    """Calls `look` every `seconds` in a thread until it is stopped, and `failed` with each error.

    When `look` returns that there is more to read, it is called again almost immediately.
    """

    def __init__(self, look: Callable[[], bool | None], failed: Callable[[Exception], None], seconds: float = SECONDS) -> None:
        self.look, self.failed, self.seconds = look, failed, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go, name="qwen3vl-notebook", daemon=True)

    def start(self) -> None:
        """Start the thread; call this once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop, and wait for a look that is in progress, unless called from within it."""
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
                # nothing in a run's files may end the updates
                self.failed(error)


def execution() -> tuple[str, str] | None:
    """(cell, execution) of the running cell; None outside a kernel and while a click is handled.

    The cell is identified by its id if the front end sends one, as that survives edits, else by its text.
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
    """Close the widgets of this type that an earlier execution of the same cell created."""
    now = execution()
    if now is None:
        return
    cell, current = now
    previous, widgets = _in_cells.get((type(widget), cell), ("", weakref.WeakSet()))
    if previous != current:
        for old in list(widgets):
            old.close()
        widgets = weakref.WeakSet()
    widgets.add(widget)
    _in_cells[type(widget), cell] = (current, widgets)


@contextlib.contextmanager
def telling(message: ipywidgets.HTML) -> Iterator[None]:
    """Show errors inside the block in the message line, as a click has no traceback."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, RequestError | WorkError)
        message.value = say(str(error) if known else f"{type(error).__name__}: {error}", "bad")


_open: weakref.WeakSet[Live] = weakref.WeakSet()


def renew_all() -> None:
    """Look with every open box, and put its picture into the notebook."""
    for box in list(_open):
        with contextlib.suppress(Exception):  # what a box cannot read it says itself
            box._look()
            box.renew(now=True)


class Live(Stored, ipywidgets.VBox, metaclass=Brief):
    """A box that calls its `look` every half second until it is closed or its cell is executed again.

    A subclass sets its children and calls `begin` when it is ready. Hold `lock` for every change.
    """

    children: Sequence[ipywidgets.Widget]
    _ended = True  # until __init__ has finished: a box that could not be created has nothing to close

    def __init__(self, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        self.message = ipywidgets.HTML()
        self._updater: Updater | None = None
        self._ended = False
        super().__init__(**kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def begin(self, seconds: float = SECONDS, keys: Mapping[str, str] | None = None) -> None:
        """Close earlier boxes of this cell, look once, and start the periodic looks. keys: selectors of the buttons that keys click."""
        self.children = (*self.children, Answers(keys))
        self.add_class(BOX)
        take_cell(self)
        _open.add(self)
        self._look()
        self._updater = Updater(self._look, self.tell, seconds)
        self._updater.start()

    @property
    def updating(self) -> bool:
        """Whether the thread is running."""
        return self._updater is not None and self._updater.alive

    def look(self) -> bool | None:
        """Read what is new and show it. Returns True if there may be more to read."""
        raise NotImplementedError

    def _look(self) -> bool | None:
        with self.lock:
            more = None if self._ended else self.look()
            if not more and not self._ended:
                self.renew()
            return more

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Clear the message line, then show errors inside the block in it."""
        self.message.value = ""
        with telling(self.message):
            yield

    def tell(self, error: Exception) -> None:
        """Show an error in the message line."""
        with telling(self.message):
            raise error

    def close(self) -> None:
        """Stop looking, and close the box with everything in it."""
        if self._ended:
            return
        self._ended = True
        _open.discard(self)
        with contextlib.suppress(Exception):  # its files may be gone
            self.renew(now=True)
        if self._updater is not None:
            self._updater.stop()
        close_all(self)
        super().close()


def close_all(widget: ipywidgets.Widget) -> None:
    """Close all widgets inside a box with their layout and style: each is a separate model in kernel and page."""
    for child in getattr(widget, "children", ()):
        close_all(child)
        child.close()
    for part in ("layout", "style"):
        if isinstance(model := getattr(widget, part, None), ipywidgets.Widget):
            model.close()
