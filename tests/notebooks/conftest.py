"""A prepared dataset and a run of the tiny model, shared by the tests; widgets and processes end with their test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

import ipywidgets
from PIL import Image, ImageDraw

from console.runs import launch
from console.runs.store import Run, RunStore
from qwen3vl_core.cli import dispatch
from qwen3vl_core.data.prepare.command import run as prepare
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.options import FinetuneOptions, PrepareOptions, to_arguments
from tests.console.runs import jobs
from tests.shared import once

ANSWERS = ("a red ball", "two cats on a mat", "a blue house at night", "a woman with her dog in the forest")


@pytest.fixture(autouse=True)
def quick_end(monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "0.4")


@pytest.fixture
def store(tmp_path):
    with jobs.run_store(tmp_path / "runs") as made:
        yield made


@pytest.fixture(autouse=True)
def closed_widgets():
    """Every widget of a test is closed after it, and with it its thread."""
    yield
    ipywidgets.Widget.close_all()


def _prepare(folder: Path) -> None:
    records = []
    for number in range(32):
        picture = Image.new("RGB", (64, 48), (8 * number, 90, 255 - 8 * number))
        ImageDraw.Draw(picture).rectangle((10, 10, 30, 20 + number % 20), fill=(255, 255, 8 * number))
        picture.save(folder / f"{number:02d}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": ANSWERS[number % len(ANSWERS)]}]
        records.append({"id": f"n{number}", "image": f"{number:02d}.png", "conversations": turns})
    (folder / "list.json").write_text(json.dumps(records))
    prepare(PrepareOptions(source=str(folder / "list.json"), to=str(folder / "data"), split="7,1,0"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """32 drawn pictures, a question and an answer each, prepared. Read-only."""
    return once(tmp_path_factory, "small-dataset", _prepare) / "data"


def finetune_options(dataset: Path, **changes) -> dict:
    """Options of a training that takes seconds."""
    return {
        "load": str(BASE), "train_data": str(dataset), "precision": "fp32", "micro_batch_size": 2, "global_batch_size": 2,
        "seq_length": 128, "train_iters": 4, "lr": 5e-4, "name": "tiny",
    } | changes  # fmt: skip


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory) -> Run:
    """A real finetune of the bundled model that is done, started by the command line: 4 steps, evaluations at 2 and 4."""

    def train(folder: Path) -> None:
        options = FinetuneOptions(**finetune_options(dataset, eval_interval=2, eval_iters=1))
        assert dispatch(["finetune", *to_arguments(options), "--runs", str(folder)]) == 0
        run = RunStore(folder).get(1)
        assert launch.wait(run, 300) == "done", run.log.read_text()[-2000:]

    return RunStore(once(tmp_path_factory, "trained-runs", train)).get(1)


def recorded(store: RunStore, kind: str = "finetune", program: str = "", **options) -> Run:
    """A run of a small job that is created but not started."""
    return store.create(kind, options, jobs.job(program or "pass"))


def write_metrics(run: Run, losses, kind: str = "train", begin: int = 1) -> None:
    """Rows of a run's metrics, as a training writes them."""
    rows = [{"v": 1, "step": begin + i, "time": 0.0, "kind": kind, "loss": value} for i, value in enumerate(losses)]
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
