"""GPUs as they are: free, used, and by whom; what is in use is subtracted. nvidia-smi is a stand-in that answers as it does."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from typing import Any

import pytest

from console.runs import launch
from console.runs.store import RunStore
from console.screens.gpus import PickGpus
from qwen3vl_core.layout import doctor
from qwen3vl_core.layout.gpus import GpuUse, gpu_memory, in_use, run_of, uses
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options.finetune import FinetuneOptions
from qwen3vl_core.options.planning import PlanOptions
from tests.console.app.driving import LARGE, SLEEPER, SMALL, driven, looked, press, text_of, until

TOOL = """
import json, os, sys
what, fields = sys.argv[1].removeprefix("--query-").split("=")
for row in json.load(open(os.path.join(os.path.dirname(__file__), "gpus.json")))[what]:
    print(", ".join(row[field] for field in fields.split(",")))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four GPUs of 80 GiB, of which a test says what is in use."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "nvidia-smi"
    file.write_text(f"#!{sys.executable}{TOOL}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def use(**used):
        """gpu0=(GiB, pid): what a process holds."""
        gpus, apps = [], []
        for index in range(4):
            gib, pid = used.get(f"gpu{index}", (0.4, None))
            gpus.append({"index": str(index), "uuid": f"GPU-{index}", "name": "NVIDIA H100", "memory.total": "81920",
                         "memory.used": str(int(gib * 1024)), "compute_cap": "9.0", "driver_version": "570.1"})  # fmt: skip
            apps += [{"gpu_uuid": f"GPU-{index}", "pid": str(pid)}] if pid else []
        (folder / "gpus.json").write_text(json.dumps({"gpu": gpus, "compute-apps": apps}))

    use()
    return use


def test_what_is_in_use_is_subtracted_on_the_gpus_that_a_run_gets(machine):
    assert gpu_memory() == 80.0 and in_use() == "" and all(gpu.free for gpu in uses()), "a driver's own memory does not count"
    machine(gpu0=(70.0, 1), gpu1=(10.0, 1))
    assert gpu_memory() == pytest.approx(10.0) and gpu_memory(1) == pytest.approx(10.0)
    assert in_use(2) == "other processes hold 70.0 GiB of GPU 0, 10.0 GiB of GPU 1; --gpu-ids 2,3 has free ones"
    assert in_use().endswith("wait until they are free")


def test_a_run_of_the_first_gpu_does_not_mind_who_uses_the_last(machine, monkeypatch):
    machine(gpu3=(79.0, 1))
    assert gpu_memory(2) == 80.0 and in_use(2) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    assert gpu_memory(1) == pytest.approx(1.0) and [gpu.index for gpu in uses()] == ["3", "0"]


def test_a_plan_that_fits_only_free_gpus_does_not_fit_those_that_others_use(machine):
    options = FinetuneOptions(size="4B", train_data="data", nproc=2, distributed_optimizer=True, global_batch_size=8, micro_batch_size=1)
    free = judge(options, PlanOptions())
    assert free.estimate.fits and free.memory_gib == 80.0
    machine(gpu1=(70.0, 1))
    used = judge(options, PlanOptions())
    assert not used.estimate.fits and used.memory_gib == pytest.approx(10.0)
    assert any("other processes hold 70.0 GiB of GPU 1; --gpu-ids 0,2 has free ones" in str(w) for w in used.warnings)
    assert judge(options, PlanOptions(memory=80.0)).estimate.fits, "a memory that is given is that of another machine"
    for ids in ("free", "0,2", "3,2"):
        elsewhere = judge(replace(options, gpu_ids=ids), PlanOptions())
        assert elsewhere.estimate.fits and elsewhere.memory_gib == 80.0 and elsewhere.gpus == 2


@pytest.mark.parametrize(
    ("ids", "nproc", "said"),
    [
        ("4,0", 0, "--gpu-ids 4,0: a run here gets no GPU 4; choose from 0, 1, 2, 3, or free"),
        ("0,1", 3, "--gpu-ids 0,1: 2 GPUs for --nproc 3; name more, or use --nproc 2"),
        ("free", 4, "--gpu-ids free: 3 of the 4 GPUs that it needs are free; wait for others, or name those to share by their indices"),
        ("1,one", 0, "--gpu-ids 1,one: must be indices of GPUs as nvidia-smi lists them, each once, such as 4,5,6,7, or free; use free, "
                     "or leave --gpu-ids out"),
    ],
)  # fmt: skip
def test_gpus_that_a_run_cannot_get_are_refused_with_the_way_out(machine, ids, nproc, said):
    machine(gpu3=(70.0, 1))
    options = FinetuneOptions(load="base", train_data="data", nproc=nproc, gpu_ids=ids, queue="never")
    assert said in [str(problem) for problem in judge(options, PlanOptions()).problems]
    waiting = judge(replace(options, queue="auto", size="4B", load=None), PlanOptions())
    if ids == "free":
        assert waiting.gpus == 4 and waiting.memory_gib == 80.0, "it waits until they are free"
    assert ("gpu_ids" in [problem.option for problem in waiting.problems]) == (ids != "free")


def test_a_run_is_started_on_the_gpus_that_were_free(machine, tmp_path):
    machine(gpu0=(70.0, 1))
    options = FinetuneOptions(load="base", train_data="data", nproc=2, gpu_ids="free")
    code = "import os; print('devices', os.environ['CUDA_VISIBLE_DEVICES'], flush=True)"
    run = RunStore(tmp_path / "runs").create("finetune", options, [sys.executable, "-c", code])
    assert run.options["gpu_ids"] == "1,2" and run.plan["gpus"] == 2
    assert "export CUDA_VISIBLE_DEVICES=1,2" in (run.path / "command.sh").read_text()
    launch.start(run)
    launch.wait(run, 150)
    assert "devices 1,2" in run.log.read_text()
    more = RunStore(tmp_path / "runs").create("finetune", replace(options, gpu_ids="3,1,2", nproc=0))
    assert more.plan["command"][more.plan["command"].index("--nproc-per-node") + 1] == "3", "one process for each"


def test_the_doctor_says_who_uses_a_gpu(machine):
    machine(gpu2=(30.0, 1))
    checks, _ = doctor.check_gpus()
    assert [check.status for check in checks] == ["ok", "ok", "warn", "ok"]
    assert checks[2].name == "GPU 2" and "30.0 GiB in use by another process (1)" in checks[2].text and "--gpu-ids free" in checks[2].fix


@pytest.mark.parametrize("size", [(60, 18), SMALL, LARGE])
def test_the_picker_marks_the_free_gpus_and_fills_the_form(store, size):
    async def scene(pilot):
        app = pilot.app
        app.gpus = (
            GpuUse("0", "NVIDIA H100", 80.0, 61.0, (11,), "0007-caption"), GpuUse("1", "NVIDIA H100", 80.0, 30.0, (12,)),
            GpuUse("2", "NVIDIA H100", 80.0, 0.4), GpuUse("3", "NVIDIA H100", 80.0, 0.4),
        )  # fmt: skip
        await press(pilot, "2")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None)
        app.screen.form.focus_first()
        await press(pilot, "escape", "v")
        assert isinstance(app.screen, PickGpus)
        shown = text_of(app)
        assert "[ ] GPU 0" in shown and "0007-caption" in shown and "another proc" in shown, "marks are seen without colours"
        assert (
            "[x] GPU 2" in shown
            and "[x] GPU 3" in shown
            and "enter takes them" in shown
            and "esc leaves" in shown
            and "2 of 4 marked" in shown
        )
        await press(pilot, "down", "space")
        assert "in use: GPU 1" in text_of(app)
        await pilot.click("MarkList", offset=(2, 1))  # by mouse: off again
        await looked(pilot)
        assert "2 of 4 marked" in text_of(app)
        await press(pilot, "enter")
        form: Any = app.screen
        assert form.form.texts()["gpu_ids"] == "2,3" and "--gpu-ids 2,3" in form.plan.command
        await press(pilot, "v", "a", "enter")
        assert form.form.texts()["gpu_ids"] == ""
        await press(pilot, "u")
        assert form.form.texts()["gpu_ids"] == "2,3", "the choice can be undone"

    driven(scene, store.app(), size)


@pytest.mark.parametrize("size", [(60, 18), SMALL, LARGE])
def test_the_header_and_the_first_page_show_free_gpus_our_runs_and_others(machine, store, size):
    run = store.finetune("mine", 5, 100, SLEEPER)
    launch_pid = next(pid for pid in iter(lambda: run.state.get("pid"), None) if pid)
    assert run_of(launch_pid) == run.id and run_of(1) == "" and run_of(99_999_999) == ""
    machine(gpu1=(60.0, launch_pid), gpu2=(30.0, 1))
    assert [gpu.words for gpu in uses()] == ["free", run.id, "another process (1)", "free"]

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: "GPU ·▇x·" in text_of(app).splitlines()[0])
        app.action_start_page()
        await looked(pilot)
        app.screen.query_one("#page").scroll_end(animate=False)
        await looked(pilot)
        assert f"GPU 1  60.0 of 80.0 GiB in use  {run.id}" in text_of(app)
        assert "GPU 2  30.0 of 80.0 GiB in use  another process (1)" in text_of(app)

    driven(scene, store.app(), size)
    launch.stop(run)
