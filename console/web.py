"""`qwen3vl console --web`: the console in a browser tab, by textual-serve, on this machine's loopback address, protected by a token.

textual-serve has no access control, and every user of a machine reaches its loopback address. So the link holds a
token, which the page stores as a cookie of its own path only, and every request without it gets 403. The page knows no path but its own:
it works below any, as behind JupyterLab's proxy. A console process waits for its tab to come back after a reload or a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import mimetypes
import os
import secrets
import socket
import sys
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.server import Server, to_int

from console.gateway import Gateway, cloud_notebook, gateway
from console.terminal import show_in_browser
from console.web_driver import FIRST, REPAINT, BrowserDriver
from qwen3vl_core.errors import EXIT_DONE, RequestError
from qwen3vl_core.language import filled

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 8866, 50
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Host names by which a browser on this machine, or at the local end of an ssh tunnel, reaches the server."""
TOKEN = "qwen3vl-token"
"""Parameter of the link; JupyterLab's proxy takes `token` for its own."""
KEPT_SECONDS = 1800.0
"""How long a console waits for its tab."""
END_SECONDS = 10.0
MOST_WAITING, MOST_FILES = 8, 200
LEFT, TAKEN = 4000, 4001
"""Codes with which the server closes a connection that the page must not open again by itself."""
# what is shown may be of anyone: it gets an origin of its own, and no network
SANDBOX = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif", "image/svg+xml")


