"""Plan files: written from options, read back unchanged; errors name the option."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import FinetuneOptions, from_mapping, options_of, to_mapping
from qwen3vl_core.options.planfile import read_plan_file, write_plan
from tests.options.drawn import admitted

TRICKY = ["1e5", "null", "yes", "012", "a: b # c", "a\nb", "'", "- x", "~", "2026-01-01"]
WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(lambda t: t.strip() == t),
    st.sampled_from(TRICKY),
)


@st.composite
def finetunes(draw) -> FinetuneOptions:
    values = {}
    for o in options_of(FinetuneOptions):
        if o.required or draw(st.booleans()):
            values[o.name] = draw(admitted(o, WORDS))
    return FinetuneOptions(**values)


@settings(deadline=None, max_examples=25)
@given(options=finetunes())
def test_a_plan_file_reproduces_the_options(options, tmp_path_factory):
    file = write_plan(tmp_path_factory.mktemp("plan") / "plan.yaml", options, "a comment\nof two lines")
    assert from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, file)) == options


def test_a_plan_file_has_every_option_with_its_help(tmp_path):
    text = write_plan(tmp_path / "plan.yaml", FinetuneOptions(load="base")).read_text()
    for o in options_of(FinetuneOptions):
        assert f"{o.name}: " in text and o.help in text
    assert "# train_data:  # required" in text
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tensor_parallel: 2", "tensor_parallel: no such option; did you mean"),
        ("zzz: 2", "zzz: no such option; choose from load, size"),
        ("tp: 2\ntp: 4", r"tp is given twice \(line 2\)"),
        ("seq-length: 5\nseq_length: 6", "seq_length is given twice"),
        ("tp:", "tp: no value; give one, or leave the line out for 1"),
        ("tp: [1, 2]", "tp: must be one value"),
        ("- tp", "must be a mapping"),
        ("tp: {", r"not YAML \(line 1\)"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, line, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=line) as caught:
        read_plan_file(FinetuneOptions, file)
    assert "\n" not in str(caught.value)


def test_names_may_be_written_as_flags_and_numbers_in_common_notations(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("load: base\ntrain-data: data\nlr: 1e-5\nsequence-parallel: yes\nname: 7\nsize: null\n")
    options = from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, file))
    assert (options.lr, options.sequence_parallel, options.name, options.size) == (1e-5, True, "7", None)


def test_a_runs_plan_json_can_be_read(tmp_path):
    options = FinetuneOptions(load="base", train_data="data", tp=2)
    (tmp_path / "plan.json").write_text(json.dumps({"v": 1, "kind": "finetune", "options": to_mapping(options)}))
    assert from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, tmp_path / "plan.json")) == options


def test_finetune_takes_the_file_and_the_command_line_wins(tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(f"load: {tmp_path}/nowhere\ntrain_data: data\nlr: 1e-5\n")
    assert main(["finetune", "--plan", str(file)]) == 2
    assert f"--load {tmp_path}/nowhere: no such folder" in capsys.readouterr().err
    assert main(["finetune", "--plan", str(file), "--load", f"{tmp_path}/elsewhere"]) == 2
    assert f"--load {tmp_path}/elsewhere: no such folder" in capsys.readouterr().err
    assert main(["finetune", "--plan", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file; qwen3vl plan --save writes one" in capsys.readouterr().err


def test_an_unwritable_path_is_a_one_line_error(tmp_path):
    with pytest.raises(WorkError, match=r"--save .*: No such file or directory"):
        write_plan(tmp_path / "gone" / "plan.yaml", FinetuneOptions())
