"""Whole runs in processes that are forked with everything imported, and killed at a chosen moment."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from qwen3vl_core.demo.scenes import example
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.options import FinetuneOptions, to_mapping
from tests.ranks import _context

WRITING = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
DEADLINE_SECONDS = 120


def scenes(folder: Path, count: int = 24) -> Path:
    """Drawn scenes with captions, prepared; the answer of number 5 is too long for a short --seq-length."""
    from qwen3vl_core.cli import main

    records = []
    for number in range(count):
        _, picture, long, short = example(900_100_000 + number)
        picture.save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": long if number == 5 else short}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(records))
    assert main(["prepare", str(folder / "captions.json"), "--to", str(folder / "data"), "--split", "5,1,0"]) == 0
    return folder / "data"


def plan(run_dir: Path, data: Path, **changes) -> FinetuneOptions:
    """`plan.json` of a run of six steps, and its options."""
    values = dict(
        load=str(BASE), train_data=str(data), precision="fp32", micro_batch_size=2, global_batch_size=4, seq_length=256,
        train_iters=6, lr=1e-4, min_lr=1e-5, lr_warmup_iters=1,
    )  # fmt: skip
    options = FinetuneOptions(**(values | changes))
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "plan.json").write_text(json.dumps({"kind": "finetune", "options": to_mapping(options)}))
    return options


def rows(run_dir: Path, kind: str = "train") -> list[dict]:
    return [r for r in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


def events(run_dir: Path, name: str) -> list[dict]:
    return [r for r in rows(run_dir, "event") if r["event"] == name]


def losses(run_dir: Path) -> list[float]:
    return [r["loss"] for r in rows(run_dir)]


def _train(run_dir: Path, kill_at: int | None, results) -> None:
    """`python -m qwen3vl_core.training RUN_DIR`. kill_at: of the times that anything is opened or moved in the run's folder."""
    import torch

    from qwen3vl_core.training.__main__ import main

    torch.set_num_threads(1)
    process, seen = os.getpid(), 0
    # a writer that lives on must not hold the pipes of the tests
    for stream in (1, 2):
        os.dup2(os.open(run_dir / "output.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), stream)

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in WRITING or not str(arguments[0]).startswith(str(run_dir)):
            return
        seen += 1
        if kill_at is not None and seen == kill_at:
            # of the run itself, also when this is one of the processes that write its checkpoint
            os.kill(process, signal.SIGKILL)

    sys.addaudithook(watch)
    code = main([str(run_dir)])
    results.put((code, seen))
    results.close()
    results.join_thread()
    os._exit(code)


def train(run_dir: Path, kill_at: int | None = None) -> tuple[int, int]:
    """Train the run that is planned there: (exit code, times that anything was opened or moved in its folder).

    (-9, kill_at) for a run that was killed at that moment.
    """
    results = _context.Queue()
    process = _context.Process(target=_train, args=(run_dir, kill_at, results))
    process.start()
    process.join(DEADLINE_SECONDS)
    if process.exitcode == -signal.SIGKILL:
        return process.exitcode, kill_at
    assert process.exitcode is not None, "the run hangs"
    return results.get(timeout=10)
