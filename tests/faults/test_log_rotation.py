"""A log that grows too long is cut at its beginning while the run's processes go on writing to it."""

from __future__ import annotations

import itertools
import sys

import pytest

from console.runs import launch, log_rotation, run_text
from console.runs.tail import LogTail
from qwen3vl_core.errors import RequestError
from tests.console.runs.jobs import run_store

WRITES = """
import os, sys, time
for number in range(int(sys.argv[1])):
    os.write(1, b'%08d ' % number + b'x' * 90 + b'\\n')
    if number % 2000 == 0: time.sleep(0.3)
"""
LINES = 16_000


def numbers(path) -> list[int]:
    return [int(line[:8]) for line in path.read_bytes().split(b"\n") if line.endswith(b"x" * 90) and line[:8].isdigit() and len(line) == 99]


def test_no_line_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_LOG_BYTES", "300000")
    with run_store(tmp_path) as store:
        run = store.create("job", {}, [sys.executable, "-c", WRITES, str(LINES)])
        launch.start(run)
        tail, seen = LogTail(run.log), []
        while run.alive:
            seen += tail.read()
        assert launch.wait(run, 120) == "done"
        older = run.path / "output.log.1"
        assert older.exists() and "qwen3vl[log]: what came before is in output.log.1" in run.log.read_text(errors="replace")
        # the two files together hold the end of the output, without a gap but for the line that was cut in two
        rest = numbers(older) + numbers(run.log)
        assert rest[-1] == LINES - 1 and rest == sorted(rest)
        assert all(b - a <= 2 for a, b in itertools.pairwise(rest))
        assert len(seen) > 100 and run_text.table([run])


@pytest.mark.parametrize("cut", ["collapsed", "copied"])
def test_the_older_part_and_the_rest_are_the_whole(tmp_path, monkeypatch, cut):
    if cut == "copied":
        monkeypatch.setattr(log_rotation, "_without_beginning", lambda descriptor, size: False)
    text = b"".join(b"%07d\n" % number for number in range(100_000))
    with open(tmp_path / "output.log", "ab", buffering=0) as log:
        log.write(text)
        assert not log_rotation.rotate(tmp_path, log.fileno(), len(text))
        assert log_rotation.rotate(tmp_path, log.fileno(), 1 << 16)
        log.write(b"next\n")
    assert (tmp_path / "output.log.1").read_bytes() + (tmp_path / "output.log").read_bytes() == text + b"next\n"
    assert (tmp_path / "output.log").stat().st_size <= 4096 + 5


def test_a_limit_that_is_none_is_refused(monkeypatch):
    for text in ("1k", "0", "-1", "1e9"):
        monkeypatch.setenv("QWEN3VL_LOG_BYTES", text)
        with pytest.raises(RequestError, match="must be bytes from 65536 on"):
            log_rotation.largest()
