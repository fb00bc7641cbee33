"""A plotly figure whose curves appear even if the page loads the plotting library late."""

from __future__ import annotations

import contextlib
import functools
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from traitlets import Dict, Instance, List, Unicode, default


class Library(W.Widget):
    """plotly.js, five million characters that a page asks for once for all its figures.

    It is no state: that would be in every notebook that keeps the state of its widgets, and in every page that is made of one.
    """

    version = Unicode().tag(sync=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_msg(self._asked)

    def _asked(self, widget: W.Widget, content: Any, buffers: Any) -> None:
        if content == {"ask": "code"}:
            self.send({"version": self.version}, buffers=[_code()])


_library: Library | None = None


@functools.cache
def _code() -> bytes:
    """plotly.js as gzip, a third of it."""
    return gzip.compress(get_plotlyjs().encode(), 5)


def library() -> Library:
    """This kernel's `Library`."""
    global _library
    if _library is None or _library.comm is None:  # closed, as `Widget.close_all` does
        _library = Library(version=get_plotlyjs_version())
    return _library


class FigureState(W.Widget):
    """What a figure shows, as state of a plain ipywidgets model: a page that loads late, or again, gets the current state."""

    data: List[dict[str, Any]] = List().tag(sync=True)
    """Traces in plotly.js's format."""
    axes = Dict().tag(sync=True)
    """The layout in plotly.js's format; ipywidgets already uses the name `layout`."""
    config = Dict().tag(sync=True)
    window: List[float] = List(allow_none=True, default_value=None).tag(sync=True)
    """[lowest, highest] x of the zoom, set by the page; None: not zoomed."""
    library = Instance(Library).tag(sync=True, **W.widget_serialization)

    @default("library")
    def _default_library(self) -> Library:
        return library()


class Figure(go.FigureWidget):
    """A `FigureWidget` that sends its state instead of messages about its changes.

    plotly's own sends messages such as `addTraces` and `restyle`, and anywidget drops messages to a widget that takes more than two
    seconds to load: on a busy machine the curve stays empty. Here the figure is the state of a plain ipywidgets model (`shown`),
    which the page redraws whenever it changes; zoom and hidden traces are kept while `uirevision` stays the same. Colours follow the
    theme of the page.
    """

    _esm = Path(__file__).with_name("figure.js")
    _is_batching = False
    shown = Instance(FigureState, args=()).tag(sync=True, **W.widget_serialization)

    def __init__(self, data: Any = None, layout: Any = None, config: dict[str, Any] | None = None) -> None:
        super().__init__(data, layout)
        self.shown.config = config or {}
        self._send_state()

    @property
    def window(self) -> tuple[float, float] | None:
        """The visible range of x: the page's zoom, else the layout's range; None: all."""
        axis = self.layout.xaxis
        visible = self.shown.window or (None if axis.autorange else axis.range)
        return (float(visible[0]), float(visible[1])) if visible else None

    def close(self) -> None:
        """Close the figure and its state."""
        if self.trait_has_value("shown"):
            self.shown.close()
        super().close()

    @contextlib.contextmanager
    def batched_updates(self) -> Iterator[None]:
        """Send all changes inside the block to the page at once, at its end."""
        self._is_batching = True
        try:
            yield
        finally:
            self._is_batching = False
            self._send_state()

    def _send_state(self, *args: Any, **kwargs: Any) -> None:
        """Update the state on the page; unchanged parts are not sent."""
        if self._is_batching:
            return
        now = self.to_plotly_json()
        with self.shown.hold_sync():
            self.shown.data, self.shown.axes = now["data"], now["layout"]

    # plotly calls these after each change of traces or layout
    _send_addTraces_msg = _send_moveTraces_msg = _send_deleteTraces_msg = _send_state
    _send_restyle_msg = _send_relayout_msg = _send_update_msg = _send_animate_msg = _send_state
