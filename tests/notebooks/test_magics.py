"""Short ways in a cell: magics, problems in a line, fixes as buttons, a command that can be copied, help that fits a screen."""

from __future__ import annotations

import pydoc
import shlex

import pytest
from IPython.core.interactiveshell import InteractiveShell

from console.notebook import CompareCaptions, DatasetPreview, Launcher, RunMonitor, RunsTable
from console.notebook.magics import magic
from console.runs import launch
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.locations import runs_directory
from tests.console.runs.jobs import until
from tests.notebooks.conftest import finetune_options, recorded, write_metrics


@pytest.fixture
def shell(monkeypatch, store):
    monkeypatch.setenv("QWEN3VL_RUNS", str(store.root))
    made = InteractiveShell()
    made.run_line_magic("load_ext", "console.notebook")
    return made


def shown(shell, source: str, capsys) -> str:
    """What a cell shows of its error."""
    capsys.readouterr()
    assert not shell.run_cell(source).success
    return capsys.readouterr().out.strip()


def test_a_wrong_request_is_one_line_in_a_cell(shell, store, capsys):
    assert shown(shell, "from console.notebook import RunMonitor\nRunMonitor(9)", capsys) == (
        f"✗ run 9: no such run in {store.root}; there are none; qwen3vl finetune starts one"
    )
    many = shown(shell, "from console.notebook import Launcher\nLauncher('finetune', tp=0, lr='fast').options", capsys)
    assert len(many.splitlines()) == len(Launcher("finetune", tp=0, lr="fast").plan.problems) > 2
    assert all(line.startswith("✗ --") for line in many.splitlines())
    assert WorkError("the disk is full")._render_traceback_() == ["✗ the disk is full"]


def test_an_unknown_metric_names_those_that_there_are(store):
    run = recorded(store)
    write_metrics(run, [1.0, 2.0])
    with pytest.raises(RequestError, match=r"^metric bogus: no such metric; choose from loss$"):
        RunMonitor(run, store=store, metric="bogus")
    with pytest.raises(RequestError, match=r"did you mean grad_norm\? "):
        RunMonitor(store=store, metric="grad_nrom")
    assert RunMonitor(run, store=store, metric="grad_norm").metric_menu.value == "grad_norm", "it may come later"


def test_line_magics_show_widgets(shell, store, dataset):
    run = recorded(store, name="one")
    compared = recorded(store, "compare")
    assert repr(shell.run_line_magic("qwen3vl", "monitor 1")) == f"RunMonitor({run.id}, metric='loss')"
    assert repr(shell.run_line_magic("qwen3vl", f"captions {compared.number}")) == f"CompareCaptions({compared.id})"
    assert isinstance(magic("runs"), RunsTable) and isinstance(magic("form convert"), Launcher)
    assert isinstance(magic(f"preview {shlex.quote(str(dataset))} val"), DatasetPreview)
    assert isinstance(magic("captions"), CompareCaptions)
    for line, said in {
        "": "no such widget; %qwen3vl monitor", "mointor 7": r"did you mean %qwen3vl monitor \[RUN", "preview": "must be %qwen3vl preview",
        "captions 1 2": "must be", "monitor '": "close the quotes", "monitor 99": "no such run", "form fly": "no such command",
    }.items():  # fmt: skip
        with pytest.raises(RequestError, match=said):
            magic(line)


def test_a_cell_of_yaml_starts_its_run_once(shell, store, tmp_path):
    picture = "source: list.json\nto: data\n"
    with pytest.raises(RequestError, match=r"^the cell: sorce: no such option; did you mean source\?"):
        magic("prepare", "sorce: list.json")
    with pytest.raises(RequestError, match="the cell: not YAML"):
        magic("prepare", "source: [")
    with pytest.raises(RequestError, match="must be %%qwen3vl and one of download"):
        magic("train", picture)
    assert not store.list(), "a wrong cell starts nothing"
    form = magic("convert --form", f"source: {BASE}\ntarget: {tmp_path / 'out'}\n")
    assert isinstance(form, Launcher) and form.values["source"] == str(BASE) and not store.list()
    cell = f"source: {BASE}\ntarget: {tmp_path / 'mcore'}\n"
    table = shell.run_cell_magic("qwen3vl", "convert", cell)
    assert isinstance(table, RunsTable) and launch.wait(table.run, 240) == "done"
    again = magic("convert", cell)
    assert again.run == table.run and len(store.list()) == 1


def test_each_fix_is_a_button_that_applies_it(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset, lr=1e-9), store=store)
    (fix, *_) = [button for button in launcher.fix_buttons.children if button.description.startswith("min-lr")]
    assert "use 1e-10" in launcher.check_line.value
    fix.click()
    assert launcher.form.fields["min_lr"].value == "1e-10" and launcher.plan.options is not None
    until(lambda: not launcher.fix_buttons.children)
    # one that only the checkpoint shows, after the check that reads it
    launcher.form.fields["tp"].value = "3"
    until(lambda: any(button.description.startswith("tp ") for button in launcher.fix_buttons.children))


def test_the_exact_command_names_the_store_and_is_on_its_own_line(store, dataset, monkeypatch):
    launcher = Launcher("finetune", finetune_options(dataset), store=store)
    assert launcher.command.endswith(f" --runs {store.root}") and launcher.command_line.text == launcher.command
    build_parser().parse_args(shlex.split(launcher.command)[1:])
    monkeypatch.setenv("QWEN3VL_RUNS", str(store.root))
    assert runs_directory(None) == store.root and "--runs" not in Launcher("finetune", finetune_options(dataset)).command


@pytest.mark.parametrize("widget", [Launcher, RunMonitor, CompareCaptions, RunsTable, DatasetPreview], ids=lambda w: w.__name__)
def test_help_of_a_widget_is_about_the_widget(widget):
    text = pydoc.plain(pydoc.render_doc(widget))
    assert len(text.splitlines()) < 120 and "uirevision" not in text and "_model_module" not in text
    assert ("start(" if widget is Launcher else "close(") in text
    assert "add_class" in dir(widget), "completion knows all"


def test_a_widget_has_a_short_text(store, dataset):
    for made in (Launcher(store=store), RunMonitor(store=store), CompareCaptions(store=store), RunsTable(store), DatasetPreview(dataset)):
        assert len(repr(made)) < 200 and repr(made).startswith(type(made).__name__)
