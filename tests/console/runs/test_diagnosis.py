"""Explanations of failures, from lines that real programs print."""

from __future__ import annotations

import pytest

from console.runs.diagnosis import explain, explain_more
from qwen3vl_core import log_lines

RESUMED = log_lines.written("resumed 2026-01-01 10:00:00 on here", log_lines.RESUMED)

LINES = {
    "gpu_memory": "[rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 2 has a total capacity of 79 GiB",
    "disk": "OSError: [Errno 28] No space left on device: '/runs/0001/checkpoints/iter_0000100'",
    "shared_memory": "RuntimeError: unable to open shared memory object </torch_92_1> in read-write mode: Too many open files",
    "host_memory": "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 6871 bytes",
    "port": "The server socket has failed to listen on any local network address. port: 29500, code: -98, name: EADDRINUSE, "
            "message: address already in use",
    "driver": "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "gpu_broken": "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    "device_assert": "torch.AcceleratorError: CUDA error: device-side assert triggered",
    "module": "ModuleNotFoundError: No module named 'transformer_engine'",
    "nan": "qwen3vl[bad-steps]: step 31: the loss is nan; 5 bad steps in a row (--max-bad-steps 5); its samples: a, b",
    "missing": "FileNotFoundError: [Errno 2] No such file or directory: '/data/train/.nv-meta/index.sqlite'",
    "rights": "PermissionError: [Errno 13] Permission denied: '/runs/0001/metrics.jsonl'",
    "nccl_timeout": "[rank3]:[E ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1201, "
                    "OpType=ALLREDUCE, NumelIn=1, Timeout(ms)=600000) ran for 600012 milliseconds before timing out.",
    "nccl": "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:268, ncclSystemError: System call failed",
    "connection": "ConnectionRefusedError: [Errno 111] Connection refused",
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_known_error_has_a_title_its_line_and_what_to_try(name):
    found = explain(["step 1", "Traceback (most recent call last):", LINES[name], "ChildFailedError: "], 1)
    assert found is not None and found.name == name
    assert found.line == LINES[name] and found.index == 2 and found.title and len(found.advice) > 20 and "\n" not in found.advice


def test_the_cause_is_named_before_its_consequences():
    lines = [LINES["nccl_timeout"], LINES["gpu_memory"], LINES["connection"]]
    assert explain(lines, 1).name == "gpu_memory"


def test_only_the_last_attempt_counts():
    for again in (RESUMED, "qwen3vl: resumed 2026-01-01 10:00:00 on here"):
        assert explain([LINES["disk"], again, "step 5"], 1) is None
        assert explain([LINES["disk"], again, LINES["port"]], 1).name == "port"


def test_our_own_errors_say_it_themselves_and_an_exit_code_where_no_line_does():
    text = "--train-data data: no Energon index in it; make the dataset with qwen3vl prepare"
    # the last two are of versions before the tags
    for line in (f"qwen3vl[dataset-without-index]: {text}", f"qwen3vl: {text}", f"qwen3vl finetune: {text}"):
        own = explain(["step 3", line], 2)
        assert own.name == "request" and own.says_itself and own.advice == own.text == text and own.line == line
    assert explain(["step 3"], 137).title == "killed from outside" and explain([], 139).name == "crash"
    assert explain(["all is well"], 0) is None and explain([], None) is None


def test_our_own_message_is_nearer_to_the_cause_than_what_other_ranks_print_because_of_it():
    own = "qwen3vl[work]: /data/train-0.tar: no such file or folder: no such folder; put it back"
    assert explain([LINES["nccl_timeout"], own, LINES["connection"]], 1).text.startswith("/data/train-0.tar")
    assert explain([LINES["gpu_memory"], own], 1).name == "gpu_memory"
    unexpected = "qwen3vl[unexpected]: PermissionError: [Errno 13] Permission denied: '/runs'; run again with --debug for the traceback"
    assert explain([unexpected], 1).name == "rights"


def test_ordinary_lines_are_not_errors():
    fine = ["qwen3vl: asked to stop; 60 s to end", "qwen3vl[stop]: asked to stop; 60 s to end", "qwen3vl[resumed]: resumed",
            "qwen3vl[killed]: 2 processes did not end in time; killed", "step 6310/10000  loss 1.2140  lr 9.31e-06",
            "WARNING: using the slow path",
            "validated with timeout 600 s", "saved checkpoint to /runs/0001/checkpoints/iter_0000100"]  # fmt: skip
    assert explain(fine, 0) is None and explain(fine, 1) is None


@pytest.mark.parametrize("lines", [
    [LINES["port"], "step 3", LINES["gpu_memory"], LINES["disk"]], ["step 1", LINES["missing"], "step 2"],
    [LINES["disk"], RESUMED, "step 5", LINES["nccl"]], [LINES["disk"], RESUMED, "step 5"],
    ["qwen3vl: one", "step 2", "qwen3vl: two"], ["step 1", "step 2"], [LINES["nccl"], "qwen3vl: nccl failed"],
])  # fmt: skip
@pytest.mark.parametrize("code", [1, 137, None])
def test_a_log_is_explained_the_same_at_once_and_as_it_grows(lines, code):
    at_once = explain(lines, code)
    known = explain(lines[:1], code)
    for line in lines[1:]:
        known = explain_more(known, [line], code)
    assert (known is None) == (at_once is None)
    assert known is None or (known.name, known.line) == (at_once.name, at_once.line)
