"""Everything that is read from outside, as small sound files, and the readers that they are given to.

    READERS["config.json"].make(folder)     # the sound files, once
    READERS["config.json"].read(folder)     # what the commands do with them

A reader ends with what it read, or with one line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.readers import structures
from tests.readers.outside_models import (
    make_adapter,
    make_checkpoint,
    make_dataset,
    make_hf,
    make_processor,
    make_sharded,
    read_adapter,
    read_checkpoint,
    read_config,
    read_model,
    read_processor,
    read_state,
)
from tests.readers.structures import Change


@dataclass(frozen=True)
class Reader:
    """One kind of outside file, or several that are read together."""

    make: Callable[[Path], None]
    """Writes the sound files."""
    files: dict[str, Change]
    """The files that are damaged, below that folder, and how."""
    read: Callable[[Path], Any]


# datasets


def _samples(place: Path, split: str) -> None:
    from qwen3vl_core.data.blend import open_split
    from qwen3vl_core.data.errors import DataError

    opened = open_split(place, split)
    opened.order(0)
    for number in range(min(len(opened), 8)):
        with contextlib.suppress(DataError):
            opened.read(number)
        opened.place(number)
    opened.close()


def read_dataset(folder: Path) -> None:
    from qwen3vl_core.data.inspect import command as inspect
    from qwen3vl_core.options import InspectOptions

    _samples(folder / "one", "train")
    inspect.run(InspectOptions(path=str(folder / "one")))


def read_blend(folder: Path) -> None:
    from qwen3vl_core.data.blend import is_metadataset, split_names
    from qwen3vl_core.data.storage import place_of

    place = place_of(str(folder / "blend.yaml"))
    is_metadataset(place)
    split_names(place)
    failure = None
    for split in ("train", "val", "test"):
        try:
            _samples(folder / "blend.yaml", split)
        except ValueError as error:
            failure = error
    if failure is not None:
        raise failure


# runs


def make_run(folder: Path) -> None:
    """A finetune and a comparison, both lost, with every file that a reader looks at."""
    from console.runs.store import RunStore
    from qwen3vl_core.options import CompareOptions, FinetuneOptions
    from qwen3vl_core.run_record import sample_row

    store = RunStore(folder / "runs")
    options = FinetuneOptions(load="/models/base", train_data="/data", train_iters=9, save_interval=3, sample_interval=3, name="of outside")
    run = store.create("finetune", options, ["true"])
    rows: list[dict[str, Any]] = [{"v": 1, "step": 0, "time": 1.0, "kind": "event", "event": "start", "text": "9 steps", "train_iters": 9}]
    for step in range(1, 7):
        rows.append({"v": 1, "step": step, "time": 1.0 + step, "kind": "train", "loss": 3.0 / step, "lr": 1e-5, "grad_norm": 1.0,
                     "step_seconds": 1.0, "tokens_per_second": 100.0, "mfu": 0.25})  # fmt: skip
    rows.append(
        {"v": 1, "step": 3, "time": 4.5, "kind": "event", "event": "save", "text": "checkpoint iter_0000003", "path": "x", "seconds": 1}
    )
    rows.append({"v": 1, "step": 5, "time": 6.5, "kind": "eval", "loss": 1.0, "tokens": 10})
    rows.append(
        {"v": 1, "step": 6, "time": 7.5, "kind": "event", "event": "nan", "text": "step 6", "keys": ["a"], "loss": None, "in_a_row": 1}
    )
    _lines(run.path / "metrics.jsonl", rows)
    _lines(run.path / "samples.jsonl", [sample_row("a.jpg", "Describe.", "tuned", "A dog", 1.0, step=step) for step in (3, 6)])
    _lines(run.path / "skipped.jsonl", [{"key": "a", "reason": "missing", "detail": "no file", "shard": "x.tar"}])
    (run.path / "ranks").mkdir()
    (run.path / "ranks" / "0.json").write_text(
        json.dumps({"v": 1, "rank": 0, "pid": 1, "host": "a", "step": 6, "doing": "step", "count": 9, "time": 8.0})
    )
    (run.path / "output.log").write_text(
        'qwen3vl[resumed]: resumed\nstep 1\nTraceback (most recent call last):\n  File "x", line 1, in y\nRuntimeError: CUDA error\n'
        "qwen3vl[work]: /disk: the disk is full; free some space\n"
    )
    (run.path / "checkpoints" / "iter_0000003").mkdir(parents=True)
    (run.path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3\n")
    compared = store.create("compare", CompareOptions(base="/b", tuned=["/t"], images=["a.jpg"]), ["true"])
    _lines(compared.path / "samples.jsonl", [sample_row(image, "Describe.", model, "A dog", 1.0) for image in ("a.jpg", "b.jpg")
                                             for model in ("base", "tuned")])  # fmt: skip
    (compared.path / "comparison.json").write_text(json.dumps({
        "v": 1, "prompt": "Describe.", "models": {"base": {"path": "/b", "size": "4B"}, "tuned": {"path": "/t", "size": None}},
        "sampling": {"temperature": 0.0, "seed": 0}, "notes": ["a note"],
        "pictures": [{"image": "a.jpg", "references": ["A cat"]}, {"image": "b.jpg", "references": []}],
    }))  # fmt: skip
    (compared.path / "votes.json").write_text(json.dumps({"v": 1, "votes": {"a.jpg": "tuned", "b.jpg": "same"}, "blind": ["a.jpg"]}))


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_runs(folder: Path) -> None:
    """As `qwen3vl runs` and the screens of the console read a store."""
    from console.captions_command import captions
    from console.readers.captions import CompareFeed
    from console.readers.monitor import MonitorFeed
    from console.readers.store_watcher import StoreWatcher
    from console.runs import check, diagnosis, filters, launch, run_json, run_text
    from console.runs.metric_columns import MetricColumns
    from console.runs.stall import StallWatch
    from console.runs.store import RunStore
    from console.runs.tail import LogTail
    from qwen3vl_core.errors import RequestError, WorkError

    store = RunStore(folder / "runs")
    runs = store.list()
    run_text.table(runs)
    rows = [run_json.summarize(run) for run in runs]
    for order in filters.orders():
        filters.select_runs(rows, "loss:1 lr:1e-5 of", order)
    json.dumps([run_json.as_json(row) for row in rows])
    watcher = StoreWatcher(folder / "runs")
    snapshot = watcher.look()
    for row in snapshot.rows:
        row.percent, row.eta, row.saved, row.checkpoint_text, row.command, row.age(9.0)
    for run in runs:
        run_text.describe(run)
        run_json.details(run)
        found = MetricColumns(run.metrics)
        run_text.metrics_table(found.columns(found.names))
        "".join(found.json(run.id, found.names)).encode("utf-8", "replace")
        run_json.differences(run, runs[0])
        MonitorFeed(watcher).read(run, [], "loss")
        LogTail(run.log).read()
        diagnosis.diagnose(run)
        check.checkpoints(run)
        StallWatch(run.path, 60.0).look()
        with contextlib.suppress(RequestError, WorkError):
            launch.stop(run, 0.0)
        if run.kind == "compare":
            CompareFeed().read(run)
            with contextlib.suppress(RequestError, WorkError):
                captions(store, argparse.Namespace(id=run.id, vote=[], html=None, json=True, show=0))
                captions(store, argparse.Namespace(id=run.id, vote=[], html=None, json=False, show=0))


def read_plan_again(folder: Path) -> None:
    """As clone, resume, --plan and the training itself read a run's plan."""
    from console.runs import plan_record
    from console.runs.store import RunStore
    from qwen3vl_core.errors import RequestError
    from qwen3vl_core.layout.verdict import judge
    from qwen3vl_core.options import FinetuneOptions, from_mapping
    from qwen3vl_core.options.planfile import read_plan_file
    from qwen3vl_core.training.plan_loading import read_options

    run = min(RunStore(folder / "runs").list(), key=lambda run: run.number)
    failure: ValueError | None = None
    for read in (
        lambda: plan_record.change_options(run.path, run.plan, {"train_iters": 12}),
        lambda: judge(from_mapping(FinetuneOptions, run.options), disk=False),
        lambda: judge(from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, run.path / "plan.json")), disk=False),
        lambda: read_options(run.path),
    ):
        try:
            read()
        except ValueError as error:
            failure = error
            _short_lines(error)
    if failure is not None:
        raise RequestError(str(failure).splitlines()[0])


