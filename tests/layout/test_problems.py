"""Problems are data: every remedy removes its problem, none is reported twice, and all are printed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import CompareOptions, FinetuneOptions, check_options, option_problems, options_of, with_remedy
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problem_texts import TEXTS
from qwen3vl_core.problems import Problem

# of each option values that keep and that break rules; the first breaks none
DRAWN = {
    "size": (None, "4B", "A3B", "9B"), "freeze": ("", "vision", "language", "vision,projector,language", "eyes,vision", "eyes"),
    "lora_rank": (0, 8, -1), "lora_alpha": (None, 32.0, 0.0), "lora_dropout": (0.0, 0.5, 2.0), "lora_vision": (False, True),
    "lora_targets": ("linear_qkv,linear_proj,linear_fc1,linear_fc2", "linear_qkv", "", "linear_qkv,mlp", "mlp"),
    "precision": ("bf16", "fp8", "fp32", "fp16", "fp4"), "fp8_recipe": ("tensorwise", "blockwise"), "attention": ("auto", "flash", "fused"),
    "seq_length": (2048, 64, 8), "pad_length": (0, 64), "packing": (False, True),
    "min_pixels": (None, 9000, 100), "max_pixels": (None, 4000),
    "micro_batch_size": (1, 2, 3, 0), "global_batch_size": (8, 6, 5, 64), "train_iters": (100, 1, 5), "lr_warmup_iters": (0, 7, 100),
    "lr": (1e-5, 0.0, float("nan")), "min_lr": (1e-6, 1.0), "spike_factor": (10.0, 0.0), "skip_spikes": (False, True),
    "nproc": (1, 2, 6, 8),
    "tp": (1, 2, 3, 8, 64), "pp": (1, 2, 4, 5, 18), "cp": (1, 2), "ep": (1, 2, 3, 8), "etp": (1, 2, 7), "vp": (1, 2, 5),
    "pp0_layers": (0, 1, 2, 9, 50), "sequence_parallel": (False, True), "distributed_optimizer": (False, True),
    "main_grads_dtype": ("fp32", "bf16"), "use_precision_aware_optimizer": (False, True), "exp_avg_dtype": ("fp32", "bf16"),
    "exp_avg_sq_dtype": ("fp32", "bf16"), "optimizer_offload": (0.0, 0.5, 1.5),
    "overlap_grad_reduce": (False, True), "overlap_param_gather": (False, True),
    "recompute": ("none", "sel", "full", "offload"), "recompute_layers": (0, 2, 5, 40, 99), "keep": (0, 3), "keep_every": (0, 10),
    "sample_interval": (0, 5), "wandb": (None, "project"), "swanlab": (None, "project"), "env": ("dsw", "dlc"),
}  # fmt: skip
MACHINES = (Machine(0), Machine(1, 9.0), Machine(8, 9.0, transformer_engine=True), Machine(8, 8.0, True, True), Machine(1, 7.5, True))
DECLARED = {o.name: o for o in options_of(FinetuneOptions)}


@st.composite
def requests(draw):
    """(options with a few rules broken, size of the checkpoint, machine)."""
    names = draw(st.lists(st.sampled_from(list(DRAWN)), unique=True, max_size=9))
    options = FinetuneOptions(**{name: draw(st.sampled_from(DRAWN[name])) for name in names})
    return options, draw(st.sampled_from(("2B", "4B", "8B", "A3B", "tiny"))), draw(st.sampled_from(MACHINES))


def told(options, size, machine):
    return judge(options, architecture=published(size), processes=options.nproc or 1, machine=machine, disk=False).problems


@settings(deadline=None, max_examples=400)
@given(requests())
def test_every_remedy_of_every_rule_parses_and_its_problem_is_gone(request):
    options, size, machine = request
    for problem in told(*request):
        for remedy in problem.remedies:
            for name, value in remedy.items():
                if value is not None:
                    assert DECLARED[name].parse(str(value)) == value, (problem, remedy)
            left = told(with_remedy(options, remedy), size, machine)
            assert (problem.code, problem.option) not in {(p.code, p.option) for p in left}, (str(problem), remedy, [str(p) for p in left])


@settings(deadline=None, max_examples=150)
@given(requests())
def test_problems_are_distinct_and_serializable(request):
    problems = told(*request)
    rules = [(p.code, p.option) for p in problems]
    assert len(set(rules)) == len(rules)
    for problem in problems:
        record = json.loads(json.dumps(problem.as_json()))
        assert record["text"] == str(problem) and "\n" not in str(problem) and "{" not in str(problem)
        assert problem.code in TEXTS and (problem.option is None or problem.option in DECLARED)


@pytest.mark.parametrize("gpus", [3, 6, 7])
def test_unused_gpus_are_reported_for_the_option_that_causes_them(gpus):
    (problem,) = judge(FinetuneOptions(size="4B", tp=4, global_batch_size=840), PlanOptions(gpus=gpus)).problems
    assert (problem.code, problem.option, problem.remedies) == ("processes-not-multiple", "gpus", ({"gpus": 4},))
    assert judge(FinetuneOptions(size="4B", tp=4, global_batch_size=840), PlanOptions(gpus=4)).valid


def test_packing_with_a_micro_batch_is_reported_once():
    (problem,) = option_problems(FinetuneOptions(packing=True, micro_batch_size=4))
    assert problem.remedies == ({"micro_batch_size": 1, "seq_length": 8192},)
    assert str(problem).endswith("; use --micro-batch-size 1 and --seq-length 8192")


def test_the_adapters_rank_is_a_number_in_the_remedy():
    (problem,) = option_problems(FinetuneOptions(lora_alpha=32.0))
    assert problem.remedies == ({"lora_rank": 16}, {"lora_alpha": None})
    assert not option_problems(with_remedy(FinetuneOptions(lora_alpha=32.0), problem.remedies[0]))


@pytest.mark.parametrize("changes", [
    {"data": "d", "images": ["p"]}, {"images": ["p"], "own_questions": True}, {"data": "d", "references": "r"},
])  # fmt: skip
def test_remedies_of_a_comparison_remove_its_problems(changes):
    options = CompareOptions(base="a", tuned=["b"], **changes)
    (problem,) = option_problems(options)
    for remedy in problem.remedies:
        assert problem.code not in {p.code for p in option_problems(with_remedy(options, remedy))}
    with pytest.raises(RequestError) as caught:
        check_options(options)
    assert caught.value.problems == (problem,)


def test_a_command_prints_one_line_per_problem(capsys):
    words = ["finetune", "--tp", "0", "--lr", "fast", "--train-data", "/nowhere", "--lora-alpha", "32"]
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    starts = ["--tp 0: must", "--lr fast: must", "--load: required", "--lora-alpha 32: needs", "--train-data /nowhere: no such"]
    assert [line.startswith(f"qwen3vl: {start}") for line, start in zip(lines, starts, strict=True)] == [True] * 5
    assert main(["convert", "a", "b", "--dtype", "int8", "--size", "9B"]) == 2
    assert [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()] == ["--dtype int8", "--size 9B"]


def test_the_plans_json_contains_the_problems(capsys):
    assert main(["plan", "--size", "4B", "--gpus", "4", "--tp", "3", "--lora-alpha", "32", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    codes = {problem["code"]: problem for problem in found["problems"]}
    assert codes["lora-without-rank"]["remedies"] == [{"lora_rank": 16}, {"lora_alpha": None}]
    assert codes["tp-not-whole"]["rule"]["count"] == 32 and codes["tp-not-whole"]["option"] == "tp"
    assert found["valid"] is False and found["starts"] is None and found["fits"] is None
    assert main(["plan", "--size", "8B", "--gpus", "1", "--memory", "24", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] and found["fits"] is False and [w["code"] for w in found["warnings"]] == ["does-not-fit"]


def test_an_error_carries_records_or_lines():
    problem = Problem("needs-stages", "vp", 2, remedies=({"vp": None}, {"pp": 2}))
    error = RequestError(problem, "a line of its own")
    assert error.problems[0] is problem and str(error) == f"{problem}\na line of its own"
    assert error.problems[1] == Problem("request", rule={"text": "a line of its own"})
