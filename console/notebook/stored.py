"""What a notebook's file keeps of a widget: its present picture as HTML, beside the widget, and renewed while it lives.

A viewer without a kernel (GitHub, nbviewer, nbconvert, a notebook that is opened the next day) shows the picture, as it has no widget to
show. A page with the kernel shows the widget, which hides the picture (answers.js).
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from console.notebook.answers import Answers

SECONDS = 10.0
"""Shortest time from one picture to the next."""
VIEW = "application/vnd.jupyter.widget-view+json"
_QUIET = "<style>.jp-OutputArea-child:has(.{mark}) + .jp-OutputArea-child > .jupyter-widgets:not(:has(*)) {{ display: none; }}</style>"
"""Without a kernel JupyterLab says in place of the widget that its model is not found: text right in the output. Inside a live widget a
picture and a button without an icon hold no element either, and stay."""


class Stored:
    """Base of a widget that has a `_repr_html_` and an `Answers` as its last child."""

    children: Any

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        from IPython.display import display

        mark = f"qwen3vl-stored-{uuid.uuid4().hex[:8]}"
        answers = self.children[-1]
        assert isinstance(answers, Answers)
        answers.shown.stored = [*answers.shown.stored, mark]
        bundle = super()._repr_mimebundle_()  # type: ignore[misc]
        text = bundle["text/plain"]
        page = self._repr_html_()
        pictures = self.__dict__.setdefault("_pictures", _Pictures())
        with pictures.lock:
            handle = display({"text/plain": text, "text/html": _marked(page, mark)}, raw=True, display_id=True)
            pictures.handles.append((handle, mark))
            pictures.shown, pictures.when = page, time.monotonic()
        display({"text/plain": text, VIEW: bundle[VIEW]}, raw=True)

    def renew(self, now: bool = False) -> None:
        """Put the present picture into the notebook, if it has changed; unless it was put there a moment ago, or `now`."""
        pictures = self.__dict__.get("_pictures")
        if pictures is None or (not now and time.monotonic() - pictures.when < SECONDS):
            return
        page = self._repr_html_()
        with pictures.lock:
            pictures.when = time.monotonic()
            if page == pictures.shown:
                return
            pictures.shown = page
            for handle, mark in pictures.handles:
                handle.update({"text/plain": repr(self), "text/html": _marked(page, mark)}, raw=True)


class _Pictures:
    """The displays of a widget."""

    def __init__(self) -> None:
        self.handles: list[tuple[Any, str]] = []
        self.shown = ""
        self.when = 0.0
        self.lock = threading.Lock()


def _marked(page: str, mark: str) -> str:
    return f'{_QUIET.format(mark=mark)}<div class="{mark}">{page}</div>'
