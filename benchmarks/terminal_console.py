"""The console's speed: first frame, curve, a long log, from a metric's write to its paint, and the cost of following a busy run.

    python benchmarks/terminal_console.py [--json] [--rounds 5] [--follow-seconds 30]

The first frame is measured beside `python -c "import textual"`, its floor, in turn. Times on a shared machine say little;
the CPU times and the ratio do.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qwen3vl_core import run_record

if TYPE_CHECKING:
    from console.runs.store import Run

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "first_frame_s": 0.5, "curve_1e6x4_cpu_ms": 16.0, "log_300mb_open_s": 0.3, "metric_to_paint_s": 0.5, "follow_core_share": 0.10,
    "follow_grown_mib": 1.0,
}  # fmt: skip
POINTS, RUNS = 1_000_000, 4
SCREEN = (120, 36)
LOG_MB = 300
STORED = 3000
LINES_A_SECOND, ROWS_A_SECOND = 200, 50
WARM_SECONDS = 120.0
"""Until the log's pane holds as many lines as it keeps (5000) and Rich's cache as many widths of texts (4096); what grows after
that would grow for ever."""
# what a terminal answers to the questions that programs ask at their start: device attributes, cell size, background
ANSWERS = ((b"\x1b[c", b"\x1b[?62;4c"), (b"\x1b[16t", b"\x1b[6;16;8t"), (b"\x1b[14t", b"\x1b[4;384;640t"), (b"\x1b[6n", b"\x1b[1;1R"))


class Terminal:
    """A console process on a pseudo terminal of its own, which answers terminal queries."""

    def __init__(self, words: list[str], size: tuple[int, int] = SCREEN, **environment: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT), **environment}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # else the project is compiled at each start, as no user's is after the first
        self.started = time.perf_counter()
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def read(self, seconds: float) -> bytes:
        """Output that comes within `seconds`; empty where none does."""
        if not select.select([self.master], [], [], max(seconds, 0))[0]:
            return b""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return b""
        for question, answer in ANSWERS:
            for _ in range(data.count(question)):
                os.write(self.master, answer)
        self.seen = (self.seen + data)[-(1 << 20) :]
        return data

    def until(self, text: bytes, seconds: float = 60.0) -> float:
        """Seconds since the start when this text has come."""
        end = time.perf_counter() + seconds
        while text not in self.seen:
            if time.perf_counter() > end or (self.process.poll() is not None and not self.read(0)):
                raise SystemExit(f"the console did not show {text!r}; it wrote {self.seen[-2000:]!r}")
            self.read(0.5)
        return time.perf_counter() - self.started

    def cpu(self) -> float:
        """CPU seconds of the process until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident MiB of the process now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


def console(store: Path) -> list[str]:
    return [sys.executable, "-m", "console", "console", "--runs", str(store)]


def make_run(store: Path, steps: int = 50, live: bool = False) -> Run:
    """A run of a store as a finetune leaves it; live: under a real supervisor, with a process that only waits."""
    from console.runs import launch
    from console.runs.store import RunStore
    from qwen3vl_core.options import FinetuneOptions

    command = ["sleep", "3600"] if live else ["true"]
    run = RunStore(store).create("finetune", FinetuneOptions(load="base", train_data="data", train_iters=1_000_000), command)
    if live:
        launch.start(run)
    run.metrics.write_text("".join(row(step) for step in range(1, steps + 1)))
    run.log.write_text("".join(f"step {step}\n" for step in range(1, steps + 1)))
    return run


def end(run: Run) -> None:
    """Stop a live run and wait for its end."""
    from console.runs import launch

    launch.stop(run)
    launch.wait(run, 60)


def row(step: int, loss: float | None = None) -> str:
    value = 1 + 3 / (1 + step / 50) if loss is None else loss
    return json.dumps({
        "v": 1, "step": step, "time": round(time.time(), 3), "kind": "train", "loss": value, "lr": 1e-5, "grad_norm": 0.9, "tokens": 33000,
        "samples": 64, "step_seconds": 0.02, "tokens_per_second": 41200.0, "skipped": 0, "data_seconds": 0.001, "memory_gib": 61.3,
    }) + "\n"  # fmt: skip


