"""The whole loop of Qwen3-VL-30B-A3B at full size with random weights: each step a real command, its time, and its memory against the plan.

    python benchmarks/a3b.py --dir /data/a3b                        # one GPU: weights cp convert plan lora export compare
    python benchmarks/a3b.py whole lora --gpus 2 --dir /data/a3b    # two GPUs, from the checkpoint that is there
    python benchmarks/a3b.py --tiny                                 # the same commands on a CPU, with the demo's shapes and 8 experts

| step | what it does | needs |
| --- | --- | --- |
| `weights` | makes the Hugging Face folder, 62 GB of random bf16, shard by shard | |
| `cp` | copies it and removes the copy: what `convert` is compared with | weights |
| `convert` | `qwen3vl convert`, with `--verify` unless `--no-verify`; removes the Hugging Face folder then, unless `--keep` | weights |
| `back` | converts back, compares each byte with the weights as they were made, removes the result | convert |
| `plan` | `qwen3vl plan` of the finetunes | |
| `lora` | `qwen3vl finetune --lora-rank 16` to its end; `--options` adds options | convert |
| `whole` | a finetune of all weights, its optimizer on the host, or the plan's words where it does not fit | convert |
| `export` | `qwen3vl convert` of the adapters, merged, to Hugging Face; removes the result, unless `--keep` | lora |
| `compare` | `qwen3vl compare` of the base checkpoint and the run's own, unconverted | lora |

A row is printed as soon as it is known. Steps use what earlier calls left in `--dir`, so they can be called one at a time. The largest
disk use is twice the model. Host memory is the largest resident set of a process, and of all processes of the command together without the
pages of files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import random_run
from memory_watch import MemoryWatch
from padded_rows import MICRO_BATCHES
from PIL import Image

from qwen3vl_core.checkpoint.hf import HFReader
from qwen3vl_core.formats import GIB
from qwen3vl_core.run_record import CHECKPOINTS
from qwen3vl_core.sizes import Architecture

ROWS = "rows.jsonl"
PHASES = ("convert", "verify")
"""Labels of a conversion's progress lines; what comes after is the check of the logits."""
COLUMNS = {
    "seconds": "seconds", "rate": "GB/s", "over_cp": "over cp", "process_gib": "largest process GiB", "together_gib": "processes GiB",
    "smi_gib": "GPU GiB by nvidia-smi", "peak_gib": "peak GiB", "plan_gib": "plan GiB", "step_ms": "step ms",
    "useful_tokens_per_s": "useful tokens/s", "mfu": "MFU", "note": "",
}  # fmt: skip


@dataclass
class Loop:
    """Folders, sizes and options of the steps."""

    folder: Path
    hf_folder: Path
    arguments: argparse.Namespace
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        o = self.arguments
        self.size = "tiny-experts" if o.tiny else "A3B"
        self.config = random_run.config(self.size, o.layers)
        self.architecture = Architecture.from_config(self.config)
        self.hf, self.base, self.shards = self.hf_folder / "hf", self.folder / "base", self.folder / "data" / "shards"
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / ROWS).read_text().splitlines():
                row = json.loads(line)
                self.rows[row.pop("step")] = row
        short = finetune.Work(tokens=(60, 80), side=64, samples=24)
        self.work = short if o.tiny else finetune.Work(samples=1200)

    @property
    def lora_runs(self) -> Path:
        return self.folder / f"lora-{self.arguments.gpus}"

    def words(self, kind: str) -> list[str]:
        """The options of a finetune, `lora` or `whole`."""
        o = self.arguments
        words = [
            "--load", str(self.base), "--train-data", str(self.shards), "--packing", "--seq-length", "256" if o.tiny else "8192",
            "--global-batch-size", str(MICRO_BATCHES * o.gpus), "--lr", "1e-5", "--max-pixels", str(random_run.PIXELS),
            "--num-workers", "0" if o.tiny else "4", "--precision", "fp32" if o.tiny else "bf16", "--nproc", str(o.gpus),
        ]  # fmt: skip
        if o.gpus > 1:
            words += ["--ep", str(o.gpus), "--distributed-optimizer"]
        if kind == "lora":
            words += ["--lora-rank", "16"]
        else:
            words += ["--recompute", "full", *([] if o.tiny else ["--distributed-optimizer", "--optimizer-offload", "1"])]
        return [*words, *o.options.split()]

    def add(self, step: str, row: dict[str, Any]) -> None:
        """Print a row, and keep it for later calls."""
        self.rows[step] = row
        cells = ("" if row.get(key) is None else f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for key in COLUMNS)
        print(f"| {step} | {' | '.join(cells)} |", flush=True)
        with (self.folder / ROWS).open("a") as file:
            file.write(json.dumps({"step": step, "layers": self.architecture.num_layers, "gpus": self.arguments.gpus} | row) + "\n")

    def need(self, path: Path, step: str) -> None:
        if not path.exists():
            raise Skipped(f"{path} is missing: run the step {step} first")

    def data(self) -> None:
        """The samples that the finetunes read; not measured."""
        if not self.shards.exists():
            work = self.work
            random_run.data(self.folder / "data", random_run.TINY.parent, work.samples, tokens=work.tokens, side=work.side)