class _Session(AppService):
    """The console process of one tab, started without a shell. It outlives the tab's connection."""

    words: list[str]
    files: dict[str, Path]
    tab: web.WebSocketResponse | None = None
    end: asyncio.TimerHandle | None = None
    left = False
    repaints = False
    """Whether what comes is still meant for the terminal before, of which nothing is left."""

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        driver = f"{BrowserDriver.__module__}:{BrowserDriver.__name__}"
        return {**super()._build_environment(width=width, height=height), "TEXTUAL_DRIVER": driver}

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Any:
        self._process = process = await asyncio.create_subprocess_exec(
            *self.words, env=self._build_environment(width=width, height=height), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._stdin = process.stdin
        return process

    async def stop(self) -> None:
        """End the console."""
        await super().stop()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()

    async def send(self, data: bytes | str) -> None:
        """Send to the tab; without one the data is dropped, as the whole screen is drawn for the next one."""
        if isinstance(data, bytes) and self.repaints:
            self.repaints = data != FIRST.encode()
        if self.tab is not None and not self.tab.closed and not (isinstance(data, bytes) and self.repaints):
            with contextlib.suppress(ConnectionError):
                await (self.tab.send_bytes(data) if isinstance(data, bytes) else self.tab.send_str(data))

    async def close(self) -> None:
        """The console was left: its tab says so."""
        self.left = True
        if self.tab is not None and not self.tab.closed:
            await self.tab.close(code=LEFT, message=b"The console was closed; runs keep running.")

    async def on_meta(self, data: bytes) -> None:
        """Handle a message of the console. A file that it opens is served below this server's own address."""
        message = json.loads(data)
        if message.get("type") == "open_url" and (path := urlsplit(str(message["url"]))).scheme == "file":
            file, key = Path(unquote(path.path)), secrets.token_urlsafe(16)
            self.files[key] = file
            for oldest in [*self.files][:-MOST_FILES]:
                del self.files[oldest]
            await self.send(json.dumps(["open_url", {"url": f"file/{key}/{quote(file.name)}", "new_tab": True}]))
        else:
            await super().on_meta(data)


class ConsoleServer(Server):
    """Serves a console process for each tab to clients with the token."""

    def __init__(self, words: list[str], port: int, proxy: Gateway | None = None, kept: float = KEPT_SECONDS) -> None:
        """words: the console's command. port: on 127.0.0.1. proxy: what the browser reaches it through. kept: seconds that a console
        waits for its tab."""
        super().__init__("qwen3vl", HOST, port, title="qwen3vl")
        self.words, self.proxy, self.kept = words, proxy, kept
        self.token = secrets.token_urlsafe(24)
        # cookies are shared by all ports of a host
        self.cookie = f"qwen3vl-{port}"
        self.sessions: dict[str, _Session] = {}
        self.files: dict[str, Path] = {}
        """Files that a console has opened, by the keys of their addresses."""

    @property
    def link(self) -> str:
        return f"http://{HOST}:{self.port}/?{TOKEN}={self.token}"

    @property
    def proxied_link(self) -> str | None:
        return f"{self.proxy.address}?{TOKEN}={self.token}" if self.proxy is not None else None

    async def _make_app(self) -> web.Application:
        # without textual-serve's page, its list of static files and its download route
        app = web.Application(middlewares=[self._guard])
        app.add_routes([
            web.get("/", self._page), web.get("/ws/{place}", self.handle_websocket, name="websocket"),
            web.get("/alive", self._alive), web.get("/file/{key}/{name}", self._file), web.static("/static", self.statics_path),
        ])  # fmt: skip
        app.on_shutdown.append(self._end)
        return app

    def _has_token(self, token: str | None) -> bool:
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def _is_allowed(self, request: web.Request) -> bool:
        """Whether a request is of a page of this server. A gateway may send any host name; without one only this machine's are known."""
        name = (request.host or "").rpartition(":")[0] or request.host
        origin = request.headers.get("Origin")
        if self.proxy is not None and (origin is None or origin.lower() == self.proxy.origin):
            return True
        return name in NAMES and (origin is None or origin == f"http://{request.host}")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answers 403 without the token, for another host name, and for a page of another site."""
        if not self._is_allowed(request):
            known = f"{self.proxy.address} or " if self.proxy is not None else ""
            more = "" if self.proxy is not None else ", or name the gateway's address with --behind-proxy"
            raise web.HTTPForbidden(text=f"403: use {known}http://127.0.0.1 or http://localhost{more}\n")
        token = request.query.get(TOKEN)
        if self._has_token(token) and request.path == "/":
            # removes the token from the address bar and the history
            answer = web.HTTPFound("./")
            # without a path: the browser takes the page's own, whatever is before it behind a gateway; not Strict: a link from another site
            secure = self.proxy is not None and self.proxy.address.startswith("https:") and not request.host.startswith(NAMES)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="Lax", path="", secure=secure)
            raise answer
        if not self._has_token(token) and not self._has_token(request.cookies.get(self.cookie)):
            raise web.HTTPForbidden(text="403: the token is missing; open the link that qwen3vl console --web printed\n")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        size = to_int(request.query.get("fontsize", "16"), 16)
        text = Template(resources.files(__package__).joinpath("web.html").read_text(encoding="utf-8")).substitute(size=size)
        headers = {"Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _alive(self, request: web.Request) -> web.Response:
        return web.Response(text="yes\n", headers={"Cache-Control": "no-store"})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """A picture, page or export that a console has opened."""
        file = self.files.get(request.match_info["key"])
        if file is None or not await asyncio.to_thread(file.is_file):
            raise web.HTTPNotFound(text="404: this file is not there any more; open it from the console again\n")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": SANDBOX,
            "X-Content-Type-Options": "nosniff",
            "Content-Type": kind,
        }
        if kind not in (*PICTURES, "text/html", "text/plain", "application/json"):
            headers["Content-Disposition"] = "attachment"
        return web.FileResponse(file, headers=headers)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one tab: with the console that it had before it was loaded again, else with a new one."""
        tab = web.WebSocketResponse(heartbeat=15)
        width, height = (to_int(request.query.get(name, ""), least) for name, least in (("width", 80), ("height", 24)))
        place = request.match_info["place"]
        await tab.prepare(request)
        session = self.sessions.get(place)
        if session is not None and (session.left or session._task is None or session._task.done()):
            session = None  # its process has ended
        if session is None:
            session = self.sessions[place] = _Session(
                "qwen3vl", write_bytes=self._nothing, write_str=self._nothing, close=self._nothing, download_manager=self.download_manager,
            )  # fmt: skip
            session.words, session.files, session.tab = self.words, self.files, tab
            session.remote_write_bytes = session.remote_write_str = session.send
            session.remote_close = session.close
            await session.start(width, height)
            assert session._task is not None
            session._task.add_done_callback(lambda task: asyncio.ensure_future(session.close()))  # also when it crashes
        else:
            before, session.tab, session.repaints = session.tab, tab, True
            if session.end is not None:
                session.end.cancel()
            if before is not None and not before.closed:
                await before.close(code=TAKEN, message=b"This console was opened in another tab.")
            await session.set_terminal_size(width, height)
            await session.send_meta({"type": REPAINT})
        try:
            await self._process_messages(tab, session)
        except (asyncio.CancelledError, ConnectionError):
            await tab.close()
        finally:
            if session.tab is tab:
                session.tab = None
                await self._leave_waiting(place, session)
        return tab

    async def _nothing(self, *data: Any) -> None:
        """Stands where a session's own methods are put."""

    async def _leave_waiting(self, place: str, session: _Session) -> None:
        """Keep a console without a tab for a while; of too many the oldest ends."""
        loop = asyncio.get_running_loop()
        session.end = loop.call_later(0 if session.left else self.kept, lambda: loop.create_task(self._stop(place, session)))
        waiting = [key for key, each in self.sessions.items() if each.tab is None]
        for oldest in waiting[:-MOST_WAITING]:
            await self._stop(oldest, self.sessions[oldest])

    async def _stop(self, place: str, session: _Session) -> None:
        if session.end is not None:
            session.end.cancel()
        if session.tab is None or session.left:
            if self.sessions.get(place) is session:
                del self.sessions[place]
            await session.stop()

    async def _end(self, app: web.Application) -> None:
        """Close the tabs and end the consoles."""
        sessions, self.sessions = [*self.sessions.values()], {}
        for session in sessions:
            session.left = True
            if session.end is not None:
                session.end.cancel()
            if session.tab is not None:
                await session.tab.close(code=LEFT, message=b"qwen3vl console --web has ended; runs keep running.")
        await asyncio.gather(*(session.stop() for session in sessions))


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
        raise RequestError(filled("--web: no port from {} to {} is free; name one with --port", FIRST_PORT, FIRST_PORT + PORTS - 1))
    with contextlib.closing(listen(None)) as free:
        raise RequestError(filled("--port {}: {}; use {}, or leave it out", port, reason, free.getsockname()[1]))


def serve(runs: Path, workspace: Path | None, port: int | None = None, browser: bool = True, behind: str | None = None) -> int:
    """Print the link, and serve the console until Ctrl-C. behind: the address at which a gateway serves this port, with `{port}` for its
    number. Returns the exit code. Raises RequestError when the port is taken, and for a wrong address."""
    words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(runs)]
    words += ["--workspace", str(workspace)] if workspace is not None else []
    with listen(port) as listener:
        number = listener.getsockname()[1]
        proxy = gateway(behind, number) if behind is not None else cloud_notebook(os.environ, number)
        server = ConsoleServer(words, number, proxy)
        if server.proxied_link is not None:
            print(f"the console in a browser, through the gateway (Ctrl-C ends it; runs keep running):\n  {server.proxied_link}")
            print(f"on this machine itself:\n  {server.link}", flush=True)
        else:
            print(f"the console in a browser, on this machine only (Ctrl-C ends it; runs keep running):\n  {server.link}", flush=True)
            if browser:
                show_in_browser(server.link)
        web.run_app(server._make_app(), sock=listener, print=None, access_log=None, handle_signals=True)
    return EXIT_DONE