def first_frame(folder: Path, rounds: int) -> dict[str, float]:
    """First frame and its floors, in turn: medians of seconds and of CPU seconds; the first of each warms the disk and does not count."""
    store = folder / "first"
    make_run(store)
    samples: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for name, code in (("import_textual", "import textual"), ("import_textual_app", "import textual.app, textual.widgets")):
            before, begin = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            samples.setdefault(f"{name}_s", []).append(time.perf_counter() - begin)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            samples.setdefault(f"{name}_cpu_s", []).append(cpu)
        terminal = Terminal(console(store), (80, 24))
        try:
            samples.setdefault("first_frame_s", []).append(terminal.until(b"4 Compare"))
            samples.setdefault("first_frame_cpu_s", []).append(terminal.cpu())
        finally:
            terminal.close()
    return {name: statistics.median(values[1:]) for name, values in samples.items()}


def curve(rounds: int) -> float:
    """CPU milliseconds to set the data of four runs of a million points and paint them, smoothed too: the median frame."""
    from textual.app import App, ComposeResult

    from console.curves.lines import CurveLine
    from console.widgets.curve import Curve

    random = np.random.default_rng(0)
    lines = []
    for slot in range(RUNS):
        y = 1 + 3 * np.exp(-np.arange(POINTS) / 2e5) + random.normal(0, 0.1, POINTS)
        lines.append(CurveLine(f"run {slot}", np.arange(1, POINTS + 1), y, True, slot))

    names = ("axis", "text", "cross", "mark", "problem", *(f"line-{i}" for i in range(6)))

    class Bench(App[None]):
        CSS = "Curve { width: 100%; height: 100%; } " + " ".join(f"Curve > .curve--{name} {{ color: ansi_red; }}" for name in names)

        def compose(self) -> ComposeResult:
            yield Curve()

    times = []

    async def play() -> None:
        app = Bench()
        async with app.run_test(size=SCREEN) as pilot:
            widget = app.query_one(Curve)
            for _ in range(10 * rounds):
                begin = time.process_time()
                widget.show(lines, "loss", "")
                for y in range(widget.size.height):
                    widget.render_line(y)
                times.append(time.process_time() - begin)
                await pilot.pause()

    asyncio.run(play())
    return 1000 * statistics.median(times[2:])


