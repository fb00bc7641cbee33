"""The console in a browser: access control, and a tab that shows the real console."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import pytest
from aiohttp import web as aio

from console import commands
from console.gateway import cloud_notebook, gateway
from console.web import FIRST_PORT, HOST, LEFT, TAKEN, TOKEN, ConsoleServer, listen
from qwen3vl_core.errors import RequestError


def served(scene, words, proxy=None, kept=600.0):
    """Run a scene with a running server and a client that accepts cookies for IP addresses."""

    async def play():
        with listen(None) as listener:
            server = ConsoleServer(words, listener.getsockname()[1], proxy, kept)
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
        for path in (
            "/",
            f"/?{TOKEN}=",
            f"/?{TOKEN}=guessed",
            "/ws/a",
            f"/ws/a?{TOKEN}=%FF",
            "/static/js/textual.js",
            "/static/",
            "/file/x/y",
            "/alive",
        ):
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
            for path in ("/", "/ws/a"):
                async with client.get(root + path, headers=headers) as answer:
                    assert answer.status == 403, headers
        async with client.get(root + "/static/js/textual.js") as answer:
            assert answer.status == 200

    served(scene, [sys.executable, "-c", "raise SystemExit('no tab may start')"])


async def seen(tab, text):
    """What a tab gets, until it has this text."""
    got = b""
    async with asyncio.timeout(240):
        while text not in got:
            message = await tab.receive()
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
            got += message.data if isinstance(message.data, bytes) else message.data.encode()
    return got


async def closed(tab):
    """The code with which the server closes a tab."""
    async with asyncio.timeout(240):
        while not tab.closed and (await tab.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
            pass
    return tab.close_code


def test_a_tab_shows_the_console_and_a_reload_keeps_its_place(tmp_path):
    words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(tmp_path / "runs")]

    async def scene(server, client, root):
        async with client.get(server.link) as answer:
            text = await answer.text()
            assert "://" not in text and "googleapis" not in text  # nothing but relative addresses

        def tab(place):
            return client.ws_connect(f"{root}/ws/{place}?width=100&height=30", headers={"Origin": root})

        async with tab("here") as first:
            await seen(first, b"Try the demo")
            await first.send_json(["stdin", "2"])
            await seen(first, b"required")
            # the same place in another tab: the first one gives it up
            async with tab("here") as second:
                assert await closed(first) == TAKEN
                await seen(second, b"required")
        # loaded again: the screen as it was, drawn whole, by the same process
        (session,) = server.sessions.values()
        process = session._process.pid
        async with tab("here") as again:
            drawn = await seen(again, b"required")
            assert b"\x1b[?1049h" in drawn and b"\x1b[?1000h" in drawn and b"Try the demo" not in drawn
            assert server.sessions["here"]._process.pid == process
            await again.send_json(["stdin", "\x11"])  # ctrl+q
            assert await closed(again) == LEFT
        while server.sessions:
            await asyncio.sleep(0)

    served(scene, words)


SHOWS = """
import json, os, pathlib, sys
def meta(**message):
    data = json.dumps(message).encode()
    os.write(1, b"M" + len(data).to_bytes(4, "big") + data)
os.write(1, b"__GANGLION__\\n")
meta(type="open_url", url=pathlib.Path(sys.argv[1]).as_uri(), new_tab=True)
sys.stdin.buffer.read()
"""


def test_what_the_console_opens_is_served_below_the_page_and_nothing_else_is(tmp_path):
    file = tmp_path / "a picture.svg"
    file.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")

    async def scene(server, client, root):
        async with client.get(server.link):
            pass
        async with client.ws_connect(f"{root}/ws/here", headers={"Origin": root}) as tab:
            what, message = await tab.receive_json()
            assert what == "open_url" and message["url"].startswith("file/") and message["url"].endswith("/a%20picture.svg")
            async with client.get(f"{root}/{message['url']}") as answer:
                assert await answer.text() == file.read_text() and answer.content_type == "image/svg+xml"
                # whatever it holds has an origin of its own, and no network
                assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
                assert "allow-same-origin" not in answer.headers["Content-Security-Policy"]
            async with client.get(f"{root}/file/guessed/{file.name}") as answer:
                assert answer.status == 404

    served(scene, [sys.executable, "-c", SHOWS, str(file)], kept=0.0)


def test_behind_a_gateway_its_origin_and_any_host_name_are_taken_and_no_other_origin():
    proxy = gateway("https://gateway.example/me/proxy/{port}", 8866)

    async def scene(server, client, root):
        assert server.proxied_link == f"https://gateway.example/me/proxy/8866/?{TOKEN}={server.token}"
        headers = {"Host": "gateway.example", "Origin": "https://gateway.example"}
        async with client.get(f"{root}/?{TOKEN}={server.token}", headers=headers, allow_redirects=False) as answer:
            # relative, and a cookie of the page's own path
            cookie = answer.headers["Set-Cookie"]
            assert answer.status == 302 and answer.headers["Location"] == "./"
            assert "Path" not in cookie and "HttpOnly" in cookie and "Secure" in cookie and "SameSite=Lax" in cookie
        token = {"Cookie": f"{server.cookie}={server.token}"}
        for more, status in (({}, 200), ({"Host": "10.0.0.7"}, 200), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403)):
            async with client.get(root + "/alive", headers=headers | token | more) as answer:
                assert answer.status == status, more
        async with client.get(root + "/alive", headers=headers) as answer:
            assert answer.status == 403

    served(scene, [sys.executable, "-c", "raise SystemExit('no tab may start')"], proxy)


def test_a_cloud_notebook_is_known_by_its_variables():
    found = cloud_notebook({"JUPYTER_NAME": "dsw-831216", "dsw_region": "cn-shanghai"}, 8866)
    assert found is not None and found.address == "https://dsw-gateway-cn-shanghai.data.aliyun.com/dsw-831216/proxy/8866/"
    assert found.origin == "https://dsw-gateway-cn-shanghai.data.aliyun.com"
    for other in ({}, {"JUPYTER_NAME": "dsw-1"}, {"JUPYTER_NAME": "jupyter-me", "REGION": "cn-beijing"},
                  {"JUPYTER_NAME": "dsw-1", "REGION": "evil.example/"}):  # fmt: skip
        assert cloud_notebook(other, 8866) is None


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
    (["--behind-proxy", "https://a.example/"], "--behind-proxy: needs --web"),
    (["--web", "--behind-proxy", "gateway/me"], r"--behind-proxy gateway/me: must be http\(s\)://HOST/PATH"),
    (["--web", "--behind-proxy", "https://a.example/?x=1"], "must be http"),
])  # fmt: skip
def test_a_wrong_request_for_the_browser_is_a_one_line_error(words, line):
    with pytest.raises(RequestError, match=line):
        commands.console(words)