class Skipped(Exception):
    """Why a step could not be made."""


def command(words: list[str], watch: MemoryWatch) -> tuple[float, str]:
    """Run a `qwen3vl` command. Returns (seconds, standard output). Raises Skipped with the end of what it said when it fails."""
    began, said = time.monotonic(), []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3vl_core.cli", *words], stdout=output, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"QWEN3VL_PROGRESS": "lines"},
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            label = line.split(" ")[0]
            if label in PHASES:
                # the last line of a label has no time left, but the time it took
                ended = "ETA" not in line
                watch.phase = PHASES[(PHASES.index(label) + 1)] if label == PHASES[0] and ended else "logits" if ended else label
        code = process.wait()
        output.seek(0)
        text = output.read()
    if code:
        raise Skipped(f"exit code {code}: {' '.join((''.join(said) or text).split())[-300:]}")
    return time.monotonic() - began, text


def bytes_of(loop: Loop) -> int:
    folder = loop.hf if loop.hf.exists() else loop.base
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rate(size: int, seconds: float) -> dict[str, Any]:
    return {"seconds": round(seconds, 1), "rate": round(size / 1e9 / seconds, 2)}


def weights(loop: Loop) -> None:
    shutil.rmtree(loop.hf, ignore_errors=True)
    began = time.monotonic()
    random_run.model(loop.hf, loop.size, loop.arguments.layers)
    seconds = time.monotonic() - began
    loop.add("weights", rate(bytes_of(loop), seconds) | {"note": f"{bytes_of(loop) / 1e9:.1f} GB"})


def cp(loop: Loop) -> None:
    loop.need(loop.hf, "weights")
    copy = loop.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=never", str(loop.hf), str(copy)], check=True)
    seconds = time.monotonic() - began
    shutil.rmtree(copy)
    loop.add("cp", rate(bytes_of(loop), seconds))


def convert(loop: Loop) -> None:
    loop.need(loop.hf, "weights")
    report, size, verify = loop.folder / "report.json", bytes_of(loop), not loop.arguments.no_verify
    shutil.rmtree(loop.base, ignore_errors=True)
    words = ["convert", str(loop.hf), str(loop.base), "--report", str(report), *(["--verify"] if verify else [])]
    with MemoryWatch() as watch:
        watch.phase = PHASES[0]
        seconds, _ = command(words, watch)
    made = json.loads(report.read_text())
    peaks = ", ".join(f"{phase} {peak / GIB:.2f}" for phase, peak in watch.process.items())
    note = f"{made['verified']} tensors bitwise equal; logits: {made['forward']}" if verify else "not verified"
    work = made["seconds"] if verify else seconds
    cp_seconds = loop.rows.get("cp", {}).get("seconds")
    over = {"over_cp": round(work / cp_seconds, 2)} if cp_seconds else {}
    loop.add(
        "convert", rate(size, work) | over | watch.figures() | {"note": f"{seconds:.1f} s in all; GiB until the end of {peaks}; {note}"}
    )
    if not loop.arguments.keep:
        shutil.rmtree(loop.hf)


