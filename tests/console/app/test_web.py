"""The console in a browser: access control, and a tab that shows the real console."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import pytest
from aiohttp import web as aio

from console import commands
from console.web import FIRST_PORT, HOST, ConsoleServer, listen
from qwen3vl_core.errors import RequestError


def served(scene, words):
    """Run a scene with a running server and a client that accepts cookies for IP addresses."""

    async def play():
        with listen(None) as listener:
            server = ConsoleServer(words, listener.getsockname()[1])
            runner = aio.AppRunner(await server._make_app())
            await runner.setup()
            await aio.SockSite(runner, listener).start()
            try:
                async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
                    await scene(server, client, f"http://{HOST}:{server.port}")
            finally:
                await runner.cleanup()

    asyncio.run(play())


def test_without_the_token_everything_is_forbidden():
    async def scene(server, client, root):
        for path in ("/", "/?token=", "/?token=guessed", "/ws", "/ws?token=%FF", "/static/js/textual.js", "/static/", "/download/x"):
            async with client.get(root + path) as answer:
                assert answer.status == 403 and "token" in await answer.text(), path
        async with client.get(root + "/", cookies={server.cookie: "guessed"}) as answer:
            assert answer.status == 403

    served(scene, [sys.executable, "-c", "raise SystemExit('no tab may start')"])


def test_other_origins_and_host_names_are_forbidden_even_with_the_token():
    async def scene(server, client, root):
        async with client.get(server.link) as answer:
            assert answer.status == 200 and str(answer.url) == root + "/"  # the token is not in the address any more
        for headers in ({"Host": f"evil.example:{server.port}"}, {"Origin": "http://evil.example"}):
            for path in ("/", "/ws"):
                async with client.get(root + path, headers=headers) as answer:
                    assert answer.status == 403, headers
        async with client.get(root + "/static/js/textual.js") as answer:
            assert answer.status == 200

    served(scene, [sys.executable, "-c", "raise SystemExit('no tab may start')"])


def test_a_tab_with_the_token_shows_the_console(tmp_path):
    words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(tmp_path / "runs")]

    async def scene(server, client, root):
        async with client.get(server.link) as answer:
            text = await answer.text()
            assert "googleapis" not in text and f"ws://{HOST}:{server.port}/ws" in text
        seen = b""
        async with client.ws_connect(f"{root}/ws?width=100&height=30", headers={"Origin": root}) as tab:
            async with asyncio.timeout(240):
                while b"Try the demo" not in seen:
                    message = await tab.receive()
                    assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
                    seen += message.data if isinstance(message.data, bytes) else message.data.encode()
                await tab.send_json(["stdin", "\x11"])  # ctrl+q
                while not tab.closed and (await tab.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                    pass
        assert b"1 Runs" in seen.replace(b"\x1b[0m", b"") or b"Runs" in seen

    served(scene, words)


def test_a_used_port_is_avoided_or_refused_if_it_was_requested():
    with listen(None) as first, listen(None) as second:
        taken = first.getsockname()[1]
        assert first.getsockname()[0] == HOST and taken >= FIRST_PORT and second.getsockname()[1] > taken
        with pytest.raises(RequestError, match=rf"--port {taken}: .*; use \d+, or leave it out"):
            listen(taken)


@pytest.mark.parametrize("words, line", [
    (["--port", "9000"], "--port: needs --web"),
    (["--no-browser"], "--no-browser: needs --web"),
    (["--web", "--port", "99999"], "must be a port from 1 to 65535"),
])  # fmt: skip
def test_a_wrong_request_for_the_browser_is_a_one_line_error(words, line):
    with pytest.raises(RequestError, match=line):
        commands.console(words)
