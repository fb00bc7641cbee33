"""The record of a run is as `run_record.py` and `run_metrics.py` declare: its documentation, names, versions, and readers of metrics."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from console.readers.store_watcher import StoreWatcher
from console.runs import filters, launch, run_json, run_text
from console.runs.store import RunStore
from console.widgets.run_list import RunList
from console.widgets.run_numbers import finetune_panel
from qwen3vl_core import log_lines, run_metrics, run_record
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_metrics import METRICS, Metric
from qwen3vl_core.training.metrics import step_text
from qwen3vl_core.training.plan_loading import read_options

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "run-record.md").read_text(encoding="utf-8")
FIELDS = {
    "plan.json": run_record.PLAN_FIELDS,
    "state.json": run_record.STATE_FIELDS,
    "metrics.jsonl": run_record.ROW_FIELDS,
    "Events": run_record.EVENT_FIELDS,
    "ranks": run_record.RANK_FIELDS,
    "check.json": run_record.CHECK_FIELDS,
    "nodes.json": run_record.NODES_FIELDS,
    "mirror.json": run_record.MIRROR_FIELDS,
    "queue.json": run_record.QUEUE_FIELDS,
    "samples.jsonl": run_record.SAMPLE_FIELDS,
    "comparison.json": run_record.COMPARISON_FIELDS,
    "votes.json": run_record.VOTES_FIELDS,
    "skipped.jsonl": run_record.SKIPPED_FIELDS,
}
ELSEWHERE = {
    # a file of the demo and of an example in the help, that no run writes
    "captions.json": ("qwen3vl_core/demo/", "qwen3vl_core/command_line.py"),
    # help of the option --plan
    "plan.json": ("qwen3vl_core/command_line.py", "qwen3vl_core/chinese/"),
    # a file that Hugging Face's datasets write beside a dataset
    "state.json": ("qwen3vl_core/data/sources.py",),
    # help of an option that names a checkpoint
    "iter_": ("qwen3vl_core/options/commands.py", "qwen3vl_core/chinese/"),
}  # fmt: skip
NEW = Metric("entropy", "of the router", "nats", tag="router-entropy", panel="always", line=3, listed=True, summary=True, noisy=True)


def tables(section: str) -> list[list[tuple[str, ...]]]:
    """The tables under a heading of the page, as rows of cells without their head."""
    text = re.split(rf"^#+ {re.escape(section)}$", PAGE, flags=re.MULTILINE)[1]
    text = re.split(r"^#+ ", text, flags=re.MULTILINE)[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = block.replace("\\|", "\0").splitlines()[2:]
        rows = [[cell.strip().replace("\0", "|") for cell in line.strip("|").split("|")] for line in lines]
        found.append([(name.strip("`"), *cells) for name, *cells in rows])
    return found


@pytest.mark.parametrize("section", FIELDS)
def test_the_page_has_the_fields_of_the_module(section):
    assert tables(section)[0] == [(name, field.type, field.meaning) for name, field in FIELDS[section].items()]


def test_the_page_has_the_files_metrics_events_and_version_of_the_module():
    assert tables("Files")[0] == list(run_record.FILES.items())
    assert tables("Metrics")[0] == [(key, m.title, m.unit, m.tag, m.meaning) for key, m in METRICS.items()]
    assert tables("output.log")[0] == list(log_lines.TAGS.items())
    assert tables("Events")[1] == list(run_record.EVENTS.items())
    assert f"as `v`, now {run_record.VERSION};" in PAGE


def literals(file: Path):
    """(line, text) of every string of a module that is no docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_names_of_the_record_are_spelled_in_its_module_only():
    names = [name for name in run_record.FILES if "." in name] + [run_record.TRACKER, run_record.ITERATION, run_record.RUN_VARIABLE]
    # the report of a plan has the first two, too, records of data the third
    keys = [key for key in METRICS if "_" in key and key not in ("tokens_per_second", "memory_gib", "loss_scale")]
    wrong = []
    for file in (file for folder in ("console", "qwen3vl_core") for file in sorted((ROOT / folder).rglob("*.py"))):
        path = str(file.relative_to(ROOT))
        if path in ("qwen3vl_core/run_record.py", "qwen3vl_core/run_metrics.py"):
            continue
        for line, text in literals(file):
            found = [name for name in names if name in text and not path.startswith(ELSEWHERE.get(name, ("-",)))]
            wrong += [f"{path}:{line}: {name}" for name in [*found, *(key for key in keys if text == key)]]
    assert not wrong, "take these from qwen3vl_core.run_record or run_metrics:\n" + "\n".join(wrong)


