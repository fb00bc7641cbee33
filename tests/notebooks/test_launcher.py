"""The form that starts runs: generated from the declaration, checked while typing, one run per click."""

from __future__ import annotations

import re
import threading

import ipywidgets
import pytest

from console.forms import read_plan
from console.notebook import Launcher, runs
from console.notebook import launcher as module
from console.notebook.memory_bar import PARTS
from console.runs import launch
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.suggest import LAYOUT, suggest
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import COMMANDS, FinetuneOptions, options_of, to_arguments, to_mapping
from qwen3vl_core.options.planning import PlanOptions
from tests.console.runs.jobs import until
from tests.notebooks.conftest import finetune_options


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_option_of_every_command_has_its_field(kind, store):
    form = Launcher(kind, store=store).form
    declared = options_of(COMMANDS[kind])
    assert list(form.fields) == [o.name for o in declared]
    shown = [field for tab in form.children for row in tab.children for field in ([row, *getattr(row, "children", ())])]
    for o in declared:
        field = form.fields[o.name]
        assert field in shown
        assert o.help in field.tooltip
        wanted = ipywidgets.Checkbox if o.type is bool else ipywidgets.Dropdown if o.choices else ipywidgets.Text
        assert isinstance(field, wanted)


def test_the_form_reports_the_problems_of_the_options(store, dataset):
    values = finetune_options(dataset, sequence_parallel=True, tp=2, size="tiny", valid_data=str(dataset), eval_interval=100)
    launcher = Launcher("finetune", values, store=store)
    assert launcher.options == FinetuneOptions(**values)
    assert launcher.values == to_mapping(FinetuneOptions(**values))
    other = Launcher("finetune", store=store)
    other.fill(launcher.values)
    assert other.options == launcher.options and other.command == launcher.command
    other.form.reset()
    assert other.form.texts() == other.form.begin


def test_the_form_is_exported_as_a_data_frame_and_imported(store, dataset, trained):
    launcher = Launcher("finetune", finetune_options(dataset, tp=2), store=store)
    frame = launcher.frame()
    assert list(frame.index) == [o.name for o in options_of(FinetuneOptions)] and frame["value"].to_dict() == launcher.values
    assert (frame.loc["seq_length", "unit"], frame.loc["lr", "default"]) == ("tokens", FinetuneOptions().lr)
    frame.loc["lr", "value"] = 3e-4
    other = Launcher("finetune", store=store)
    other.fill(frame)
    assert other.options == FinetuneOptions(**finetune_options(dataset, tp=2, lr=3e-4))
    # a row of the runs' frame, as one picks it there
    other.fill(runs(trained.path.parent, options=["lr", "seed"]).loc[1, ["lr", "seed"]])
    assert other.options.lr == 5e-4 and other.options.seed == FinetuneOptions().seed
    other.fill(lr="fast")
    assert other.frame().loc["lr", "value"] == "fast"
    with pytest.raises(RequestError, match="without the column value; it has help"):
        other.fill(frame[["help"]])


def test_a_broken_rule_is_shown_while_typing_and_disables_the_button(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset), store=store)
    assert not launcher.start_button.disabled
    launcher.form.fields["lr"].value = "fast"
    assert "--lr fast: must be a number" in launcher.check_line.value and launcher.start_button.disabled
    launcher.form.fields["lr"].value = "1e-9"
    assert "--min-lr 1e-06: must be at most --lr 1e-09; use 1e-10" in launcher.check_line.value
    launcher.form.fields["min_lr"].value = "0"
    assert not launcher.start_button.disabled and "--lr 1e-09 --min-lr 0.0" in launcher.command
    assert "Schedule •" in launcher.form.titles
    with pytest.raises(RequestError, match="no such option"):
        launcher.fill(learning_rate=1)


def test_the_checkpoint_and_the_data_are_checked_too(store, dataset, tmp_path):
    launcher = Launcher("finetune", finetune_options(dataset, tp=3), store=store)
    until(lambda: "8 attention heads / 3" in launcher.check_line.value)
    launcher.fill(tp=2)
    until(lambda: "TP 2 · PP 1 · CP 1 · DP 1 = 2 processes" in launcher.check_line.value)
    launcher.fill(train_data=tmp_path / "gone")
    until(lambda: "gone: no such folder; make the dataset with qwen3vl prepare" in launcher.check_line.value)
    with pytest.raises(RequestError, match="no such folder"):
        launcher.start()
    assert store.list() == []
    other = Launcher("compare", base=BASE, tuned=tmp_path / "none", images=[tmp_path], store=store)
    until(lambda: "--tuned" in other.check_line.value and "no such file or folder" in other.check_line.value)
    other = Launcher("compare", base=BASE, tuned=BASE, data="msc://bucket/data", store=store)
    until(lambda: "all checks passed" in other.check_line.value)


