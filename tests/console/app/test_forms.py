"""Forms generated from the declarations, and the problems that they show."""

from __future__ import annotations

import shlex

import pytest
from textual.app import App
from textual.widgets import Input, Select, Switch

from console.forms import check_here, help_of, read_plan, text_of
from console.readers.form_defaults import KINDS, prefill, read_workspace
from console.widgets.option_form import OptionForm
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.options import COMMANDS, from_mapping, options_of, to_mapping
from tests.console.app.driving import driven
from tests.console.app.driving import text_of as screen_text

GIVEN = {
    "download": {"kind": "model", "name": "Qwen/Qwen3-VL-2B-Instruct", "to": "m", "from_": "modelscope", "include": ["*.json"]},
    "prepare": {"source": "captions.json", "to": "out"},
    "convert": {"source": "base", "target": "out"},
    "finetune": {"load": "base", "train_data": "data"},
    "compare": {"base": "a", "tuned": "b", "images": ["p 1.jpg", "folder"]},
}


def texts(kind: str, **values):
    return {o.name: text_of(o, (GIVEN[kind] | values).get(o.name, o.default)) for o in options_of(COMMANDS[kind])}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_field_of_its_kind_in_its_group(kind):
    class Bench(App):
        def compose(self):
            yield OptionForm(COMMANDS[kind], GIVEN[kind])

    async def scene(pilot):
        form = pilot.app.query_one(OptionForm)
        for option in options_of(COMMANDS[kind]):
            field = form.query_one(f"#o-{option.name}")
            assert isinstance(field, Switch if option.type is bool else Select if option.choices else Input)
        groups = [str(label.content) for label in form.query(".group")]
        assert groups == list(dict.fromkeys(o.group for o in options_of(COMMANDS[kind])))
        plan = read_plan(kind, form.texts())
        assert to_mapping(plan.options) == to_mapping(from_mapping(COMMANDS[kind], GIVEN[kind]))

    driven(scene, Bench())


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_on_screen_gives_the_same_options_when_typed(kind):
    plan = read_plan(kind, texts(kind))
    words = shlex.split(plan.command)
    assert words[:2] == ["qwen3vl", kind]
    values = {k: v for k, v in vars(build_parser().parse_args(words[1:])).items() if k in to_mapping(plan.options)}
    assert to_mapping(from_mapping(COMMANDS[kind], values)) == to_mapping(plan.options)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("lr", "fast", "--lr fast: must be a number"),
        ("train_iters", "0", "--train-iters 0: must be at least 1"),
        ("lr_warmup_iters", "100", "--lr-warmup-iters 100: must be below"),
        ("freeze", "eyes", "there is no part eyes"),
        ("load", "  ", "--load: required"),
        ("precision", "fp4", "must be one of"),
    ],
)
def test_the_first_broken_rule_is_shown_along_with_the_command(name, text, said):
    plan = read_plan("finetune", texts("finetune") | {name: text})
    assert plan.options is None and said in plan.problem and "\n" not in plan.problem
    assert plan.command.startswith("qwen3vl finetune")


def test_a_list_is_split_as_by_a_shell():
    plan = read_plan("compare", texts("compare") | {"images": "a.jpg 'my pictures/b c.jpg'"})
    assert plan.options.images == ["a.jpg", "my pictures/b c.jpg"]
    assert "not closed" in read_plan("compare", texts("compare") | {"images": "'a"}).problem


def test_an_empty_field_means_the_default():
    assert read_plan("finetune", texts("finetune") | {"lr": "", "seed": " "}).options.lr == 1e-5
    assert read_plan("prepare", texts("prepare")).options.check == "header"


def test_help_shows_unit_range_choices_and_default():
    declared = {o.name: o for o in options_of(COMMANDS["finetune"])}
    assert "at least 16 tokens" in help_of(declared["seq_length"]) and "default 2048" in help_of(declared["seq_length"])
    assert "bf16, fp16, fp8, fp32" in help_of(declared["precision"])
    assert "0 to 1" in help_of(declared["max_skip_share"])
    assert "required" in help_of(declared["load"])
    assert "default off" in help_of(declared["sequence_parallel"])


def test_paths_are_checked_on_disk(tmp_path):
    options = read_plan("finetune", texts("finetune", load=str(tmp_path / "none"))).options
    assert "no such folder" in check_here("finetune", options)[0]
    options = read_plan("compare", texts("compare", base=str(tmp_path), tuned=str(tmp_path), images=[str(tmp_path / "x.jpg")])).options
    assert check_here("compare", options) == (f"--images {tmp_path}/x.jpg: no such file or folder; correct the path", "")
    options = read_plan("convert", texts("convert", source=str(tmp_path))).options
    problem, note = check_here("convert", options)
    assert problem == "" and "free on the target's disk" in note
    target = tmp_path / "there"
    target.mkdir()
    (target / "config.json").write_text("{}")
    options = read_plan("convert", texts("convert", source=str(tmp_path), target=str(target))).options
    assert check_here("convert", options)[0] == f"TARGET {target}: already exists; choose another folder, or add --overwrite"


def test_a_workspace_fills_the_forms_and_a_damaged_one_is_ignored(tmp_path):
    assert read_workspace(None) == {} and read_workspace(tmp_path) == {}
    (tmp_path / "workspace.json").write_text("[1")
    assert read_workspace(tmp_path) == {}
    (tmp_path / "data").mkdir()
    given = {
        "base": "b", "train_json": "t.json", "data": str(tmp_path / "data"), "base_mcore": "m", "tuned_hf": "h", "heldout_images": "p",
        "prompt": "What?", "finetune": {"lr": 0.5, "unheard_of": 1},
    }  # fmt: skip
    assert prefill("prepare", given, tmp_path) == {"source": "t.json", "to": str(tmp_path / "data-2")}
    assert prefill("finetune", given, tmp_path) == {"load": "m", "train_data": str(tmp_path / "data"), "lr": 0.5}
    assert prefill("compare", given, tmp_path)["images"] == ["p"]
    for kind in KINDS:
        assert prefill(kind, {"base": 7, "finetune": "x", "heldout_images": 3}, None) is not None


def test_arrows_move_between_fields_and_the_changed_ones_are_marked():
    class Bench(App):
        def compose(self):
            yield OptionForm(COMMANDS["convert"])

    async def scene(pilot):
        form = pilot.app.query_one(OptionForm)
        form.focus_first()
        assert form.focused_option.name == "source"
        await pilot.press("/", "m", "down", "down", "up")
        assert form.focused_option.name == "target" and form.texts()["source"] == "/m"
        form.fill({"overwrite": True, "dtype": "bf16"})
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "• overwrite" in text and "• dtype" in text and "  hf" in text
        form.reset()
        await pilot.pause()
        assert "•" not in screen_text(pilot.app) and form.texts()["source"] == ""

    driven(scene, Bench())