@pytest.fixture
def run(tmp_path):
    """A finetune that was never started, with two train rows and an eval row."""
    made = RunStore(tmp_path / "runs").create("finetune", FinetuneOptions(load="base", train_data="data", train_iters=4))
    common = {"v": 1, "time": 1.0, "loss": 2.5}
    rows = [{**common, "kind": "train", "step": step, "entropy": 1.5 + step} for step in (1, 2)]
    rows.append({**common, "kind": "eval", "step": 2})
    made.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_plan_and_state_have_the_fields_of_the_table(run):
    assert list(run_record.PlanRecord.__annotations__) == list(run_record.PLAN_FIELDS)
    assert list(run_record.StateRecord.__annotations__) == list(run_record.STATE_FIELDS)
    assert list(json.loads((run.path / run_record.PLAN).read_text())) == list(run_record.PLAN_FIELDS)
    assert list(json.loads((run.path / run_record.STATE).read_text())) == list(run_record.STATE_FIELDS)


def test_a_metric_added_to_the_table_appears_everywhere(run, monkeypatch):
    monkeypatch.setitem(METRICS, "entropy", NEW)
    last = json.loads(run.metrics.read_text().splitlines()[1])
    assert run_metrics.scalars("train", last)["router-entropy"] == 3.5
    assert "entropy 3.5 nats" in step_text(last)
    head, line = run_text.table([run], 160)
    assert "ENTROPY" in head and "3.5" in line.split()
    assert "  entropy         3.5" in [re.sub(r"^(  \S+) +", r"\1         ", text) for text in run_text.describe(run)]
    assert ["entropy", "3.5", "3.5"] in [text.split() for text in run_text.comparison(run_json.differences(run, run))]
    assert run_json.as_json(run_json.summarize(run))["entropy"] == 3.5
    assert "entropy" in filters.orders()
    row = StoreWatcher(run.path.parent).look().rows[0]
    assert row.metrics == {"loss": 2.5, "entropy": 3.5}
    assert "entropy   3.5 nats" in finetune_panel(row, None, 40).plain
    assert ("entropy", 8) in measured_columns(row)
    assert run_metrics.is_noisy("entropy") and run_metrics.label_of("entropy") == "entropy (nats)"


def test_the_panel_says_each_unit_once(run):
    row = StoreWatcher(run.path.parent).look().rows[0]

    def panel(**metrics):
        return finetune_panel(dataclasses.replace(row, latest={"train": {"step": 2, **metrics}}), None, 60).plain

    assert "\nTFLOP/s   0.018\n" in panel(tflops=0.018)
    mfu = next(line for line in panel(mfu=0.41, tflops=405.0).splitlines() if line.startswith("MFU"))
    assert mfu.endswith(" 41.0% 405 TFLOP/s"), "beside another metric it has no title"
    assert "\ntokens/s  41.2k" in panel(tokens_per_second=41_200.0) and "tokens/s\n" not in panel(tokens_per_second=41_200.0)


def measured_columns(row) -> list[tuple[str, int]]:
    """The columns of the list of runs on a wide screen."""

    class Wide(RunList):
        size = type("Size", (), {"width": 200})()

    table = Wide()
    table.rows = (row,)
    return table.columns()


def test_a_metric_added_to_the_table_appears_in_the_notebook(run, monkeypatch):
    monkeypatch.setitem(METRICS, "entropy", NEW)
    from console.notebook import RunMonitor, RunsTable, data_frames

    assert ("entropy (nats)", "entropy") in RunMonitor(run, store=run.path.parent).metric_menu.options
    assert data_frames.runs(run.path.parent)["entropy"].tolist() == [3.5]
    assert data_frames.metrics(run)["entropy"].tolist() == [2.5, 3.5]
    assert "entropy" in RunsTable(run.path.parent)._repr_html_()


def test_titles_fit_the_panel_and_no_two_metrics_share_one():
    titles = [metric.title for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)
    assert not [m.title for m in METRICS.values() if m.panel and len(m.title) > 10]
    assert all(m.beside in METRICS for m in METRICS.values() if m.beside)


def test_a_run_of_a_newer_version_is_shown_and_not_started(run):
    plan = json.loads((run.path / run_record.PLAN).read_text())
    (run.path / run_record.PLAN).write_text(json.dumps(plan | {"v": run_record.VERSION + 1}))
    line = f"version {run_record.VERSION + 1}, and this qwen3vl reads versions up to {run_record.VERSION}; upgrade qwen3vl"
    assert any(line in text for text in run_text.describe(run)) and line in StoreWatcher(run.path.parent).look().rows[0].error
    for act in (launch.start, launch.resume, lambda run: read_options(run.path)):
        with pytest.raises(RequestError, match=re.escape(line)):
            act(run)


def test_a_record_without_a_version_counts_as_the_first(run):
    plan = json.loads((run.path / run_record.PLAN).read_text())
    del plan["v"]
    (run.path / run_record.PLAN).write_text(json.dumps(plan))
    assert read_options(run.path).load == run.options["load"] and not run_record.version_problem(plan)


def test_a_caption_is_read_as_it_was_written():
    row = run_record.sample_row("a.png", "What?", "tuned", "A cat", 0.25, step=4, whole=False)
    assert list(row) == list(run_record.SAMPLE_FIELDS)
    assert run_record.read_sample(row) == run_record.SampleRow("a.png", "A cat", "tuned", "What?", 4, 0.25, True, False)
    assert run_record.read_sample({"image": "a.png"}) is None
