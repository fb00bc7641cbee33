"""Which GPUs a run gets: those of nvidia-smi that CUDA_VISIBLE_DEVICES shows."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from qwen3vl_core.layout.gpus import gpu_memory
from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.layout.torchrun_command import gpu_count

# answers as nvidia-smi gives them; --query-gpu names what is asked
TOOL = """
import sys
rows = [
    {"index": "0", "uuid": "GPU-aa11", "compute_cap": "8.0", "memory.total": "40960"},
    {"index": "1", "uuid": "GPU-ab22", "compute_cap": "9.0", "memory.total": "81559"},
    {"index": "2", "uuid": "GPU-cc33", "compute_cap": "9.0", "memory.total": "81559"},
]
fields = sys.argv[1].removeprefix("--query-gpu=").split(",")
for row in rows:
    print(", ".join(row[field] for field in fields))
"""


@pytest.fixture
def three_gpus(tmp_path, monkeypatch):
    file = tmp_path / "nvidia-smi"
    file.write_text(f"#!{sys.executable}{TOOL}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("shown", "count", "capability"),
    [
        (None, 3, 8.0), ("1", 1, 9.0), ("2,1", 2, 9.0), ("0,2", 2, 8.0), ("GPU-cc", 1, 9.0), ("GPU-a", 0, None), ("", 0, None),
        ("-1", 0, None), ("1,7,2", 1, 9.0), (" 1 , 2 ", 2, 9.0),
    ],
)  # fmt: skip
def test_a_run_gets_the_gpus_that_cuda_shows(three_gpus, monkeypatch, shown, count, capability):
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    machine = Machine.here()
    assert (gpu_count(), machine.gpus, machine.capability) == (count, count, capability)
    assert gpu_memory() == ({8.0: 40.0, 9.0: 81559 / 1024, None: None}[capability])


def test_a_failing_nvidia_smi_counts_no_gpu(tmp_path, monkeypatch):
    file = tmp_path / "nvidia-smi"
    file.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no driver')\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (gpu_count(), gpu_memory()) == (0, None)
