"""The published recipe's positional values: read in both forms, every problem explained, printed as named options."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_core.cli import main
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.recipe import command, read, size_in
from qwen3vl_core.layout.recipe_values import FORM, LEFT_OUT
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions, from_mapping, option_problems, options_of
from qwen3vl_core.options.planfile import read_plan_file
from qwen3vl_core.options.planning import PlanOptions

LINE = "dsw A3B 1 128 1e-5 1e-6 4096 4096 bf16 2 2 1 1 4 true true true sel false 500 /d/train /d/val /m/ckpt 1000 100 /out"
GOOD = LINE.split()
NOTHING: dict[str, str] = {}


def changed(**values: str) -> list[str]:
    """GOOD with other values, by the names of the form."""
    places = {p.name: p.number - 1 for p in FORM}
    words = list(GOOD)
    for name, value in values.items():
        words[places[name]] = value
    return words


def problems(words: list[str], gpus: int = 8, environment: dict[str, str] | None = None) -> list[str]:
    return [str(problem) for problem in read(words, gpus=gpus, environment=environment or NOTHING).problems]


def test_positional_values_become_the_options_that_they_name():
    found = read(GOOD, gpus=8, environment=NOTHING)
    assert not found.problems
    expected = FinetuneOptions(
        env="dsw", size="A3B", micro_batch_size=1, global_batch_size=128, lr=1e-5, min_lr=1e-6, seq_length=4096, precision="bf16", tp=2,
        pp=2, cp=1, etp=1, ep=4, sequence_parallel=True, distributed_optimizer=True, recompute="sel", save_interval=500,
        train_data="/d/train", valid_data="/d/val", load="/m/ckpt", train_iters=1000, lr_warmup_iters=100, pad_length=4096,
        attention="flash", overlap_grad_reduce=True, overlap_param_gather=True, lr_decay_iters=900, eval_interval=1000, eval_iters=10,
    )  # fmt: skip
    for option in options_of(FinetuneOptions):
        assert getattr(found.options, option.name) == getattr(expected, option.name), option.name
    assert found.output == "/out"


def test_the_printed_command_is_the_same_finetune():
    found = read(GOOD, gpus=8, environment=NOTHING)
    words = shlex.split(command(found))
    values = vars(build_parser().parse_args(words[1:]))
    assert str(values["runs"]) == "/out"
    other = ["--output" if word == "--runs" else word for word in words[1:]]
    assert vars(build_parser().parse_args(other)) == values
    known = {o.name for o in options_of(FinetuneOptions)}
    assert from_mapping(FinetuneOptions, {k: v for k, v in values.items() if k in known}) == found.options


def test_24_values_leave_out_etp_and_ep():
    short = [v for i, v in enumerate(GOOD, start=1) if i not in LEFT_OUT]
    found = read(short, gpus=8, environment=NOTHING)
    assert not found.problems and (found.options.etp, found.options.ep) == (1, 1)
    assert any("13 ETP and 14 EP" in note for note in found.notes)
    assert found.options.load == "/m/ckpt" and found.options.sequence_parallel


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"TP": "1", "EP": "1"}, "15 SP true: sequence parallel needs 10 TP above 1; use false, or TP 2"),
        ({"TP": "4", "PP": "4"}, "10 TP 4 x 11 PP 4 x 12 CP 1 = 16 GPUs: with 1 ENV dsw this machine has 8"),
        ({"OPTIMIZER_OFFLOAD": "0.5", "DO": "false"}, "19 OPTIMIZER_OFFLOAD 0.5: only the distributed optimizer can be offloaded"),
        ({"LR_WARMUP_ITERS": "1000"}, "25 LR_WARMUP_ITERS 1000: the warmup is as long as the run or longer (24 TRAIN_ITERS 1000); use 100"),
        ({"LR": "1e-6", "MIN_LR": "1e-5"}, "6 MIN_LR 1e-05: the lowest learning rate must be at most 5 LR 1e-06; if they are swapped"),
        ({"BATCH_SIZE": "128", "GLOBAL_BATCH_SIZE": "1"}, "3 BATCH_SIZE 128: a micro batch cannot be larger than 4 GLOBAL_BATCH_SIZE 1"),
        ({"SEQ_LEN": "8192"}, "7 SEQ_LEN 8192: padding cannot be shorter than the sequence: 8 PAD_LEN 4096"),
        ({"ENV": "A3B", "MODEL_SIZE": "dsw"}, "1 ENV 'A3B' and 2 MODEL_SIZE 'dsw': look swapped"),
        ({"PR": "true", "FL": "bf16"}, "9 PR 'true' and 17 FL 'bf16': look swapped"),
        ({"TP": "two"}, "10 TP 'two': must be a whole number from 1"),
        ({"SP": "sel"}, "15 SP 'sel': must be true or false; it would fit 18 AC: are the values shifted?"),
        ({"MODEL_SIZE": "7B"}, "2 MODEL_SIZE '7B': must be one of 2B, 4B, 8B, 32B, A3B, A22B"),
        ({"MODEL_SIZE": "4B"}, "14 EP: --ep 4: this checkpoint has no experts; leave it out"),
        ({"SP": "false"}, "10 TP: --tp 2: with experts it needs --sequence-parallel"),
        ({"GLOBAL_BATCH_SIZE": "127"}, "4 GLOBAL_BATCH_SIZE: --global-batch-size 127: must be a multiple of micro batch"),
        ({"LR": "nan"}, "5 LR 'nan': must be a number"),
        ({"TRAIN_ITERS": "0"}, "24 TRAIN_ITERS '0': must be a whole number from 1"),
        ({"DATASET_PATH": "500", "SAVE_INTERVAL": "/d/train"}, "20 SAVE_INTERVAL '/d/train' and 21 DATASET_PATH '500': look swapped"),
    ],
)  # fmt: skip
def test_a_problem_is_reported_with_its_position_and_a_fix(changes, line):
    found = problems(changed(**changes))
    assert any(text.startswith(line) for text in found), found


def test_all_problems_are_reported_at_once():
    found = problems(changed(TP="16", LR="1e-6", MIN_LR="1e-5", LR_WARMUP_ITERS="2000", GLOBAL_BATCH_SIZE="100", MODEL_SIZE="9B"))
    assert {f.split()[0] for f in found} >= {"2", "6", "10", "25"}


def test_a_wrong_count_says_which_value_may_be_missing_or_too_many():
    found = problems([v for i, v in enumerate(GOOD, start=1) if i != 9])
    assert found[0].startswith("25 values: the recipe has 26, or 24")
    assert any("the missing one is among: 9 PR" in f for f in found)
    assert any("values fit the form of 26 without one of: 18 ('sel'), 19 ('sel')" in f for f in problems([*GOOD[:18], "sel", *GOOD[18:]]))
    assert len(problems(GOOD[:5])) == 1


def test_fp8_offload_and_attention_are_the_options_of_those_names():
    words = changed(PR="fp8", FL="false", AC="offload", OPTIMIZER_OFFLOAD="0.5", PP="1", EP="4")
    found = read(words, gpus=8, environment={"MP_AC_LAYERS": "12", "MP_SFT_PACKING": "true"})
    assert not found.problems
    o = found.options
    assert (o.precision, o.attention, o.recompute, o.recompute_layers, o.optimizer_offload) == ("fp8", "fused", "offload", 12, 0.5)
    # packed rows are full
    assert o.packing and o.pad_length == 0 and any(n.startswith("8 PAD_LEN 4096: not needed") for n in found.notes)
    assert any("18 AC: --recompute offload: not with --pp 2" in f for f in problems(changed(AC="offload")))


def test_the_environment_of_the_script_is_read_too():
    words = changed(MODEL_SIZE="4B", EP="1")
    # layers of a virtual stage: 36 / (2 x 3) chunks
    assert read(words, gpus=8, environment={"MP_VP": "3"}).options.vp == 6
    assert any(f.startswith("MP_VP=5: must divide the 36 layers of 4B / 11 PP 2") for f in problems(words, environment={"MP_VP": "5"}))
    assert read(changed(PP="4", EP="2", TP="1", SP="false"), gpus=8, environment={"MP_VP": "3"}).options.vp == 4
    assert read(words, gpus=8, environment={"MP_PP0_LAYERS": "14", "MP_SFT_PACKING": "true"}).options.pp0_layers == 14
    assert any(f.startswith("MP_VP=x: ") for f in problems(words, environment={"MP_VP": "x"}))


def test_the_command_ends_with_0_or_2_and_saves_a_plan(capsys, tmp_path, monkeypatch):
    for name in ("MP_VP", "MP_PP0_LAYERS", "MP_AC_LAYERS", "MP_SFT_PACKING"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "plan.yaml"
    assert main(["recipe", "--gpus", "8", "--save", str(file), "--", *GOOD]) == 0
    out, _ = capsys.readouterr()
    assert "qwen3vl finetune --load /m/ckpt --size A3B" in out
    assert from_mapping(FinetuneOptions, read_plan_file(FinetuneOptions, file)) == read(GOOD, gpus=8, environment=NOTHING).options
    file.unlink()
    assert main(["recipe", "--gpus", "8", "--save", str(file), "--json", "--", *changed(TP="0")]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["valid"] and found["command"] is None and found["problems"][0]["text"].startswith("10 TP '0'")
    assert not file.exists()


def test_the_scripts_defaults_are_reported():
    o = read(changed(AC="offload", PP="1", EP="4"), gpus=8, environment=NOTHING).options
    assert o.recompute_layers == 1, "the script keeps one layer on the host"
    short = read(changed(TRAIN_ITERS="400"), gpus=8, environment=NOTHING)
    assert (short.options.eval_interval, short.options.eval_iters, short.options.lr_decay_iters) == (400, 10, 300)
    assert not read(changed(DO="false"), gpus=8, environment=NOTHING).options.overlap_param_gather


def test_a_size_that_the_path_contradicts_is_named():
    path = "/mnt/qwen3-vl-ckpts/Qwen3-VL-30B-A3B-Instruct-to-mcore"
    notes = read(changed(MODEL_SIZE="4B", EP="1", PRETRAIN_CHECKPOINT_PATH=path), gpus=8, environment=NOTHING).notes
    assert any(f"2 MODEL_SIZE 4B: 23 PRETRAIN_CHECKPOINT_PATH says A3B ({path})" in note for note in notes)
    assert (size_in("/m/Qwen3-VL-4B-Instruct"), size_in("/m/235B-A22B"), size_in("/m/4B-and-8B"), size_in("/m/ckpt")) == (
        "4B",
        "A22B",
        None,
        None,
    )
    assert not any("MODEL_SIZE" in n for n in read(changed(PRETRAIN_CHECKPOINT_PATH=path), gpus=8, environment=NOTHING).notes)


def test_it_ends_with_memory_time_and_a_layout_that_works(capsys):
    assert main(["recipe", "--gpus", "8", "--", *changed(TP="1", SP="false", PP="1", EP="8", AC="full")]) == 0
    assert " GiB on the fullest of 8 GPUs, " in capsys.readouterr().out
    # the example: 4B in front of a checkpoint of A3B, with experts
    path = "/mnt/qwen3-vl-ckpts/Qwen3-VL-30B-A3B-Instruct-to-mcore"
    assert main(["recipe", "--gpus", "8", "--", *changed(MODEL_SIZE="4B", PRETRAIN_CHECKPOINT_PATH=path)]) == 2
    out = capsys.readouterr().out
    assert "a layout for A3B that works on 8 GPUs: about " in out
    words = shlex.split(out.strip().splitlines()[-1])
    values = vars(build_parser().parse_args(words[1:]))
    known = {o.name for o in options_of(FinetuneOptions)}
    options = from_mapping(FinetuneOptions, {k: v for k, v in values.items() if k in known})
    verdict = judge(options, PlanOptions(), architecture=published("A3B"), processes=8, disk=False)
    assert not verdict.problems and verdict.fits


CONVERSION = ["A3B", "/m/Qwen3-VL-30B-A3B-Instruct", "/m/mcore", "false", "true", "bf16"]


def test_the_conversion_script_is_read_too(capsys):
    assert main(["recipe", "--", *CONVERSION]) == 0
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1].strip() == (
        "qwen3vl convert /m/Qwen3-VL-30B-A3B-Instruct /m/mcore --dtype bf16 --layout pai --size A3B"
    )
    assert "5 USE_CUDA true: no GPU is needed" in out
    assert main(["recipe", "--json", "--", "A3B", "/m/mcore", "/m/back", "true", "false", "bf16", "/m/hf"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "qwen3vl convert /m/mcore /m/back --dtype bf16 --size A3B --hf /m/hf"
    assert main(["recipe", "--", "7B", "true", "/m/mcore", "maybe", "true", "int8"]) == 2
    out = capsys.readouterr().out
    assert all(part in out for part in ("1 MODEL_SIZE '7B'", "2 LOAD_DIR 'true': must be a path", "4 MG2HF 'maybe'", "6 PR 'int8'"))


def test_validation_data_that_no_evaluation_reads_is_refused():
    found = [str(p) for p in option_problems(FinetuneOptions(load="x", train_data="y", valid_data="z"))]
    assert any("--valid-data z: is read at an evaluation only" in line and "--eval-interval" in line for line in found)
    assert not option_problems(FinetuneOptions(load="x", train_data="y", valid_data="z", eval_interval=10))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from([*GOOD, "", "true", "-1", "nan", "1e999", "4B", "é"]), st.text(max_size=6)), max_size=28))
def test_any_input_is_explained_and_never_crashes(words):
    found = read(words, gpus=8, environment=NOTHING)
    assert all("\n" not in str(p) and len(str(p)) > 10 for p in found.problems)
    assert found.options is not None or found.problems
