"""A store with real runs for every test."""

from __future__ import annotations

import pytest
from textual_image.widget import HalfcellImage

from tests.console.app.driving import Store


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    """Textual looks 50 times a second whether the app is idle; twice after every key that adds up."""
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 1 / 250, raising=False)


@pytest.fixture(autouse=True)
def no_settings(tmp_path, monkeypatch):
    """Nobody's own keys and colours."""
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "no-settings.yaml"))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("console.screens.compare.PictureWidget", HalfcellImage)
    made = Store(tmp_path / "runs")
    yield made
    made.tidy()
