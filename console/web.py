"""`qwen3vl console --web`: the console in a browser tab, by textual-serve, on this machine's loopback address, protected by a token.

textual-serve has no access control, and every user of a machine reaches its loopback address. So the link holds a
token, which the page stores as a cookie of this site only, and every request without it gets 403.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import html
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.server import Server, to_int

from console.terminal import show_in_browser
from qwen3vl_core.errors import EXIT_DONE, RequestError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 8866, 50
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Host names by which a browser on this machine, or at the local end of an ssh tunnel, reaches the server."""
# textual-serve's own page loads a font from another site, and hangs on a machine without a network
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>qwen3vl</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/static/css/xterm.css"><script src="/static/js/textual.js"></script>
<style>
 html, body {{ margin: 0; height: 100%; background: #121212; color: #e0e0e0; font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace }}
 .textual-terminal {{ position: absolute; inset: 0 }}
 .closed-dialog {{ display: none; position: absolute; inset: 0; z-index: 10; background: #121212e0 }}
 body.-closed .closed-dialog {{ display: flex; align-items: center; justify-content: center }}
 button {{ font: inherit; padding: 0.5em 1.5em; margin-left: 1em; background: #0178d4; color: #fff; border: 0; cursor: pointer }}
</style></head><body>
<div class="closed-dialog">The console was closed; runs keep running.<button onclick="location.reload()">Open it again</button></div>
<div id="terminal" class="textual-terminal" data-session-websocket-url="{websocket}" data-font-size="{size}"></div>
</body></html>
"""


class _Session(AppService):
    """The console process of one tab, started without a shell."""

    words: list[str]

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Any:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.words, env=self._build_environment(width=width, height=height), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._stdin = process.stdin
        return process


class ConsoleServer(Server):
    """Serves a console process for each tab to clients with the token."""

    def __init__(self, words: list[str], port: int) -> None:
        """words: the console's command. port: on 127.0.0.1."""
        super().__init__("qwen3vl", HOST, port, title="qwen3vl")
        self.words = words
        self.token = secrets.token_urlsafe(24)
        # cookies are shared by all ports of a host
        self.cookie = f"qwen3vl-{port}"

    @property
    def link(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    async def _make_app(self) -> web.Application:
        # without textual-serve's page, its list of static files and its download route
        app = web.Application(middlewares=[self._guard])
        app.add_routes([
            web.get("/", self._page), web.get("/ws", self.handle_websocket, name="websocket"), web.static("/static", self.statics_path),
        ])  # fmt: skip
        return app

    def _has_token(self, token: str | None) -> bool:
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answers 403 without the token, for another host name, and for a page of another site."""
        name = (request.host or "").rpartition(":")[0] or request.host
        origin = request.headers.get("Origin")
        if name not in NAMES or (origin is not None and origin != f"http://{request.host}"):
            raise web.HTTPForbidden(text="403: use http://127.0.0.1 or http://localhost\n")
        token = request.query.get("token")
        if self._has_token(token) and request.path == "/":
            # removes the token from the address bar and the history
            answer = web.HTTPFound("/")
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict", path="/")
            raise answer
        if not self._has_token(token) and not self._has_token(request.cookies.get(self.cookie)):
            raise web.HTTPForbidden(text="403: the token is missing; open the link that qwen3vl console --web printed\n")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        size = to_int(request.query.get("fontsize", "16"), 16)
        text = PAGE.format(websocket=html.escape(f"ws://{request.host}/ws"), size=size)
        headers = {"Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one tab: its console process ends with the connection."""
        websocket = web.WebSocketResponse(heartbeat=15)
        width, height = (to_int(request.query.get(name, ""), least) for name, least in (("width", 80), ("height", 24)))
        await websocket.prepare(request)

        async def close() -> None:
            await websocket.close()

        session = _Session(
            "qwen3vl", write_bytes=websocket.send_bytes, write_str=websocket.send_str, close=close,
            download_manager=self.download_manager,
        )  # fmt: skip
        session.words = self.words
        try:
            await session.start(width, height)
            await self._process_messages(websocket, session)
        except (asyncio.CancelledError, ConnectionError):
            await websocket.close()
        finally:
            await session.stop()
        return websocket


def listen(port: int | None) -> socket.socket:
    """A socket on the loopback address, on `port`, by default on the first free one. Raises RequestError."""
    reason: str | None = None
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    if port is None:
        raise RequestError(f"--web: no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name one with --port")
    with contextlib.closing(listen(None)) as free:
        raise RequestError(f"--port {port}: {reason}; use {free.getsockname()[1]}, or leave it out")


def serve(runs: Path, workspace: Path | None, port: int | None = None, browser: bool = True) -> int:
    """Print the link, and serve the console until Ctrl-C. Returns the exit code. Raises RequestError when the port is taken."""
    words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(runs)]
    words += ["--workspace", str(workspace)] if workspace is not None else []
    with listen(port) as listener:
        server = ConsoleServer(words, listener.getsockname()[1])
        print(f"the console in a browser, on this machine only (Ctrl-C ends it; runs keep running):\n  {server.link}", flush=True)
        if browser:
            show_in_browser(server.link)
        web.run_app(server._make_app(), sock=listener, print=None, access_log=None, handle_signals=True)
    return EXIT_DONE
