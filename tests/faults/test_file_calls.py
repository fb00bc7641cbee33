"""Kills, EIO and a full disk at the file calls of every command that writes: nothing is lost, nothing is left half written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from qwen3vl_core.demo.workspace import BASE
from tests.data import hub_server
from tests.faults import injected
from tests.faults.injected import ENOSPC, FAULTS, KILL, Commands, Done, digest, moments
from tests.training import runs

pytestmark = pytest.mark.skipif(injected.compiler() is None, reason="the file calls are replaced by a C library; install gcc")

# the long form: QWEN3VL_FAULTS=1000 is at every call of each command
MOST = int(os.environ.get("QWEN3VL_FAULTS", 3))
TRAININGS = int(os.environ.get("QWEN3VL_FAULTS_TRAINING", 1))
# what depends on the time
VOLATILE = ("report.json",)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("injected")) as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    runs.scenes(folder, 12)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small model in both formats."""
    from qwen3vl_core.cli import main
    from tests.ranks import run_ranks

    hf = run_ranks(1, runs.small_model, tmp_path_factory.mktemp("hf"))[0]
    mcore = tmp_path_factory.mktemp("mcore") / "mcore"
    assert main(["convert", str(hf), str(mcore)]) == 0
    return hf, mcore


def one_line(said: str) -> bool:
    """Whether a command that failed said why, without a traceback."""
    lines = [line for line in said.splitlines() if line.startswith("qwen3vl: ")]
    return len(lines) >= 1 and "Traceback" not in said


