"""Damages every file that is read from outside, by seed, and prints how its reader ended.

    python -m tests.readers.fuzz                      # 10,000 inputs a reader
    python -m tests.readers.fuzz --count 500 --readers common.pt config.json
    python -m tests.readers.fuzz --readers common.pt --only 4711     # that input again, with its traceback

A reader ends with what it read or with one line, within 5 s of CPU time and 1 GiB of memory above what the process had before. Each reader
has a process of its own. The files of prepare (tar, parquet, Arrow, JSON, CSV, pictures, videos) are damaged by
`tests.data.mutations`, which this command calls, too.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 5.0
BYTES = 1 << 30
HANGS = 300.0
"""Seconds by the clock after which an input is given up, with the stacks."""


class TooSlow(BaseException):
    """No reader may catch it."""


@dataclass
class Tally:
    """How the inputs of one reader ended."""

    endings: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """(number, traceback) of those that ended otherwise."""


@contextlib.contextmanager
def limits(seconds: float = SECONDS, memory: int = BYTES) -> Iterator[None]:
    """CPU seconds and bytes of the block, beyond what the process has now. Raises TooSlow."""

    def late(number: int, frame: object) -> None:
        raise TooSlow(f"over {seconds:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, handler)


def ending(read: Callable[[], object]) -> str:
    """`read`, or `refused` in one line. Raises what should not come through."""
    from qwen3vl_core.errors import RequestError, WorkError

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read()
    except (RequestError, WorkError) as error:
        line = str(error)
        if "\n" in line or not 10 < len(line) < 4000 or "\x1b" in line:
            raise AssertionError(f"not one clear line: {line[:300]!r}") from error
        line.encode()
        return "refused" if isinstance(error, RequestError) else "failed"
    return "read"


class Fuzzer:
    """The inputs of one reader: `outcome(number)` is the same for the same number."""

    def __init__(self, name: str, folder: Path, seed: int = 0) -> None:
        from tests.readers.outside_files import READERS

        self.name, self.seed, self.reader = name, seed, READERS[name]
        self.whole, self.case = folder / "whole", folder / "case"
        self.whole.mkdir()
        self.reader.make(self.whole)
        self.files = list(self.reader.files)
        self.originals = {file: (self.whole / file).read_bytes() for file in self.files}
        shutil.copytree(self.whole, self.case)
        if ending(lambda: self.reader.read(self.case)) == "failed":
            raise AssertionError("the sound files are not read")

    def outcome(self, number: int) -> str:
        """How the reader ends. Raises what should not come through."""
        chance = random.Random(f"{self.seed} {self.name} {number}")
        file = self.files[number % len(self.files)]
        data = self.reader.files[file](self.originals[file], chance)
        if number % 1000 == 0:  # what a reader has left behind
            shutil.rmtree(self.case)
            shutil.copytree(self.whole, self.case)
        (self.case / file).write_bytes(data)
        try:
            with limits():
                return ending(lambda: self.reader.read(self.case))
        finally:
            for other in self.files:
                (self.case / other).parent.mkdir(parents=True, exist_ok=True)
                (self.case / other).write_bytes(self.originals[other])


def tried(name: str, numbers: range | list[int], folder: Path, seed: int = 0) -> Tally:
    """The tally of these inputs."""
    fuzzer, tally = Fuzzer(name, folder, seed), Tally()
    for number in numbers:
        faulthandler.dump_traceback_later(HANGS, exit=True)
        began = time.process_time()
        try:
            tally.endings[fuzzer.outcome(number)] += 1
        except (Exception, TooSlow):
            tally.wrong.append((number, traceback.format_exc()))
        tally.slowest = max(tally.slowest, time.process_time() - began)
        if number % 256 == 255:
            gc.collect()
    faulthandler.cancel_dump_traceback_later()
    return tally


def _one(name: str, numbers: range | list[int], seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tally = tried(name, numbers, Path(folder), seed)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    kinds = Counter(text.strip().splitlines()[-1][:110] for _, text in tally.wrong)
    for line, count in kinds.most_common():
        number, text = next(item for item in tally.wrong if item[1].strip().splitlines()[-1][:110] == line)
        print(f"--- {name}: {count} times, first number {number}\n{text}", file=sys.stderr)
    cells = [tally.endings["read"], tally.endings["refused"], tally.endings["failed"], len(tally.wrong)]
    print(
        f"{name:26s} {sum(cells):8,d} " + " ".join(f"{cell:8,d}" for cell in cells) + f" {tally.slowest:8.2f} {most / 2**20:8.0f}",
        flush=True,
    )
    return min(len(tally.wrong), 1)


def main() -> int:
    """Returns 1 when an input ended otherwise."""
    from tests.readers.outside_files import READERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", default=None, choices=[*READERS, "prepare"])
    parser.add_argument("--only", type=int)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["QWEN3VL_PROGRESS"] = "none"
    if given.here:
        return _one(given.readers[0], [given.only] if given.only is not None else range(given.count), given.seed)
    print(
        f"{'reader':26s} {'inputs':>8s} {'read':>8s} {'refused':>8s} {'failed':>8s} {'OTHER':>8s} {'slowest':>8s} {'MiB':>8s}", flush=True
    )
    codes = []
    for name in given.readers or [*READERS, "prepare"]:
        words = ["--count", str(given.count), "--seed", str(given.seed), *([] if given.only is None else ["--only", str(given.only)])]
        if name == "prepare":
            command = [sys.executable, "-m", "tests.data.mutations", *words]
        else:
            command = [sys.executable, "-m", "tests.readers.fuzz", "--here", "--readers", name, *words]
        codes.append(subprocess.run(command, check=False).returncode)
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
