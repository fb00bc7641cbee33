"""A store with real runs for every test."""

from __future__ import annotations

import pytest
from PIL import Image
from textual_image.widget import HalfcellImage

from console.runs import launch
from tests.console.app.comparisons import LONG, SHORT, rows_of
from tests.console.app.driving import Store, settled


@pytest.fixture(autouse=True)
def pilots_wait_for_messages(monkeypatch):
    """The pilot waits until all messages are handled and drawn, since low CPU use means nothing on a busy machine."""

    async def idle(*seconds):
        await settled()

    async def screen(pilot, timeout=0.0):
        await settled(pilot.app)
        return True

    monkeypatch.setattr("textual.pilot.wait_for_idle", idle)
    monkeypatch.setattr("textual.app.wait_for_idle", idle)
    monkeypatch.setattr("textual.pilot.Pilot._wait_for_screen", screen)


@pytest.fixture(autouse=True)
def no_settings(tmp_path, monkeypatch):
    """No user settings."""
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "no-settings.yaml"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("console.screens.compare.PictureWidget", HalfcellImage)
    made = Store(tmp_path / "runs")
    yield made
    made.tidy()


@pytest.fixture
def pictures(tmp_path):
    made = []
    for i in range(3):
        made.append(tmp_path / f"scene-{i}.png")
        Image.new("RGB", (64, 48), (200, 30 + 60 * i, 40)).save(made[-1])
    return made


@pytest.fixture
def compared(store, pictures):
    run = store.other("compare", "print('3 of 3 captions')")
    launch.wait(run, 150)
    (run.path / "samples.jsonl").write_text(rows_of(pictures, "base", LONG) + rows_of(pictures, "tuned", SHORT))
    return run
