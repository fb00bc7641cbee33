"""A picture scaled to the available space, keeping its aspect ratio."""

from __future__ import annotations

from typing import Any

from PIL import Image
from textual.containers import Container


class PictureFrame(Container):
    """Contains one picture widget and fits its size when the picture or the space changes."""

    def show(self, image: Image.Image | None) -> None:
        """Show a picture, or nothing for None."""
        picture = self._picture
        picture.image = image
        picture.display = image is not None
        self.fit()

    @property
    def _picture(self) -> Any:
        return self.children[0]

    def on_resize(self) -> None:
        self.fit()

    def fit(self) -> None:
        """Fit the picture into the frame. A terminal cell is about twice as high as wide."""
        picture, place = self._picture, self.size
        if picture.image is None or not place.width or not place.height:
            return
        wide, high = picture.image.size
        by_width = 2 * place.height * wide > place.width * high
        picture.styles.width, picture.styles.height = (place.width, "auto") if by_width else ("auto", place.height)