def _short_lines(error: Exception) -> None:
    lines = str(error).splitlines()
    problems = getattr(error, "problems", None)
    if problems is None or len(lines) != len(problems):
        raise AssertionError(f"not one line a problem: {str(error)[:300]!r}") from error


# small files


def make_plan_file(folder: Path) -> None:
    (folder / "plan.yaml").write_text(
        "load: base-mcore\ntrain_data: data\nlr: 1.0e-05\ntrain_iters: 100\nlora_rank: 16\nsample_images: [a.jpg, b.jpg]\n"
        "packing: true\nsize: 4B\ntp: 2\nmicro_batch_size: 1\nglobal_batch_size: 8\nname: named\nseq_length: 2048\n"
    )


def read_plan(folder: Path) -> None:
    from qwen3vl_core.layout.verdict import judge
    from qwen3vl_core.options import FinetuneOptions, from_mapping
    from qwen3vl_core.options.planfile import read_plan_file
    from qwen3vl_core.options.planning import PlanOptions

    try:
        options = from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, folder / "plan.yaml"), partial=True)
        judge(options, PlanOptions(gpus=8), disk=False).require_valid()
    except ValueError as error:
        _short_lines(error)
        raise type(error)(str(error).splitlines()[0]) from None


RECIPE = (
    "dsw 4B 1 8 1e-5 1e-6 2048 2048 bf16 2 1 1 1 1 false true true sel true 100 /data/train /data/valid /models/Qwen3-VL-4B 100 10 /out"
)


