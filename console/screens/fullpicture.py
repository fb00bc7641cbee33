"""A picture as large as the terminal is."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.screen import ModalScreen
from textual.widgets import Static

from console.messages import PictureRead
from console.widgets.picture import PictureWidget, read_picture
from console.widgets.words import one_line


class FullPicture(ModalScreen[None]):
    """One picture, its size and its path."""

    BINDINGS: ClassVar = [
        Binding("escape,q,o,enter", "dismiss", "close"),
        Binding("y", "copy", "copy path"),
    ]
    DEFAULT_CSS = """
    FullPicture { align: center top; background: $background; }
    FullPicture > #full { height: 1fr; width: 100%; align: center middle; }
    FullPicture > #path { dock: bottom; height: 1; background: $panel; padding: 0 1; }
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def compose(self) -> ComposeResult:
        with Container(id="full"):
            yield PictureWidget(id="full-picture")
        yield Static(one_line(self.path), id="path", markup=False)

    def on_mount(self) -> None:
        def look() -> None:
            try:
                self.post_message(PictureRead(self.path, read_picture(self.path)))
            except Exception as error:
                self.post_message(PictureRead(self.path, None, one_line(error)))

        self.run_worker(look, thread=True, exit_on_error=False)

    def on_picture_read(self, event: PictureRead) -> None:
        picture, path = self.query_one("#full-picture", PictureWidget), self.query_one("#path", Static)
        picture.image = event.picture
        if event.picture is None:
            path.update(event.problem)
            return
        wide, high = event.picture.size
        path.update(one_line(f"esc closes · y copies the path · {self.path}"))
        frame = self.query_one("#full").size
        by_width = 2 * frame.height * wide > frame.width * high
        picture.styles.width, picture.styles.height = (frame.width, "auto") if by_width else ("auto", frame.height)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.path)
        self.notify(self.path, title="Path copied", markup=False)
