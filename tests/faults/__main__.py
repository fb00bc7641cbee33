"""`python -m tests.faults [--long] [--only WORD]`: the faults that are tested, how often, and what came of it, as a table.

The short form is part of the test suite. The long form takes an hour or more; docs/reliability.md has its figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Fault(NamedTuple):
    """A row of the table."""

    name: str
    tests: tuple[str, ...]
    """As pytest takes them."""
    long: Mapping[str, str] = MappingProxyType({})
    """Environment variables of the long form."""
    words: tuple[str, ...] = ()
    """More words for pytest."""


ON_CALLS = "tests/faults/test_file_calls.py"
FAULTS = (
    Fault("kills at the file calls of prepare and convert", (ON_CALLS,), {"QWEN3VL_FAULTS": "1000"}, ("-k", "target and kill")),
    Fault("EIO at the n-th file call", (ON_CALLS,), {"QWEN3VL_FAULTS": "60"}, ("-k", "target and EIO")),
    Fault("a full disk from the n-th file call on", (ON_CALLS,), {"QWEN3VL_FAULTS": "60"}, ("-k", "target and ENOSPC")),
    Fault("the same three in a training, resumed", (ON_CALLS,), {"QWEN3VL_FAULTS_TRAINING": "15"}, ("-k", "training")),
    Fault("the same three in a download, continued", (ON_CALLS,), {"QWEN3VL_FAULTS": "30"}, ("-k", "download")),
    Fault("slow disks", (ON_CALLS,), {}, ("-k", "slow or real")),
    Fault("full disks", ("tests/faults/test_full_disks.py",)),
    Fault("kills within a replacement, twice each; two writers", ("tests/test_last_writes.py",), {"QWEN3VL_KILLS": "20"}),
    Fault("killed trainings, while they save too", ("tests/training/test_killed_runs.py",), {"QWEN3VL_KILLS": "20"}),
    Fault(
        "dead ranks, restarted (2 ranks)", ("tests/training/test_restarts.py",), {"QWEN3VL_KILLS": "20"}, ("-k", "killed_rank and not 4")
    ),
    Fault("dead ranks, restarted (4 ranks)", ("tests/training/test_restarts.py",), {"QWEN3VL_KILLS": "20"}, ("-k", "killed_rank and 4")),
    Fault("a rank killed every 30 s for 10 minutes", ("tests/faults/test_killed_ranks.py",), {"QWEN3VL_MINUTES": "10"}),
    Fault("stopped and stalled ranks", ("tests/console/runs/test_stalled_runs.py",)),
    Fault("machines that stop answering", ("tests/faults/test_vanished_nodes.py",)),
    Fault("ends, signals, stops and restarts of a run", ("tests/console/runs/test_interrupted_runs.py",)),
    Fault("damaged checkpoints", ("tests/checkpoint/test_digests.py",), {"QWEN3VL_DAMAGE": "200"}),
    Fault("clock steps", ("tests/faults/test_clock_steps.py",)),
    Fault("hostile folders, names and secrets", ("tests/faults/test_hostile_folders.py",)),
    Fault("bombs", ("tests/test_limits.py",)),
    Fault("long logs", ("tests/faults/test_log_rotation.py",)),
    Fault("long metrics", ("tests/faults/test_large_metrics.py",), {"QWEN3VL_METRICS_MB": "1024"}),
)


class Result(NamedTuple):
    cases: int
    failed: int
    skipped: int
    seconds: float


def run(fault: Fault, long: bool, report: Path) -> Result:
    """Run a row's tests. A test counts as many cases as it says, else one."""
    environment = os.environ | (dict(fault.long) if long else {})
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-o",
        "faulthandler_timeout=0",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
        *fault.tests,
        *fault.words,
    ]
    began = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds = time.monotonic() - began
    cases = failed = skipped = 0
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            stated = [item.get("value") for item in case.iter("property") if item.get("name") == "cases"]
            count = int(stated[0] or 1) if stated else 1
            if case.find("skipped") is not None:
                skipped += 1
            elif case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            else:
                cases += count
    if done.returncode not in (0, 5) or failed:
        print(done.stdout[-4000:], file=sys.stderr)
    return Result(cases, failed or int(done.returncode not in (0, 5)), skipped, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the long form")
    parser.add_argument("--only", default="", metavar="WORD", help="rows with this word")
    given = parser.parse_args()
    print("| fault | passed | failed | skipped | seconds | by |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(FAULTS):
            if given.only not in fault.name:
                continue
            found = run(fault, given.long, Path(folder) / f"{number}.xml")
            worst |= bool(found.failed)
            by = ", ".join(f"`{name}`" for name in fault.tests)
            print(f"| {fault.name} | {found.cases} | {found.failed} | {found.skipped} | {found.seconds:.0f} | {by} |", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
