"""GPUs as they are: free, used, and by whom; what is in use is subtracted. nvidia-smi is a stand-in that answers as it does."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest

from console.readers.gpus import look, run_of
from console.runs import launch
from qwen3vl_core.layout.gpus import gpu_memory, in_use, uses
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options.finetune import FinetuneOptions
from qwen3vl_core.options.planning import PlanOptions
from tests.console.app.driving import LARGE, SLEEPER, SMALL, driven, looked, text_of, until

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
                         "memory.used": str(int(gib * 1024)), "compute_cap": "9.0"})  # fmt: skip
            apps += [{"gpu_uuid": f"GPU-{index}", "pid": str(pid)}] if pid else []
        (folder / "gpus.json").write_text(json.dumps({"gpu": gpus, "compute-apps": apps}))

    use()
    return use


def test_what_is_in_use_is_subtracted_on_the_gpus_that_a_run_gets(machine):
    assert gpu_memory() == 80.0 and in_use() == "" and all(gpu.free for gpu in uses()), "a driver's own memory does not count"
    machine(gpu0=(70.0, 1), gpu1=(10.0, 1))
    assert gpu_memory() == pytest.approx(10.0) and gpu_memory(1) == pytest.approx(10.0)
    assert in_use(2) == "other processes hold 70.0 GiB of GPU 0, 10.0 GiB of GPU 1; CUDA_VISIBLE_DEVICES=2,3 has free ones"
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
    assert any("other processes hold 70.0 GiB of GPU 1; CUDA_VISIBLE_DEVICES=0,2 has free ones" in str(w) for w in used.warnings)
    assert judge(options, PlanOptions(memory=80.0)).estimate.fits, "a memory that is given is that of another machine"


@pytest.mark.parametrize("size", [(60, 18), SMALL, LARGE])
def test_the_header_and_the_first_page_show_free_gpus_our_runs_and_others(machine, store, size):
    run = store.finetune("mine", 5, 100, SLEEPER)
    launch_pid = next(pid for pid in iter(lambda: run.state.get("pid"), None) if pid)
    assert run_of(launch_pid) == run.id and run_of(1) == "" and run_of(99_999_999) == ""
    machine(gpu1=(60.0, launch_pid), gpu2=(30.0, 1))
    assert [line.words for line in look()] == ["free", run.id, "another process (1)", "free"]

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
