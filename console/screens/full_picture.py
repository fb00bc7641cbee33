"""A picture that fills the terminal."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.screen import ModalScreen
from textual.widgets import Static

from console.formatting import error_text, one_line
from console.messages import PictureRead
from console.widgets.key_hints import Hints
from console.widgets.picture import PictureWidget, read_picture
from console.widgets.picture_frame import PictureFrame


class FullPicture(ModalScreen[None]):
    """A picture with its size and path."""

    BINDINGS: ClassVar = [
        Binding("escape,q,o,enter", "dismiss", "close"),
        Binding("y", "copy", "copy path"),
    ]
    DEFAULT_CSS = """
    FullPicture { align: center top; background: $background; }
    FullPicture > #full { height: 1fr; width: 100%; align: center middle; }
    FullPicture > #below { dock: bottom; height: 1; background: $panel; padding: 0 1; }
    FullPicture Hints { width: auto; margin-right: 3; }
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def compose(self) -> ComposeResult:
        with PictureFrame(id="full"):
            yield PictureWidget(id="full-picture")
        with Horizontal(id="below"):
            yield Hints(("escape", "closes"), ("y", "copies the path"))
            yield Static(one_line(self.path), id="path", markup=False)

    def on_mount(self) -> None:
        def look() -> None:
            try:
                self.post_message(PictureRead(self.path, read_picture(self.path)))
            except Exception as error:
                self.post_message(PictureRead(self.path, None, one_line(error_text(error))))

        self.run_worker(look, thread=True, exit_on_error=False)

    def on_picture_read(self, event: PictureRead) -> None:
        self.query_one(PictureFrame).show(event.picture)
        self.query_one("#path", Static).update(one_line(event.problem or self.path))

    def action_copy(self) -> None:
        """Put the picture's path on the clipboard."""
        self.app.copy_to_clipboard(self.path)
        self.notify(self.path, title="Path copied", markup=False)
