"""The base class of the boxes over a screen."""

from __future__ import annotations

from typing import TypeVar

from textual.screen import ModalScreen

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer]):
    """A box with the class `dialog` over a screen, which shows through; its style is read when the first one is shown."""

    CSS_PATH = "dialog.tcss"
