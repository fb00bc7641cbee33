"""The plan says before a start that an offloaded optimizer does not fit into this machine's memory, and where ranks could split it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout import host_memory
from qwen3vl_core.layout.machine_rules import ASSUMED_GPU
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.plan import render, report
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.options.planning import PlanOptions

# all of A3B on two GPUs, whose ranks share the experts, with the optimizer on the host
WHOLE = FinetuneOptions(
    size="A3B", nproc=2, ep=2, distributed_optimizer=True, optimizer_offload=1.0, recompute="full", packing=True, seq_length=8192,
    global_batch_size=8,
)  # fmt: skip
PLAN = PlanOptions(memory=140.4)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files that say how much memory there is: of the machine, and the container's limit."""

    def set_memory(gib: int, limit: str = "max") -> None:
        meminfo, maximum = tmp_path / "meminfo", tmp_path / "memory.max"
        meminfo.write_text(f"MemTotal:       {gib * GIB // 1024} kB\nMemFree:         1024 kB\n")
        maximum.write_text(limit + "\n")
        monkeypatch.setattr(host_memory, "MEMINFO", meminfo)
        monkeypatch.setattr(host_memory, "LIMITS", (maximum, tmp_path / "no such file"))

    return set_memory


def test_the_lower_of_machine_and_container_counts(machine, tmp_path, monkeypatch):
    machine(512)
    assert host_memory.host_memory_gib() == 512
    machine(512, str(256 * GIB))
    assert host_memory.host_memory_gib() == 256
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(host_memory, "LIMITS", ())
    assert host_memory.host_memory_gib() is None


def test_what_two_ranks_pin_is_compared_with_this_machine(machine):
    machine(256)
    verdict = judge(WHOLE, PLAN, architecture=published("A3B"), machine=ASSUMED_GPU, disk=False)
    assert verdict.valid and verdict.estimate.fits and verdict.fits is False and not verdict.fits_host
    # 16 bytes for each weight of half of the experts, and for half of the others
    text = "does not fit on this machine: 2 processes pin 231.5 GiB each, 463 GiB in all, of its 256 GiB; offload less, use more"
    assert [str(warning) for warning in verdict.warnings] == [f"{text} machines, or train adapters (--lora-rank 16)"]
    printed = render(report(verdict, PLAN), WHOLE)
    assert text in printed and "\nfits: " in printed and "GPUs of 140.4 GiB needed" not in printed
    machine(600)
    assert judge(WHOLE, PLAN, architecture=published("A3B"), machine=ASSUMED_GPU, disk=False).fits


def test_other_machines_are_not_judged_by_this_one(machine):
    machine(16)
    elsewhere = judge(WHOLE, PlanOptions(gpus=2, memory=140.4), architecture=published("A3B"), disk=False)
    assert elsewhere.fits and not elsewhere.warnings


def test_a_plan_names_the_distributed_optimizer_where_ranks_hold_the_same_state():
    options, a = FinetuneOptions(size="2B", precision="bf16"), published("2B")
    (note,) = judge(options, PlanOptions(gpus=4, memory=140.4), architecture=a, disk=False).notes
    # 12 bytes of each weight, three quarters of which are elsewhere
    assert note.rule["ranks"] == 4 and note.rule["gib"] == pytest.approx(12 * 0.75 * 2_127_532_032 / GIB, abs=0.1)
    assert "add --distributed-optimizer" in str(note)
    for changes, gpus in (
        ({"distributed_optimizer": True}, 4),
        ({"tp": 4}, 4),
        ({}, 1),
        ({"freeze": "vision,projector", "lora_rank": 1}, 4),
    ):
        verdict = judge(replace(options, **changes), PlanOptions(gpus=gpus, memory=140.4), architecture=a, disk=False)
        assert verdict.estimate is not None and not verdict.notes
