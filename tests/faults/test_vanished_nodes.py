"""A machine of a job that is gone is named, with the likely cause: in the log, in list and show, and as the reason of the failure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from console.runs import processes
from console.runs.outcome import Attempt, silent_nodes
from qwen3vl_core.layout.torchrun_command import free_port
from qwen3vl_core.run_record import TORCHRUN
from tests.console.runs.jobs import until

ROOT = Path(__file__).parents[2]
RANK = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from qwen3vl_core.training.node_watch import NodeWatch
signal.signal(signal.SIGTERM, lambda *_: None)  # as a training, which saves then
dist.init_process_group('gloo')
watch = NodeWatch(Path(sys.argv[1]), os.environ, beat=0.5, silent=4.0)
try:
    while True:
        dist.all_reduce(torch.ones(1))
        time.sleep(0.05)
except Exception as error:
    watch.failed(error)
    os._exit(1)
"""


@pytest.mark.slow
def test_a_machine_that_stops_answering_is_named(tmp_path):
    """Two nodes of two ranks on this machine; the processes of one are stopped, so that not even a connection is closed."""
    script, port = tmp_path / "rank.py", free_port()
    script.write_text(RANK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    nodes, logs = [], [tmp_path / "0.log", tmp_path / "1.log"]
    began = time.time()
    for number, log in enumerate(logs):
        words = [sys.executable, "-m", TORCHRUN, "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "2"]
        words += ["--master-addr", "127.0.0.1", "--master-port", str(port), str(script), str(tmp_path)]
        with open(log, "wb") as stream:
            nodes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=stream, stderr=stream))
    try:
        record = tmp_path / "nodes.json"

        def entries():
            with contextlib.suppress(OSError, ValueError):
                return json.loads(record.read_text())["nodes"]
            return []

        # both answer, and none is said to be gone
        until(lambda: [entry["ranks"] for entry in entries()] == [2, 2] and entries()[1]["quiet"] < 4 and entries(), 240)
        assert not silent_nodes(tmp_path, began)
        gone = [*processes.descendants(nodes[1].pid), processes.Process(nodes[1].pid, 0, 0, False)]
        processes.send(gone, signal.SIGSTOP)
        host = entries()[1]["host"]
        expected = f"node 1 ({host}, ranks 2 to 3) has not answered for "
        until(lambda: f"qwen3vl[node]: {expected}" in logs[0].read_text(errors="replace"), 120)
        assert "its machine or network is down, or its processes are stopped or killed" in logs[0].read_text(errors="replace")
        assert [entry["first_rank"] for entry in entries()] == [0, 2] and entries()[0]["quiet"] < 4
        processes.send(gone, signal.SIGCONT)
        until(lambda: "node 1 answers again" in logs[0].read_text(errors="replace"), 120)
        # killed: the connections break, and all ranks fail at once
        processes.kill([*processes.descendants(nodes[1].pid), processes.Process(nodes[1].pid, 0, 0, False)])
        nodes[0].wait(120)
        last = logs[0].read_text(errors="replace").rpartition("node 1 answers again")[2]
        assert expected in last and "or its processes are stopped or killed" in last
        ended = Attempt(tmp_path, 10)
        ended.began = began
        assert (ended.outcome(1, stopping=False).error or "").startswith(expected)
    finally:
        for node in nodes:
            below = processes.descendants(node.pid)
            processes.send(below, signal.SIGCONT)
            node.send_signal(signal.SIGCONT)
            processes.kill(below)
            node.kill()
            node.wait()


def test_the_failure_of_the_attempt_names_it(tmp_path):
    (tmp_path / "output.log").touch()
    attempt = Attempt(tmp_path, 10)
    nodes = [{"node": 0, "host": "a", "first_rank": 0, "ranks": 8, "quiet": 0.4}, {"node": 1, "host": "b", "first_rank": 8, "ranks": 8}]
    for quiet, error in ((600.2, "node 1 (b, ranks 8 to 15) has not answered for 600 s: its machine or network is down"), (5.0, None)):
        written = {"v": 1, "time": time.time() + 1, "nodes": [nodes[0], nodes[1] | {"quiet": quiet}]}
        (tmp_path / "nodes.json").write_text(json.dumps(written))
        ended = attempt.outcome(1, stopping=False)
        assert ended.status == "failed" and (ended.error or "").startswith(error or "") and bool(ended.error) == bool(error)
    # of the attempt before
    (tmp_path / "nodes.json").write_text(json.dumps(written | {"time": 5.0, "nodes": [nodes[1] | {"quiet": 600.0}]}))
    assert attempt.outcome(1, stopping=False).error is None
    for damaged in ("[]", '{"time": "x"}', '{"time": 1e12, "nodes": [1, {"quiet": "x"}, {}]}'):
        (tmp_path / "nodes.json").write_text(damaged)
        assert attempt.outcome(1, stopping=False).status == "failed"
