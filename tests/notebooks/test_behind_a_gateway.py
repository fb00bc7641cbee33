"""The console in a browser through a real JupyterLab's proxy with TLS in front. Installs jupyter-server-proxy into a temporary folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.console.runs.jobs import until
from tests.notebooks.browser import Browser, pages
from tests.notebooks.gateways import tls_in_front
from tests.notebooks.kernels import ROOT, running_lab
from tests.notebooks.terminal import Terminal
from tests.notebooks.test_notebooks import ACTIVE, RED, comparison  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("QWEN3VL_PROXY") != "1", reason="installs jupyter-server-proxy: set QWEN3VL_PROXY=1"),
]
BASE = "/dsw-831216/"
LINK = re.compile(r"https://\S+")


@pytest.fixture
def browser() -> Iterator[Browser]:
    yield from pages(ignore_https_errors=True)


def test_the_console_works_behind_jupyterlabs_proxy(tmp_path, comparison, browser):  # noqa: F811
    """A tab, a picture in a tab of its own, and a reload that keeps the place; all below a path, with TLS."""
    site = tmp_path / "site"  # not in the tests' own environment
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), "jupyter-server-proxy", "simpervisor"]
    subprocess.run(pip, check=True)
    folder = tmp_path / "lab"
    folder.mkdir()
    settings = tmp_path / "jupyter_config_dir" / "jupyter_server_config.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"jupyter_server_proxy": True}}}))
    with (
        running_lab(tmp_path, folder, base=BASE, PYTHONPATH=f"{ROOT}{os.pathsep}{site}") as (address, token, _),
        tls_in_front(tmp_path, int(address.rpartition(":")[2])) as port,
    ):
        gateway = f"https://localhost:{port}{BASE}"
        words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--web", "--runs", str(comparison.path.parent)]
        log = tmp_path / "web.log"
        with open(log, "wb") as file:
            server = subprocess.Popen([*words, "--behind-proxy", gateway + "proxy/{port}/"], stdout=file, stderr=subprocess.STDOUT)
        try:
            link = until(lambda: LINK.search(log.read_text()), 240)[0]
            page, terminal = browser.page, Terminal(browser, tmp_path)
            page.goto(f"{gateway}lab?token={token}")
            page.goto(link)
            assert page.url == link.partition("?")[0], "the token is not in the address any more"
            terminal.until(lambda: terminal.shows(ACTIVE, 100), "the console's bar, a screen's name in it marked")
            page.keyboard.press("4")
            terminal.until(lambda: terminal.shows(RED, 4000), "the red picture")
            browser.keep(tmp_path, "gateway-compare")
            page.reload()
            terminal.until(lambda: terminal.shows(RED, 4000), "the same screen after a reload")
            with page.context.expect_page() as opened:
                page.keyboard.press("o")
            opened.value.wait_for_load_state()
            assert re.fullmatch(re.escape(page.url) + r"file/[\w-]+/red\.png", opened.value.url)
            shot = tmp_path / "picture.png"
            opened.value.screenshot(path=shot)
            assert RED in {colour for _, colour in Image.open(shot).convert("RGB").getcolors(1 << 20)}
            assert not browser.errors
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0, Path(log).read_text()
