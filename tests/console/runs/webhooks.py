"""A real web server of the tests' own that stands in for the services which take messages."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Received:
    """One request."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Webhooks:
    """What it got, and what it answers by path: (status, headers, body), the next one for each request, the last one for all others."""

    url: str
    answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    """Paths that send a byte now and then and never end."""
    received: list[Received] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def of(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]


@contextlib.contextmanager
def serving() -> Iterator[Webhooks]:
    """Listens on a free port of 127.0.0.1 while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hooks.received.append(Received(parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body))
            if parts.path in hooks.slow:
                self.send_response(200)
                self.end_headers()
                while not hooks.over.wait(0.2):
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                return
            answers = hooks.answers.get(parts.path) or [(200, {}, b'{"errcode": 0, "code": 0}')]
            status, headers, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hooks = Webhooks(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hooks
    finally:
        hooks.over.set()
        server.shutdown()
        server.server_close()