def back(loop: Loop) -> None:
    loop.need(loop.base, "convert")
    target, size = loop.hf_folder / "back", bytes_of(loop)
    shutil.rmtree(target, ignore_errors=True)
    with MemoryWatch() as watch:
        seconds, _ = command(["convert", str(loop.base), str(target)], watch)
    unequal = differing(target)
    loop.add("back", rate(size, seconds) | watch.figures() | {"note": f"differs: {unequal}" if unequal else "every byte as it was made"})
    shutil.rmtree(target)


def differing(folder: Path) -> str:
    """The first tensor of a Hugging Face folder that is not as `random_run.RandomWeights` made it; empty: none."""
    made = random_run.RandomWeights()
    for name, entry in HFReader(folder).entries.items():
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            for start in range(0, entry.end - entry.start, random_run.BLOCK):
                expected = made.block(name, entry.shape, start, min(random_run.BLOCK, entry.end - entry.start - start))
                if file.read(len(expected)) != expected:
                    return name
    return ""


def plan(loop: Loop) -> None:
    loop.need(loop.base, "convert")
    loop.data()
    for kind in ("lora", "whole"):
        began = time.monotonic()
        text, verdict = planned(loop, kind)
        print(text, flush=True)
        loop.add(f"plan {kind}", {"seconds": round(time.monotonic() - began, 1), "plan_gib": plan_gib(loop, kind), "note": verdict})


def planned(loop: Loop, kind: str) -> tuple[str, str]:
    """(what `qwen3vl plan` prints of a finetune, its verdict: one line)."""
    pictures = str(pictures_of(loop) * loop.work.picture_tokens)
    words = ["plan", *loop.words(kind), "--vision-tokens", pictures, "--train-iters", str(loop.arguments.train_steps)]
    done = subprocess.run([sys.executable, "-m", "qwen3vl_core.cli", *words], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    lines = [line for line in text.splitlines() if line.startswith(("fits", "does not fit"))]
    said = "; ".join(lines) or " ".join(text.split())[-300:]
    return text, said if done.returncode == 0 else f"refused: {said}"


def pictures_of(loop: Loop) -> int:
    """Of the row with the most pictures: one packed of the shortest samples."""
    return random_run.options_of_words(loop.words("lora")).seq_length // loop.work.tokens[0]


def plan_gib(loop: Loop, kind: str) -> float:
    return finetune.planned_gib(loop.work, loop.words(kind), loop.architecture, list(loop.work.tokens))


def trained(loop: Loop, kind: str, runs: Path, *, to_the_end: bool) -> None:
    """A finetune and its row."""
    loop.need(loop.base, "convert")
    loop.data()
    words, o = loop.words(kind), loop.arguments
    with MemoryWatch() as watch:
        run = random_run.finetune(runs, words, o.train_steps, deadline=o.time_limit, to_the_end=to_the_end)
    name = f"{kind}, {o.gpus} GPU{'s' if o.gpus > 1 else ''}"
    later = run.rows[len(run.rows) // 2 :]
    if not later:
        loop.add(name, watch.figures() | {"note": f"failed: {' '.join(run.problem.split())[-300:]}"})
        return
    step = statistics.median(row["step_seconds"] for row in later)
    length, rows = int(words[words.index("--seq-length") + 1]), MICRO_BATCHES * o.gpus
    tokens = statistics.median(row["packing_efficiency"] for row in later) * rows * length
    peak, expected = max(row.get("memory_gib", 0.0) for row in run.rows), plan_gib(loop, kind)
    spent = sum(row["step_seconds"] for row in run.rows)
    note = f"{len(run.rows)} steps in {spent:.1f} s, loss {run.losses[0]:.3f} to {run.losses[-1]:.3f}"
    note += f", peak {peak / expected - 1:+.1%} of the plan" if peak else ""
    note += f"; failed: {' '.join(run.problem.split())[-200:]}" if run.problem else ""
    row = {
        "seconds": round(run.seconds, 1), "peak_gib": round(peak, 1), "plan_gib": expected, "step_ms": round(1000 * step, 1),
        "useful_tokens_per_s": round(tokens / step), "losses": run.losses, "note": note,
        "mfu": round(statistics.median(row["mfu"] for row in later), 3) if "mfu" in later[-1] else None,
    }  # fmt: skip
    loop.add(name, watch.figures() | row)


def lora(loop: Loop) -> None:
    trained(loop, "lora", loop.lora_runs, to_the_end=True)


def whole(loop: Loop) -> None:
    loop.need(loop.base, "convert")
    text, verdict = planned(loop, "whole")
    if not verdict.startswith("refused") or loop.arguments.anyway:
        trained(loop, "whole", loop.folder / "whole", to_the_end=False)
    else:
        print(text, flush=True)
        loop.add("whole", {"plan_gib": plan_gib(loop, "whole"), "note": verdict})


def checkpoints(loop: Loop) -> Path:
    found = sorted(loop.lora_runs.glob(f"*/{CHECKPOINTS}"))
    if not found:
        raise Skipped(f"{loop.lora_runs} holds no run: run the step lora first")
    return found[-1]


def export(loop: Loop) -> None:
    target = loop.hf_folder / "tuned"
    shutil.rmtree(target, ignore_errors=True)
    with MemoryWatch() as watch:
        seconds, text = command(["convert", str(checkpoints(loop)), str(target)], watch)
    adapters = next((line for line in text.splitlines() if line.startswith("adapters")), "")
    loop.add("export", rate(bytes_of(loop), seconds) | watch.figures() | {"note": " ".join(adapters.split())})
    if not loop.arguments.keep:
        shutil.rmtree(target)


def compare(loop: Loop) -> None:
    pictures = loop.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    noise = np.random.Generator(np.random.SFC64(1))
    for number in range(2):
        small = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 320), Image.Resampling.BILINEAR).save(pictures / f"{number}.jpg")
    with MemoryWatch() as watch:
        seconds, text = command(
            ["compare", "--base", str(loop.base), "--tuned", str(checkpoints(loop)), "--images", str(pictures), "--max-new-tokens", "16",
             "--json", "-"], watch,
        )  # fmt: skip
    samples = json.loads(text)["captions"]
    loop.add("compare", {"seconds": round(seconds, 1)} | watch.figures() | {"note": f"{len(samples)} pictures, two captions of each"})


