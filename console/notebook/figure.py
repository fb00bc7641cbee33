"""A plotly figure whose curves are there whenever its page is ready to draw them, however late that is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from traitlets import Dict, Instance, List, Unicode, default


class Library(W.Widget):
    """plotly.js, five million characters that go to a page once for all its figures."""

    version = Unicode().tag(sync=True)
    code = Unicode().tag(sync=True)


_library: Library | None = None


@functools.cache
def _code() -> str:
    return get_plotlyjs()


def library() -> Library:
    """The one of this kernel."""
    global _library
    if _library is None or _library.comm is None:  # closed, as `Widget.close_all` does
        _library = Library(version=get_plotlyjs_version(), code=_code())
    return _library


class FigureState(W.Widget):
    """What a figure shows, as state of a plain model: a page that comes late, or again, finds it as it is by then."""

    data: List[dict[str, Any]] = List().tag(sync=True)
    """Traces as plotly.js takes them."""
    axes = Dict().tag(sync=True)
    """The layout as plotly.js takes it; `layout` is a name that ipywidgets has taken."""
    config = Dict().tag(sync=True)
    window: List[float] = List(allow_none=True, default_value=None).tag(sync=True)
    """[lowest, highest] x of the zoom, told by the page; None: all is shown."""
    library = Instance(Library).tag(sync=True, **W.widget_serialization)

    @default("library")
    def _default_library(self) -> Library:
        return library()


class Figure(go.FigureWidget):
    """A `FigureWidget` that sends its state instead of messages about its changes.

    plotly's own sends `addTraces`, `restyle` and the like, and anywidget drops every message to a widget whose page took more
    than two seconds to load it: on a busy machine the curve stays empty for good. Here what is shown is the state of a model of
    ipywidgets' own (`shown`), and the page draws it anew when it has changed; the zoom and the hidden traces stay while
    `uirevision` does. Colours follow the theme of the page.
    """

    _esm = Path(__file__).with_name("figure.js")
    _held = False
    shown = Instance(FigureState, args=()).tag(sync=True, **W.widget_serialization)

    def __init__(self, data: Any = None, layout: Any = None, config: dict[str, Any] | None = None) -> None:
        super().__init__(data, layout)
        self.shown.config = config or {}
        self._bring()

    @property
    def window(self) -> tuple[float, float] | None:
        """The x that are in view: what the page's zoom says, else the layout's range; None: all."""
        axis = self.layout.xaxis
        found = self.shown.window or (None if axis.autorange else axis.range)
        return (float(found[0]), float(found[1])) if found else None

    def close(self) -> None:
        """Take it off the screen, with what it showed."""
        if self.trait_has_value("shown"):
            self.shown.close()
        super().close()

    @contextlib.contextmanager
    def batched_updates(self) -> Iterator[None]:
        """What changes inside the block reaches the page at its end, as one."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._bring()

    def _bring(self, *args: Any, **kwargs: Any) -> None:
        """Bring the page's state up to date; what has not changed is not sent."""
        if self._held:
            return
        now = self.to_plotly_json()
        with self.shown.hold_sync():
            self.shown.data, self.shown.axes = now["data"], now["layout"]

    # what plotly calls after each change of traces or layout
    _send_addTraces_msg = _send_moveTraces_msg = _send_deleteTraces_msg = _bring
    _send_restyle_msg = _send_relayout_msg = _send_update_msg = _send_animate_msg = _bring
