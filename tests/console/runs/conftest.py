"""Each test has its own store; processes started by a test end with it."""

from __future__ import annotations

import pytest

from tests.console.runs import jobs


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "0.4")
    with jobs.run_store(tmp_path / "runs") as made:
        yield made