def many_runs(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Of a store of 3000 runs: (seconds until the last is read, CPU ms of a look after that, CPU ms to filter, sort and paint)."""
    from textual.app import App, ComposeResult

    from console.readers.store_watcher import StoreWatcher
    from console.runs.filters import select_runs
    from console.widgets.run_list import RunList

    store = folder / "many"
    first = make_run(store, 20)
    files = {name: (first.path / name).read_text() for name in (run_record.PLAN, run_record.METRICS_FILE, run_record.LOG)}
    ended = json.dumps({"status": "done", "exit_code": 0, "started": 1.0, "ended": 2.0})
    for number in range(2, STORED + 1):
        path = store / f"{number:04d}-run-{number}"
        path.mkdir()
        for name, text in (*files.items(), (run_record.STATE, ended)):
            (path / name).write_text(text)
    watcher = StoreWatcher(store)
    begin = time.perf_counter()
    while (snapshot := watcher.look()).unread:
        pass
    read = time.perf_counter() - begin
    looks, paints = [], []
    for _ in range(4 * rounds):
        begin = time.process_time()
        snapshot = watcher.look()
        looks.append(time.process_time() - begin)

    class Bench(App[None]):
        CSS = "RunList { width: 100%; height: 100%; } " + " ".join(
            f"RunList > .runs--{name} {{ color: ansi_red; }}" for name in ("head", "cursor", "muted", "mark", "curve")
        )

        def compose(self) -> ComposeResult:
            yield RunList()

        def colour(self, name: str) -> str:
            return "#57a5e2"

    async def play() -> None:
        app = Bench()
        async with app.run_test(size=(160, 48)) as pilot:
            table = app.query_one(RunList)
            for number in range(4 * rounds):
                begin = time.process_time()
                table.show(select_runs(snapshot.rows, "status:done", "loss", bool(number % 2)), (), "loss", False)
                table.action_move(37)
                for y in range(table.size.height):
                    table.render_line(y)
                paints.append(time.process_time() - begin)
                await pilot.pause()

    asyncio.run(play())
    return read, 1000 * statistics.median(looks), 1000 * statistics.median(paints)


def long_log(folder: Path, rounds: int) -> tuple[float, float, float]:
    """(open: read and first paint of the tail, index of all lines, a search through all): seconds, medians."""
    from console.readers.monitor import LOG_LINES
    from console.runs.log_file import WholeLog
    from console.runs.tail import LogTail

    path = folder / "long.log"
    line = "10:41:02 step 06310/10000  loss 1.2140  lr 9.31e-06  grad 0.91  812 ms  41.2k tok/s  MFU 43.1%  ETA 0:41:10  padded to 150\n"
    with open(path, "w") as file:
        block = "".join(f"{i:07d} {line}" for i in range(8000))
        while file.tell() < LOG_MB << 20:
            file.write(block)
        file.write("needle at the end\n")
    opens, indexes, finds = [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        LogTail(path, lines=LOG_LINES).read()
        opens.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        log = WholeLog(path)
        indexes.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        assert log.find("NEEDLE")[-1] == len(log) - 1
        finds.append(time.perf_counter() - begin)
    path.unlink()
    return statistics.median(opens), statistics.median(indexes), statistics.median(finds)


def paint_delay(folder: Path, rounds: int) -> float:
    """Seconds from the write of a metric's row to the bytes on the terminal that show its value; the median."""
    store = folder / "paint"
    run = make_run(store)
    terminal = Terminal(console(store))
    delays = []
    try:
        terminal.until(b"4 Compare")
        os.write(terminal.master, b"3")
        terminal.until(b"s/step")
        for index in range(4 * rounds):
            value = 7.0 + index / 1000
            settle = time.perf_counter() + 0.3 + 0.37 * (index % 3)
            while (left := settle - time.perf_counter()) > 0:
                terminal.read(left)
            terminal.seen = b""
            with open(run.metrics, "a") as file:
                file.write(row(51 + index, value))
            begin = time.perf_counter()
            terminal.until(f"{value:.4g}".encode())
            delays.append(time.perf_counter() - begin)
    finally:
        terminal.close()
    return statistics.median(delays)


def follow(folder: Path, seconds: float) -> tuple[float, float]:
    """(share of one core, MiB grown in all) of the monitor on a live run that writes 200 lines and 50 rows a second.

    The history of the first 65,536 steps has its memory from the beginning (`console.runs.series.RESERVED`); ten minutes are 36,000.
    A heap that settles may take a mebibyte of about 70; the history alone, were it not reserved, would take 2.7.
    """
    run = make_run(folder / "follow", live=True)
    terminal = Terminal(console(folder / "follow"))
    step, lines = 50, 0
    try:
        terminal.until(b"4 Compare")
        os.write(terminal.master, b"3")
        terminal.until(b"s/step")
        begin = time.perf_counter()
        start = None
        with open(run.metrics, "a", buffering=1 << 16) as metrics, open(run.log, "a", buffering=1 << 16) as log:
            while (now := time.perf_counter() - begin) < WARM_SECONDS + seconds:
                while step - 50 < now * ROWS_A_SECOND:
                    step += 1
                    metrics.write(row(step))
                while lines < now * LINES_A_SECOND:
                    lines += 1
                    log.write(f"10:41:02 step {lines:07d}  loss 1.2140  lr 9.31e-06  grad 0.91  812 ms  41.2k tok/s\n")
                metrics.flush()
                log.flush()
                if start is None and now > WARM_SECONDS:
                    start = (time.perf_counter(), terminal.cpu(), terminal.memory())
                terminal.read(0.1)
        assert start is not None  # it lasts longer than the warm-up
        span = time.perf_counter() - start[0]
        return (terminal.cpu() - start[1]) / span, terminal.memory() - start[2]
    finally:
        terminal.close()
        end(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--follow-seconds", type=float, default=30.0, help="600 is the ten minutes of the promise")
    args = parser.parse_args()
    # a benchmark that is ended by `timeout` ends its console too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="qwen3vl-console-"))
    os.environ["QWEN3VL_SETTINGS"] = str(folder / "none.yaml")
    try:
        results = first_frame(folder, args.rounds)
        results["curve_1e6x4_cpu_ms"] = curve(args.rounds)
        results["log_300mb_open_s"], results["log_300mb_index_s"], results["log_300mb_find_s"] = long_log(folder, args.rounds)
        names = ("runs_3000_read_s", "runs_3000_look_cpu_ms", "runs_3000_paint_cpu_ms")
        results |= dict(zip(names, many_runs(folder, args.rounds), strict=True))
        results["metric_to_paint_s"] = paint_delay(folder, args.rounds)
        results["follow_core_share"], results["follow_grown_mib"] = follow(folder, args.follow_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = {name: round(value, 4) for name, value in results.items()} | {"follow_seconds": args.follow_seconds}
    if args.json:
        print(json.dumps(results))
        return 0
    width = max(map(len, results))
    for name, value in results.items():
        limit = LIMITS.get(name)
        print(f"{name:<{width}}  {value:>8g}" + (f"  under {limit:g}: {'yes' if value < limit else 'NO'}" if limit else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
