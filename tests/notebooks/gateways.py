"""A gateway as a cloud notebook has one: TLS in front of a JupyterLab below a path, whose proxy reaches other ports."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path


def _certificate(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def tls_in_front(folder: Path, port: int) -> Iterator[int]:
    """The port of a server with TLS that passes all bytes on to `port` of this machine, until the block ends."""
    context, loop, ready = _certificate(folder), asyncio.new_event_loop(), Future[int]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pipe(reader, before), _pipe(behind, writer))

    def serve() -> None:  # in a thread of its own: the browser's driver has a loop in this one
        server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0, ssl=context))
        ready.set_result(server.sockets[0].getsockname()[1])
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield ready.result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