def make_recipe(folder: Path) -> None:
    (folder / "values.txt").write_text(RECIPE)
    (folder / "conversion.txt").write_text("4B /models/Qwen3-VL-4B /out/mcore false true bf16")


def read_recipe(folder: Path) -> None:
    from qwen3vl_core.layout import conversion_recipe, recipe

    for name in ("values.txt", "conversion.txt"):
        # what a command line can hold
        words = [word for word in (folder / name).read_bytes().decode("utf-8", "surrogateescape").replace("\0", "").split(" ") if word]
        if len(words) in conversion_recipe.COUNTS:
            conversion_recipe.read(words)
        else:
            recipe.render(recipe.read(words, gpus=8, environment={"MP_VP": words[0] if words else ""}))


def make_references(folder: Path) -> None:
    (folder / "map.json").write_text(json.dumps({"a.jpg": "A dog", "b.jpg": ["Two", "dogs"], "c.jpg": {"caption": "x"}}))
    (folder / "rows.jsonl").write_text('{"image": "a.jpg", "caption": "A dog"}\n{"file_name": "b.jpg", "captions": ["x", "y"]}\n')
    (folder / "coco.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog"}]})
    )
    (folder / "llava.json").write_text(
        json.dumps([{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A dog"}]}])
    )


def read_captions(folder: Path) -> None:
    from qwen3vl_core.caption.references import read_references

    failure = None
    for file in sorted(folder.iterdir()):
        try:
            read_references(str(file)).of(Path("/pictures/a.jpg"))
        except ValueError as error:
            failure = error
    if failure is not None:
        raise failure


def make_settings(folder: Path) -> None:
    (folder / "settings.yaml").write_text(
        "theme: nord\nkeys:\n  runs.stop: X\n  monitor.log_y: 'g,delete'\nbell: off\n"
        "notify: [env:A_HOOK, 'slack:https://example.com/x']\nnotify_command: notify-send 'a run'\n"
    )


def read_user_settings(folder: Path) -> None:
    from console.settings import read_settings
    from qwen3vl_core import notify

    addresses, command = notify.from_settings(folder / "settings.yaml")
    for line in notify.receivers(addresses, command, settings=False).problems:
        assert "\n" not in line and len(line) < 4000, line[:300]

    for line in read_settings(["runs.stop", "monitor.log_y"], ["nord", "textual-dark"], folder / "settings.yaml").problems:
        assert "\n" not in line and len(line) < 4000, line[:300]


_RUN = "runs/0001-of-outside"
_COMPARED = "runs/0002-compare"
READERS: dict[str, Reader] = {
    "common.pt": Reader(make_checkpoint, {"checkpoints/iter_0000003/common.pt": structures.as_archive}, read_state),
    "extra.json": Reader(make_checkpoint, {"checkpoints/iter_0000003/extra.json": structures.as_json}, read_state),
    ".metadata": Reader(make_checkpoint, {"checkpoints/iter_0000003/.metadata": structures.as_pickle}, read_checkpoint),
    "checkpoint's other files": Reader(make_checkpoint, {
        "checkpoints/iter_0000003/metadata.json": structures.as_json, "checkpoints/latest_checkpointed_iteration.txt": structures.as_text,
        "checkpoints/config.json": structures.as_json, "checkpoints/iter_0000003/__0_0.distcp": structures.as_bytes,
    }, read_checkpoint),
    "safetensors": Reader(make_hf, {"model/model.safetensors": structures.as_safetensors}, read_model),
    "index.json": Reader(make_sharded, {
        "model/model.safetensors.index.json": structures.as_json, "model/model-00001-of-00002.safetensors": structures.as_safetensors,
    }, read_model),
    "config.json": Reader(make_hf, {"model/config.json": structures.as_json}, read_config),
    "adapter": Reader(make_adapter, {
        "model/adapter_config.json": structures.as_json, "model/adapter_model.safetensors": structures.as_safetensors,
    }, read_adapter),
    "tokenizer": Reader(make_processor, {
        "tokenizer.json": structures.as_json, "tokenizer_config.json": structures.as_json,
    }, read_processor),
    "processor": Reader(make_processor, {
        "preprocessor_config.json": structures.as_json, "video_preprocessor_config.json": structures.as_json,
        "generation_config.json": structures.as_json,
    }, read_processor),
    "chat template": Reader(make_processor, {"chat_template.jinja": structures.as_text}, read_processor),
    "Energon index": Reader(make_dataset, {
        "one/.nv-meta/split.yaml": structures.as_yaml, "one/.nv-meta/.info.json": structures.as_json,
        "one/.nv-meta/dataset.yaml": structures.as_yaml, "one/.nv-meta/index.uuid": structures.as_text,
        "one/.nv-meta/index.sqlite": structures.as_bytes, "one/train-00000.tar.idx": structures.as_bytes,
    }, read_dataset),
    "metadataset": Reader(make_dataset, {"blend.yaml": structures.as_yaml}, read_blend),
    "run record": Reader(make_run, {
        f"{_RUN}/plan.json": structures.as_json, f"{_RUN}/state.json": structures.as_json, f"{_RUN}/ranks/0.json": structures.as_json,
        f"{_RUN}/output.log": structures.as_text, f"{_COMPARED}/plan.json": structures.as_json,
    }, read_runs),
    "events and metrics": Reader(make_run, {
        f"{_RUN}/metrics.jsonl": structures.as_lines, f"{_RUN}/samples.jsonl": structures.as_lines,
        f"{_RUN}/skipped.jsonl": structures.as_lines,
    }, read_runs),
    "comparison": Reader(make_run, {
        f"{_COMPARED}/comparison.json": structures.as_json, f"{_COMPARED}/votes.json": structures.as_json,
        f"{_COMPARED}/samples.jsonl": structures.as_lines,
    }, read_runs),
    "plan.json": Reader(make_run, {f"{_RUN}/plan.json": structures.as_json}, read_plan_again),
    "plan file": Reader(make_plan_file, {"plan.yaml": structures.as_yaml}, read_plan),
    "recipe": Reader(make_recipe, {"values.txt": structures.as_text, "conversion.txt": structures.as_text}, read_recipe),
    "captions": Reader(make_references, {
        "map.json": structures.as_json, "rows.jsonl": structures.as_lines,
        "coco.json": structures.as_json, "llava.json": structures.as_json,
    }, read_captions),
    "settings": Reader(make_settings, {"settings.yaml": structures.as_yaml}, read_user_settings),
}  # fmt: skip
