"""Textual's driver for a browser, which can draw the whole screen again for a tab that was loaded again."""

from __future__ import annotations

from textual.drivers.web_driver import WebDriver

REPAINT = "repaint"
"""Message of the server: a new terminal is at the other end, empty and in its first state."""


FIRST = "\x1b[?1049h\x1b[?25l"
"""What is written first then: the other screen, without a cursor."""


class BrowserDriver(WebDriver):
    """Writes to `console.web`."""

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        """Handle a message of the server."""
        if packet_type != REPAINT:
            super().on_meta(packet_type, payload)
            return
        self.write(FIRST)
        self._enable_mouse_support()
        self._enable_bracketed_paste()
        self._app.call_from_thread(self._app.refresh, layout=True)
