"""A disk that is full, a real one of a few megabytes: the last state and its reason are written, and what did not fit is said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from console.runs import launch, run_text
from qwen3vl_core.cli import main
from qwen3vl_core.demo.workspace import BASE
from tests.console.runs.jobs import job, run_store
from tests.training import runs

FILLS = """
with open(here / 'fill', 'wb', buffering=0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError: pass
try:
    (here / 'more').write_bytes(b'x' * 4096); note('not-full')
except OSError: pass
sys.exit(3)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size."""
    mounted = []

    def made(size: str) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small file system")
        mounted.append(folder)
        return folder

    yield made
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_last_state_is_written_on_a_full_disk(small_disk):
    disk = small_disk("2m")
    with run_store(disk / "runs") as store:
        run = store.create("job", {}, job(FILLS))
        launch.start(run)
        assert launch.wait(run, 60) == "failed"
        assert (
            shutil.disk_usage(disk).free < 70_000
            and run.error == f"the disk of {disk / 'runs'} is full; free some space and resume the run"
        )
        assert not (run.path / "not-full").exists() and run.exit_code == 3 and run.state["ended"] and not (run.path / "reserve").exists()
        assert "failed, exit 3" in run_text.table([run])[1]


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_called_that_and_the_one_before_stays(small_disk, tmp_path):
    """The first checkpoint fits, the second does not."""
    data = runs.scenes(tmp_path)
    runs.plan(tmp_path / "whole", data, train_iters=2, save_interval=2)
    assert runs.train(tmp_path / "whole")[0] == 0, runs.log(tmp_path / "whole")
    size = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoints").rglob("*") if file.is_file())
    run = small_disk(f"{int(size * 1.5) >> 10}k") / "run"
    runs.plan(run, data, train_iters=6, save_interval=2)
    assert runs.train(run)[0] == 1
    assert "the disk is full; the previous checkpoint is complete" in runs.log(run).splitlines()[-1]
    assert [path.name for path in (run / "checkpoints").glob("iter_*")] == ["iter_0000002"]


def test_a_conversion_that_does_not_fit_leaves_nothing(small_disk, capsys):
    disk = small_disk("3m")
    # the free space is compared before; it is taken while the conversion works
    (disk / "other").write_bytes(bytes(1 << 20))
    assert main(["convert", str(BASE), str(disk / "target")]) in (1, 2)
    assert [path.name for path in disk.iterdir()] == ["other"]
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("qwen3vl: ")]) == 1
