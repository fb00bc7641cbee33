"""`qwen3vl plan` as a user types it: the report, suggestions, presets, scripts, plan files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from qwen3vl_core.cli import main
from qwen3vl_core.layout.activations import UNEVEN_EXPERTS, InputBytes, experts_bytes
from qwen3vl_core.layout.flops import COMMUNICATION, step_seconds
from qwen3vl_core.layout.gpus import MEMORY_GIB, PEAK_BF16
from qwen3vl_core.layout.parameters import TINY, published
from qwen3vl_core.layout.rules import layout_problems
from qwen3vl_core.layout.suggest import CARDS, ROOM, gpus_needed, presets, suggest
from qwen3vl_core.options import FinetuneOptions, from_mapping
from qwen3vl_core.options.planning import GPUS

BASE = str(TINY.parent)


def plan(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    return code, *capsys.readouterr()


@pytest.fixture
def data(tmp_path) -> str:
    (tmp_path / "data" / ".nv-meta").mkdir(parents=True)
    return str(tmp_path / "data")


def test_a_valid_plan_that_fits_ends_with_0(capsys):
    code, out, err = plan(capsys, "--size", "4B", "--gpus", "4", "--memory", "80", "--tp", "2", "--sequence-parallel")
    assert code == 0 and not err
    assert "valid: TP 2 x PP 1 x CP 1 x DP 2 = 4 GPUs" in out and "fits:" in out and "TFLOP" in out


def test_a_plan_that_does_not_fit_ends_with_1_and_suggests_one_that_does(capsys):
    code, out, _ = plan(capsys, "--size", "A22B", "--gpus", "8", "--memory", "80")
    assert code == 1
    assert "does not fit" in out and "GPUs of 80 GiB needed: 64" in out


def test_rows_beyond_the_positions_of_the_model_are_warned_of(capsys):
    words = ["--load", BASE, "--gpus", "1", "--memory", "80", "--seq-length"]
    text = "--seq-length 5000: the model was trained on 4096 positions at most: tokens beyond them are new to it"
    code, out, _ = plan(capsys, *words, "5000")
    assert code == 0 and f"warning: {text}" in out
    assert "positions" not in plan(capsys, *words, "4096")[1]
    (warning,) = json.loads(plan(capsys, *words, "5000", "--json")[1])["warnings"]
    assert warning["code"] == "beyond-positions" and warning["remedies"] == [{"seq_length": 4096}]


def test_an_invalid_plan_ends_with_2_and_lists_every_problem(capsys):
    code, out, _ = plan(capsys, "--size", "4B", "--gpus", "4", "--tp", "3", "--vp", "2", "--json")
    found = json.loads(out)
    assert code == 2 and not found["valid"] and len(found["problems"]) == 3 and "stages" not in found


def test_the_json_adds_up(capsys):
    _, out, _ = plan(capsys, "--size", "8B", "--gpus", "8", "--pp", "2", "--json", "--memory", "141")
    found = json.loads(out)
    assert found["peak_gib"] == pytest.approx(max(s["total"] for s in found["stages"]), abs=0.01)
    assert sum(s["layers"] for s in found["stages"]) == 36
    step = found["step"]
    assert step["tflops"] == pytest.approx(step["language"] + step["vocabulary"] + step["vision"], abs=0.01)


def test_without_a_model_it_says_what_it_needs(capsys):
    code, out, err = plan(capsys, "--gpus", "8")
    assert code == 2 and not out and "--size or --load" in err and err.count("\n") == 1


@pytest.mark.parametrize("size", ["8B", "A3B"])
def test_suggestions_are_valid_and_the_best_comes_first(size):
    a = published(size)
    found = suggest(FinetuneOptions(), a, 8, 80)
    assert len(found) > 4
    for c in found:
        assert not list(layout_problems(c.options, a, 8)) and c.dp * c.options.tp * c.options.pp * c.options.cp == 8
    fitting = [c for c in found if c.fits(80)]
    assert found[: len(fitting)] == fitting and [c.seconds for c in fitting] == sorted(c.seconds for c in fitting)


def test_the_needed_gpus_are_enough_and_half_are_not():
    base, a = FinetuneOptions(), published("32B")
    count = gpus_needed(base, a, 80)
    roomy = FinetuneOptions(global_batch_size=count * 8)
    assert any(c.fits(80) and not c.price for c in suggest(roomy, a, count, 80))
    assert not any(c.fits(80) and not c.price for c in suggest(roomy, a, count // 2, 80))
    # a number that is no power of two is tried where it is asked for
    assert gpus_needed(base, published("8B"), 79.6, 3) == 3 and gpus_needed(base, published("8B"), 79.6) == 4


def test_where_nothing_fits_a_lighter_optimizer_is_suggested_with_its_price(capsys):
    code, out, _ = plan(capsys, "--size", "8B", "--gpus", "2", "--memory", "80", "--suggest", "--json")
    first, *others = json.loads(out)["suggestions"]
    assert code == 1 and first["fits"] and "gradients are added up and reduced in bf16" in first["price"]
    assert first["options"][:2] == ["--tp", "2"] and "--use-precision-aware-optimizer" in first["options"]
    assert not any(s["fits"] and not s["price"] for s in others)
    code, out, _ = plan(capsys, "--size", "8B", "--gpus", "2", "--memory", "80", *first["options"])
    assert code == 0 and f"{first['gib']:.1f} of 80 GiB" not in out and "fits:" in out
    assert "the price of bf16 there: gradients" in plan(capsys, "--size", "8B", "--gpus", "2", "--memory", "80", "--suggest")[1]
    # fp32 has no bf16 forms
    assert not any(c.price for c in suggest(FinetuneOptions(precision="fp32"), published("8B"), 2, 80))


def test_faster_layouts_of_a_lighter_optimizer_stand_beside_those_that_fit_without(capsys):
    found = json.loads(plan(capsys, "--size", "A3B", "--gpus", "8", "--memory", "80", "--suggest", "--json")[1])
    best = found["suggestions"][0]
    assert best["fits"] and not best["price"]
    last = found["lighter_suggestions"][-1]
    # all experts of a layer on eight GPUs, and nothing else split: what Megatron-Bridge recommends
    assert last["options"][:2] == ["--ep", "8"] and "moments are kept in bf16" in last["price"] and last["dp"] == 8
    assert last["fits"] and last["seconds"] < 0.95 * best["seconds"]


@pytest.mark.parametrize("gpus", [3, 5, 6, 7, 12])
@pytest.mark.parametrize("size", ["4B", "A3B"])
def test_any_number_of_gpus_is_answered_with_layouts_that_work(capsys, size, gpus):
    """With a global batch that the GPUs can share, where that of 8 samples is not one."""
    _, out, _ = plan(capsys, "--size", size, "--gpus", str(gpus), "--memory", "141", "--suggest", "--json")
    found = [s for s in json.loads(out)["suggestions"] if s["fits"]]
    assert found
    for s in found:
        assert plan(capsys, "--size", size, "--gpus", str(gpus), "--memory", "141", *s["options"])[0] == 0, s["options"]


def test_experts_on_several_ranks_have_a_margin_in_memory_and_time():
    a, even, split = published("A3B"), FinetuneOptions(distributed_optimizer=True), FinetuneOptions(distributed_optimizer=True, ep=8)
    for options, factor in ((even, 1.0), (split, UNEVEN_EXPERTS)):
        tokens = experts_bytes(a, options, InputBytes.of(options), on_device=False)
        plain = 2 * a.hidden_size * 2 + 2 * 4 * a.num_experts
        assert tokens - plain == pytest.approx(factor * 8 * (2 * a.hidden_size + 10 * a.expert_ffn_hidden_size))
    slower = step_seconds(split, a, 8, 0, 0.3) / step_seconds(even, a, 8, 0, 0.3) / (1 + 3 * COMMUNICATION["ep"])
    assert 1.05 < slower < UNEVEN_EXPERTS


def test_every_preset_fits_its_gpu(capsys):
    rows = presets()
    assert {(r["size"], r["gpus"], r["card_gb"]) for r in rows} == {
        (s, g, c) for s in ("2B", "4B", "8B", "32B", "A3B", "A22B") for g in (1, 2, 4, 8) for c in (80, 96, 141)
    }
    for row in rows:
        if row["options"] is None:
            assert row["least_gib"] > ROOM * CARDS[row["card_gb"]] - 0.1
        else:
            assert row["gib"] <= ROOM * CARDS[row["card_gb"]] + 0.1
            code, out, _ = plan(capsys, "--size", row["size"], "--gpus", str(row["gpus"]), "--memory", str(CARDS[row["card_gb"]]),
                                *row["options"], "--json")  # fmt: skip
            assert code == 0 and json.loads(out)["peak_gib"] == pytest.approx(row["gib"], abs=0.06)
    assert plan(capsys, "--presets")[1].count("\n") == len(rows) + 2


def test_the_scripts_start_what_was_planned(capsys, data, tmp_path):
    words = ["--load", BASE, "--train-data", data, "--tp", "2", "--global-batch-size", "16", "--name", "My run!", "--gpus", "16"]
    for kind in ("sh", "slurm"):
        code, out, _ = plan(capsys, *words, "--emit", kind)
        file = tmp_path / f"job.{kind}"
        file.write_text(out)
        assert code == 0 and subprocess.run(["bash", "-n", file], check=False).returncode == 0
        assert "--nproc-per-node 8" in out and 'qwen3vl_core.training "$RUN_DIR"' in out
        written = json.loads(out.split("<<'PLAN'\n")[1].split("\nPLAN\n")[0])
        options = from_mapping(FinetuneOptions, written["options"])
        assert written["kind"] == "finetune" and options.tp == 2 and options.train_data == data
        assert ("#SBATCH --nodes=2" in out) == (kind == "slurm")
    code, out, _ = plan(capsys, *words, "--emit", "k8s", "--image", "registry/qwen3vl:1", "--claim", "disk")
    config, job = yaml.safe_load_all(out)
    assert from_mapping(FinetuneOptions, json.loads(config["data"]["plan.json"])["options"]).tp == 2
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert job["metadata"]["name"] == "my-run" and replicas["Master"]["replicas"] == replicas["Worker"]["replicas"] == 1
    container = replicas["Worker"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry/qwen3vl:1" and container["resources"]["limits"]["nvidia.com/gpu"] == 8
    (tmp_path / "pod.sh").write_text(container["command"][2])
    assert subprocess.run(["bash", "-n", tmp_path / "pod.sh"], check=False).returncode == 0


def test_the_script_of_several_nodes_writes_one_complete_plan(capsys, data, tmp_path):
    _, out, _ = plan(capsys, "--load", BASE, "--train-data", data, "--global-batch-size", "16", "--gpus", "16", "--emit", "sh")
    script = tmp_path / "job.sh"
    # everything but the training itself
    script.write_text(out.replace("exec python -m qwen3vl_core.training.torchrun", "exec echo"))
    run_dir = tmp_path / "runs" / "one"
    nodes = {"WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "23456", "RUN_DIR": str(run_dir), "PATH": "/usr/bin:/bin"}
    for rank in ("0", "1"):
        done = subprocess.run(["bash", script], env=nodes | {"RANK": rank}, capture_output=True, text=True, check=True)
        assert f"--node-rank {rank}" in done.stdout and str(run_dir) in done.stdout
    assert [p.name for p in run_dir.iterdir()] == ["plan.json"]
    assert from_mapping(FinetuneOptions, json.loads((run_dir / "plan.json").read_text())["options"]).global_batch_size == 16


def test_a_script_is_not_written_for_an_invalid_plan(capsys, data):
    for words, line in [
        (["--size", "4B", "--emit", "sh"], "--load: required"),
        (["--load", BASE, "--train-data", data, "--tp", "3", "--gpus", "3", "--emit", "slurm"], "--tp 3: 8 attention heads"),
        (["--load", BASE, "--train-data", data, "--gpus", "12", "--global-batch-size", "12", "--emit", "slurm"], "use 8 or 16"),
    ]:
        code, out, err = plan(capsys, *words)
        assert code == 2 and not out and line in err


def test_a_saved_plan_gives_the_same_report(capsys, tmp_path):
    words = ["--size", "8B", "--tp", "4", "--sequence-parallel", "--recompute", "full", "--seq-length", "8192"]
    file = tmp_path / "plan.yaml"
    _, first, err = plan(capsys, *words, "--gpus", "8", "--save", str(file))
    assert f"plan saved: {file}" in err and [p.name for p in Path(tmp_path).iterdir()] == ["plan.yaml"]
    assert plan(capsys, "--plan", str(file), "--gpus", "8")[1] == first
    # the command line wins
    assert "TP 2 x" in plan(capsys, "--plan", str(file), "--tp", "2", "--gpus", "8")[1]


def test_the_script_of_several_nodes_restarts_on_the_next_port(capsys, data, tmp_path):
    words = ["--global-batch-size", "16", "--gpus", "16", "--max-restarts", "2", "--restart-wait", "0", "--emit", "sh"]
    _, out, _ = plan(capsys, "--load", BASE, "--train-data", data, *words)
    (tmp_path / "job.sh").write_text(out)
    # in place of the training: the first attempt fails
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/attempts\n[ "$(wc -l < {tmp_path}/attempts)" != 1 ] || exit 3\n')
    (tmp_path / "python").chmod(0o755)
    node = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "node0", "MASTER_PORT": "23456", "RUN_DIR": str(tmp_path / "one")}
    subprocess.run(["bash", tmp_path / "job.sh"], env=node | {"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    attempts = (tmp_path / "attempts").read_text().splitlines()
    assert ["--master-port 23456" in attempts[0], "--master-port 23457" in attempts[1], len(attempts)] == [True, True, 2]
    # SIGTERM is passed on and nothing is started after it
    (tmp_path / "python").write_text("#!/bin/sh\ntrap 'exit 1' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.05; done\n")
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=node | {"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60, check=False)
    assert done.returncode == 1


def test_gpus_have_the_peak_of_their_name_or_of_the_usual_card_with_their_memory(capsys):
    words = ["plan", "--size", "4B", "--gpus", "8", "--distributed-optimizer", "--global-batch-size", "64", "--json"]

    def seconds(*more: str) -> tuple[float, float]:
        assert main([*words, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["step"]["seconds"], found["memory_gib"]

    h100, h20 = seconds("--gpu", "H100"), seconds("--gpu", "H20")
    assert h20[0] / h100[0] == pytest.approx(989 / 148, rel=0.01) and (h100[1], h20[1]) == (79.6, 95.6)
    assert seconds("--memory", "96")[0] == h20[0] and seconds("--memory", "141")[0] == h100[0] == seconds("--memory", "80")[0]
    assert seconds("--memory", "96", "--peak-tflops", "989")[0] == h100[0]
    assert set(GPUS) == set(PEAK_BF16) == set(MEMORY_GIB)


def test_layouts_are_ranked_with_the_same_peak(capsys):
    found = {}
    for gpu in ("H20", "H100"):
        assert main(["plan", "--size", "4B", "--gpus", "8", "--gpu", gpu, "--suggest", "--json"]) in (0, 1)
        rows = json.loads(capsys.readouterr().out)["suggestions"]
        found[gpu] = {tuple(row["options"]): row["seconds"] for row in rows}
    shared = found["H20"].keys() & found["H100"].keys()
    assert shared and all(found["H20"][row] / found["H100"][row] == pytest.approx(989 / 148, rel=0.01) for row in shared)


def test_a_size_that_is_refused_is_not_missing_too(capsys):
    assert main(["plan", "--size", "9B"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--size 9B" in lines[0]