def test_the_memory_estimate_is_shown_while_typing(store):
    launcher = Launcher("finetune", {"size": "8B", "precision": "bf16", "global_batch_size": 32}, store=store)
    shown = launcher.memory.shown
    launcher.memory.fields["gpus"].value = "8"
    launcher.memory.fields["memory"].value = "80"
    until(lambda: "does not fit" in shown.value)  # 12 bytes of Adam a weight on every GPU
    assert "GPUs are enough" in shown.value and shown.value.count("<span title=") == len(PARTS)
    launcher.fill(distributed_optimizer=True, tp=2, sequence_parallel=True)
    until(lambda: "✓" in shown.value)
    found = judge(launcher.plan.partial, PlanOptions(gpus=8, memory=80.0)).estimate
    assert found.fits and f"{found.peak_gib:.1f} of 80 GiB on each GPU" in shown.value
    widths = [float(w) for w in re.findall(r"width:([0-9.]+)%", shown.value)]
    assert sum(widths) == pytest.approx(100 * found.peak_gib / 80, abs=0.05)
    # every problem at once, and no bar for a layout that cannot be
    launcher.fill(tp=3, lr=1e-9)
    until(lambda: "32 attention heads / 3" in launcher.check_line.value and shown.value == "")
    assert "--load: required" in launcher.check_line.value and "--min-lr" in launcher.check_line.value
    launcher.memory.fields["memory"].value = "much"
    until(lambda: "--memory much: must be a number" in shown.value)
    launcher.fill(tp="two")
    assert shown.value == ""
    assert Launcher("prepare", store=store).memory is None


def test_a_layout_that_fits_is_put_into_the_form(store):
    launcher = Launcher("finetune", {"size": "8B", "tp": 3}, store=store)
    launcher.memory.fields["gpus"].value = "8"
    launcher.memory.suggest_button.click()
    assert "✓" in launcher.message.value and "of 8 GPUs of 79.6 GiB" in launcher.message.value
    found = judge(launcher.plan.partial, PlanOptions(gpus=8))
    best = suggest(launcher.plan.partial, found.architecture, 8, found.memory_gib)[0]
    assert found.fits and best.arguments() == to_arguments(
        FinetuneOptions(**{name: getattr(launcher.plan.partial, name) for name in LAYOUT})
    )
    launcher.fill(size="A22B")
    before = launcher.form.texts()
    launcher.memory.suggest_button.click()
    assert re.search(r"✗ no layout fits on 8 GPUs.*; use \d+ GPUs", launcher.message.value) and launcher.form.texts() == before
    launcher.fill(lr="fast")
    with pytest.raises(RequestError, match="--lr fast"):
        launcher.suggest()
    with pytest.raises(RequestError, match="finetune has one"):
        Launcher("convert", store=store).suggest()


def test_a_click_starts_a_training_and_a_second_click_finds_it(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset, train_iters=400), store=store)
    launcher.start_button.click()
    launcher.start_button.click()
    (run,) = store.list()
    assert launcher.run == run and "is already running" in launcher.message.value
    assert launcher.start() == run
    launch.stop(run)
    assert launch.wait(run, 240) == "stopped"
    launcher.start_button.click()
    assert len(store.list()) == 2 and store.list()[0].alive


def test_a_rerun_cell_uses_the_run_that_is_done(trained, dataset):
    values = finetune_options(dataset, eval_interval=2, eval_iters=1)
    launcher = Launcher("finetune", values, store=trained.path.parent)
    assert launcher.start() == trained
    launcher.fill(seed=5)
    assert launcher._same(launcher.options) is None


def test_missing_outputs_of_a_run_are_made_again(store, dataset, tmp_path):
    launcher = Launcher("convert", source=BASE, target=tmp_path / "out", store=store)
    first = store.create("convert", launcher.options, ["true"])
    launch.start(first)
    assert launch.wait(first, 240) == "done"
    assert launcher._same(launcher.options) is None
    (tmp_path / "out").mkdir()
    assert launcher._same(launcher.options) == first


def test_a_failed_start_is_shown_under_the_button(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset), store=store)
    store.root.write_text("a file where the store should be")
    launcher.start_button.click()
    assert "✗" in launcher.message.value and str(store.root) in launcher.message.value
    store.root.unlink()


def test_a_closed_form_stops_checking(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset), store=store)
    launcher.close()
    launcher.close()
    assert launcher.comm is None
    assert not any(isinstance(t, threading.Timer) and t.interval == module.CHECK_SECONDS and not t.finished.is_set()
                   for t in threading.enumerate())  # fmt: skip


def test_values_that_no_field_can_hold_are_refused(store):
    with pytest.raises(RequestError, match="--precision fp4: must be one of"):
        Launcher("finetune", precision="fp4", store=store)
    with pytest.raises(RequestError, match="no such command; choose from"):
        Launcher("train", store=store)


def test_a_static_viewer_gets_the_options_and_the_command(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset, name="<b>"), store=store)
    page = launcher._repr_html_()
    assert "qwen3vl finetune --load" in page and "&lt;b&gt;" in page and "<b>'" not in page
    assert launcher._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"]


def test_an_unclosed_quotation_mark_is_a_one_line_error(store):
    plan = read_plan("compare", {o.name: "" for o in options_of(COMMANDS["compare"])} | {"images": "'a"})
    assert "quotation mark is not closed" in plan.problem