WAYS = ("prepare", "prepare anew", "convert to torch_dist", "convert to Hugging Face")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_target_is_the_old_or_the_new_one_and_the_next_command_makes_it(commands, scenes, models, tmp_path, way, fault, record_property):
    hf, mcore = models
    words = {
        "prepare": ["prepare", str(scenes / "captions.json"), "--split", "5,1,0", "--overwrite", "--to"],
        "prepare anew": ["prepare", str(scenes / "captions.json"), "--split", "5,1,0", "--to"],
        "convert to torch_dist": ["convert", str(hf), "--overwrite"],
        "convert to Hugging Face": ["convert", str(mcore), "--overwrite"],
    }[way]
    old = {"prepare": scenes / "data", "prepare anew": None, "convert to torch_dist": hf, "convert to Hugging Face": mcore}[way]

    def begin(name: str) -> Path:
        target = tmp_path / name / "target"
        target.parent.mkdir()
        if old is not None:
            shutil.copytree(old, target)
            (target / "config.json").touch()
        return target

    target = begin("whole")
    before = digest(target, VOLATILE)
    whole = commands.run([*words, str(target)], target.parent)
    assert whole.code == 0, whole.said
    after = digest(target, VOLATILE)
    assert after != before or way == "prepare"
    cases = 0
    for moment in moments(whole.calls, MOST):
        target = begin(str(moment))
        done = commands.run([*words, str(target)], target.parent, fault, moment)
        where = f"{fault} at call {moment} of {whole.calls}: {done.said}"
        if fault == KILL:
            # two processes may not interleave their calls twice in the same way: the last moments may not come
            assert done.code in (-9, 0), where
        else:
            assert done.code in (0, 1, 2) and (done.code == 0 or one_line(done.said)), where
            assert fault != ENOSPC or done.code == 0 or "full" in done.said, where
        there = digest(target, VOLATILE)
        assert there in ((before, after) if done.code else (after,)), where
        again = commands.run([*words, str(target)], target.parent)
        refused = way == "prepare anew" and there == after
        assert again.code == (2 if refused else 0), f"{where}\nagain: {again.said}"
        assert digest(target, VOLATILE) == after, where
        assert [path.name for path in target.parent.iterdir()] == ["target"], where
        shutil.rmtree(target.parent)
        cases += 1
    record_property("cases", cases)
    record_property("fault", f"{fault} at the file calls of {way}")
    assert cases >= min(MOST, whole.calls) - 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_is_there_or_goes_on_from_what_it_has(commands, tmp_path, fault, record_property):
    words = ["download", "model", "owner/thing", "--to"]
    with hub_server.serving() as hub:
        environment = {"HF_ENDPOINT": hub.address, "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}

        def get(name: str, *at) -> Done:
            (tmp_path / name).mkdir(exist_ok=True)
            return commands.run([*words, str(tmp_path / name / "target")], tmp_path / name, *at, environment=environment)

        whole = get("whole")
        assert whole.code == 0, whole.said
        after = digest(tmp_path / "whole" / "target")
        # a client of the hub is started for each; the third call is within the writing of the download's record
        few = [3] if fault == KILL else list(moments(whole.calls, 3))[1:2]
        for moment in few if MOST < 10 else moments(whole.calls, MOST):
            done = get(str(moment), fault, moment)
            where = f"{fault} at call {moment} of {whole.calls}: {done.said}"
            assert done.code == -9 if fault == KILL else done.code == 0 or one_line(done.said), where
            assert digest(tmp_path / str(moment) / "target") in (None, after), where
            assert get(str(moment)).code == 0, where
            assert digest(tmp_path / str(moment) / "target") == after, where
            assert [path.name for path in (tmp_path / str(moment)).iterdir()] == ["target"], where
    record_property("cases", min(MOST, whole.calls))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_resumes_bitwise_after_it(commands, scenes, models, tmp_path, fault, record_property):
    data = scenes / "data"
    values = {"load": str(models[0]), "save_interval": 2, "keep": 2, "micro_batch_size": 4, "train_iters": 4}
    whole = tmp_path / "whole"
    runs.plan(whole, data, **values)
    done = commands.run(["train", str(whole)], whole)
    assert done.code == 0, done.said
    expected = {row["step"]: row["loss"] for row in runs.rows(whole)}
    for moment in moments(done.calls, TRAININGS + 2 if TRAININGS == 1 else TRAININGS):
        if TRAININGS == 1 and moment in (1, done.calls):
            continue
        run = tmp_path / str(moment)
        runs.plan(run, data, **values)
        ended = commands.run(["train", str(run)], run, fault, moment)
        where = f"{fault} at call {moment} of {done.calls}: {ended.said[-3000:]}"
        assert ended.code in ((-9, 0) if fault == KILL else (0, 1, 2)), where
        assert fault != ENOSPC or not ended.code or "full" in ended.said, where
        again = commands.run(["train", str(run)], run)
        assert again.code == 0, f"{where}\nagain: {again.said[-3000:]}"
        rows = runs.rows(run)
        assert {row["step"] for row in rows} == set(expected), where
        assert [row["loss"] for row in rows] == [expected[row["step"]] for row in rows], "bitwise"
        assert not list((run / "checkpoints").glob("*.tmp")), where
        shutil.rmtree(run)
    record_property("cases", TRAININGS)
    record_property("fault", f"{fault} at the file calls of a training")


def test_a_slow_disk_changes_nothing(commands, scenes, models, tmp_path):
    """Each write and sync takes 20 ms: what is made is the same."""
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    for target, way in ((fast, "off"), (slow, injected.SLOW)):
        assert commands.run(["convert", str(models[1]), str(target)], target, way, 20).code == 0
    assert digest(fast) == digest(slow)


def test_the_injected_faults_are_real(commands, models, tmp_path):
    """The library counts calls and fails them: without it these tests would pass, whatever the code does."""
    target = tmp_path / "target"
    whole = commands.run(["convert", str(models[1]), str(target)], tmp_path)
    assert whole.code == 0 and whole.calls > 20
    ended = commands.run(["convert", str(models[1]), str(target), "--overwrite"], tmp_path, KILL, whole.calls // 2)
    assert ended.code == -9
    full = commands.run(["convert", str(BASE), str(tmp_path / "other")], tmp_path, ENOSPC, 5)
    assert full.code == 1 and "the disk is full; nothing was written" in full.said
    assert json.loads((target / "config.json").read_text())
