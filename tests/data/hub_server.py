"""A small hub: as much of Hugging Face's and of ModelScope's interface as serves one repository to the real clients.

It can cut a file's first transfers half-way, and writes down what it was asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "qwen3_vl"}\n', "weights/model.safetensors": bytes(range(256)) * 96_000}
LARGE = "weights/model.safetensors"


class Hub:
    """One repository, `owner/thing`, as a model or as a dataset."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.kind = "model"
        self.cuts = 0
        """How many transfers of LARGE still end half-way."""
        self.pause = False
        """Transfers of LARGE wait half-way, until `go` is set."""
        self.half_way, self.go = threading.Event(), threading.Event()
        self.status: int | None = None
        """Answer to everything with this."""
        self.asked: list[tuple[str, str, str]] = []
        """(method, path, Range)"""
        self.sent = 0
        """Bytes of LARGE."""
        self.logins: list[str] = []
        """Authorization headers that came to where large files lie."""
        self.address = self.elsewhere = ""

    def ranges(self) -> list[str]:
        """The Range headers of the transfers of LARGE."""
        moved = [path.startswith("/elsewhere/") or "FilePath=" in path for _, path, _ in self.asked]
        name = LARGE.rpartition("/")[2]
        asked = zip(self.asked, moved, strict=True)
        return [range_ for (method, path, range_), here in asked if method == "GET" and here and name in unquote(path)]


def _entries(hub: Hub) -> list[dict[str, Any]]:
    made = []
    for name, content in hub.files.items():
        digest = hashlib.sha256(content).hexdigest()
        oid = hashlib.sha1(content).hexdigest()
        lfs = {"sha256": digest, "oid": digest, "size": len(content), "pointerSize": 130} if name == LARGE else None
        made.append({"name": name, "size": len(content), "oid": oid, "sha256": digest, "lfs": lfs})
    return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, address = self.hub, urlsplit(self.path)
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        if hub.status is not None:
            self._json({"error": "the hub says no", "Message": "the hub says no"}, hub.status)
        elif address.path.startswith("/api/v1/"):
            self._modelscope(address.path.removeprefix("/api/v1/"), {k: v[0] for k, v in parse_qs(address.query).items()})
        else:
            self._hugging_face(unquote(address.path))

    def _hugging_face(self, path: str) -> None:
        hub = self.hub
        api, files = f"/api/{hub.kind}s/owner/thing", ("" if hub.kind == "model" else "/datasets") + "/owner/thing/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": e["name"], "size": e["size"], "blobId": e["oid"], "lfs": e["lfs"]} for e in _entries(hub)]
            self._json({"_id": "1", "id": "owner/thing", "sha": COMMIT, "private": False, "siblings": siblings, "tags": [], "downloads": 0})
        elif path == f"{api}/tree/{COMMIT}":
            rows = ({"type": "file", "oid": e["oid"], "size": e["size"], "path": e["name"], "lfs": e["lfs"]} for e in _entries(hub))
            self._json([{key: value for key, value in row.items() if value is not None} for row in rows])
        elif path.startswith(f"{api}/revision/"):
            self._json({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path == files + COMMIT + "/" + LARGE and LARGE in hub.files:
            # large files lie elsewhere: where the hub's own login is not sent to
            held = {"X-Linked-Size": str(len(hub.files[LARGE])), "X-Linked-Etag": f'"{hashlib.sha256(hub.files[LARGE]).hexdigest()}"'}
            there = held | {"Location": hub.elsewhere + "/" + LARGE, "X-Repo-Commit": COMMIT}
            self._json({}, 302, there)
        elif path == "/elsewhere/" + LARGE:
            hub.logins.append(self.headers.get("Authorization", ""))
            self._file(LARGE, {})
        elif path.startswith(files + COMMIT + "/"):
            self._file(path.removeprefix(files + COMMIT + "/"), {"X-Repo-Commit": COMMIT})
        else:
            self._json({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _modelscope(self, path: str, query: dict[str, str]) -> None:
        hub = self.hub
        base = f"{hub.kind}s/owner/thing"
        if path in (f"{base}/repo/files", f"{base}/repo/tree"):
            if query.get("Revision", "master") != "master":
                self._json({"Code": 10010205, "Message": "revision not found", "Success": False}, 404)
                return
            rows = [{"Path": e["name"], "Name": e["name"], "Type": "blob", "Size": e["size"], "Sha256": e["sha256"]} for e in _entries(hub)]
            self._json({"Code": 200, "Success": True, "Data": {"Files": rows}, "TotalCount": len(rows)})
        elif path == f"{base}/repo":
            self._file(query["FilePath"], {})
        elif path == base:
            self._json({"Code": 200, "Success": True, "Data": {"Id": 1, "Name": "thing"}})
        else:
            self._json({"Code": 10010205002, "Message": "record not found", "Success": False}, 404)

    def _json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _file(self, name: str, headers: dict[str, str]) -> None:
        hub = self.hub
        if name not in hub.files:
            self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content, begin = hub.files[name], 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
        part = content[begin:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        shown = headers | {"Content-Length": str(len(part)), "Accept-Ranges": "bytes", "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        for key, value in shown.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == LARGE and hub.cuts > 0:
            hub.cuts -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        if name == LARGE:
            hub.sent += len(part)
        if name == LARGE and hub.pause:
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            hub.half_way.set()
            hub.go.wait()
            part = part[len(part) // 2 :]
        with contextlib.suppress(OSError):
            self.wfile.write(part)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    hub.elsewhere = f"http://localhost:{server.server_address[1]}/elsewhere"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