STEPS: dict[str, Callable[[Loop], None]] = {
    "weights": weights, "cp": cp, "convert": convert, "back": back, "plan": plan, "lora": lora, "whole": whole, "export": export,
    "compare": compare,
}  # fmt: skip
DEFAULT = ("weights", "cp", "convert", "plan", "lora", "export", "compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; default {' '.join(DEFAULT)}")
    parser.add_argument("--dir", type=Path, help="folder that stays; default: a temporary one, removed at the end")
    parser.add_argument("--hf-dir", type=Path, help="folder of the Hugging Face copies, as /dev/shm where the disk is small; default --dir")
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--tiny", action="store_true", help="the demo's shapes with 8 experts, on a CPU too")
    parser.add_argument("--gpus", type=int, default=1, help="of the finetunes, experts split over them")
    parser.add_argument("--train-steps", type=int, default=20)
    parser.add_argument("--options", default="", help="more options of `qwen3vl finetune`, in one string")
    parser.add_argument("--time-limit", type=float, default=400, help="seconds of each finetune")
    parser.add_argument("--no-verify", action="store_true", help="convert without --verify")
    parser.add_argument("--keep", action="store_true", help="keep the Hugging Face folders")
    parser.add_argument("--anyway", action="store_true", help="make the whole finetune also where the plan refuses it")
    options = parser.parse_args()
    for name in options.steps:
        if name not in STEPS:
            parser.error(f"{name}: there are {', '.join(STEPS)}")
    folder = options.dir or Path(tempfile.mkdtemp(prefix="qwen3vl-a3b-"))
    hf_folder = options.hf_dir or folder
    try:
        for place in (folder, hf_folder):
            place.mkdir(parents=True, exist_ok=True)
        loop = Loop(folder, hf_folder, options)
        print(f"| step | {' | '.join(COLUMNS.values())} |\n|{' --- |' * (len(COLUMNS) + 1)}", flush=True)
        for name in options.steps or DEFAULT:
            try:
                STEPS[name](loop)
            except Exception as error:
                # device time is short: the other steps go on
                loop.add(name, {"note": f"not made: {'' if isinstance(error, Skipped) else type(error).__name__ + ': '}{error}"})
    finally:
        if not options.dir:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
