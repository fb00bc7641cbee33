"""Real finetunes compared with the alternatives on the same samples in one run: speed, memory, loss.

    python benchmarks/finetune.py                       # llava: Qwen3-VL-2B, pictures with captions
    python benchmarks/finetune.py llava lora rows text --out results.jsonl
    python benchmarks/finetune.py layouts expert_layouts      # two GPUs
    python benchmarks/finetune.py llava --ours packed:8192 "packed:8192 --precision fp8" --peers liger:20,40 --steps 30

| work | model | samples | peers |
| --- | --- | --- | --- |
| `llava` | 2B | one picture of 320 x 320 pixels and a text, 180 to 230 tokens in all | transformers, with Liger, with autocast |
| `lora` | 4B, LoRA of rank 16 | the same | transformers with PEFT and Liger |
| `rows` | 8B shapes, 16 layers | a picture of 1024 tokens and a text, 8,192 tokens in all | transformers with Liger |
| `text` | 2B, language tower alone | text of 4,096 tokens | stock Megatron-Core |
| `experts` | A3B, 8 layers with all 128 experts | as `llava` | transformers with its grouped matrix products, with Liger |
| `expert_layouts` | the same, experts on two GPUs | as `llava` | this project on one GPU |
| `layouts` | 2B on several GPUs | as `llava` | this project on one GPU |

This project is the command `qwen3vl finetune` with fp32 master weights on random weights, reading shards and decoding pictures while it
trains, four micro batches a step; the later half of its steps is measured, the kernels are timed in two more. A configuration is
`packed:L`, rows of L tokens packed, or `rows:N`, N samples a micro batch, and further options of the command. A peer is `kind:N`, or
`kind:N,M,...` to try several micro batches, and settings: `hugging_face.py` and `stock_megatron.py` say of what. Their batches are
decoded before the clock starts. Each runs in a process of its own. Only the samples' own tokens count, padding for nobody.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import random_run
import torch
from padded_rows import MICRO_BATCHES, WARM, batches, timed

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.memory import estimate, fullest
from qwen3vl_core.sizes import Architecture

PROFILED = 2
"""Steps whose kernels are timed."""


@dataclass(frozen=True)
class Work:
    """Samples and a model to train on them."""

    size: str = "2B"
    layers: int = 0
    """Language layers to keep; 0: all."""
    tokens: tuple[int, int] = (180, 230)
    """Of a sample, from and to."""
    side: int = 320
    """Pixels of the picture's side; 0: no picture."""
    samples: int = 3000
    length: int = 4096
    """`--seq-length` of rows that are not packed."""
    options: str = ""
    """Of `qwen3vl finetune`, for every configuration."""
    ours: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    gpus: int = 1

    @property
    def picture_tokens(self) -> int:
        return (self.side // 32) ** 2


WORKS = {
    "llava": Work(
        ours=("packed:8192", "packed:4096", "packed:16384", "rows:20", "packed:8192 --precision fp8"),
        peers=("liger:20,40,80", "transformers:20,40", "autocast:20,40"),
    ),
    "lora": Work("4B", options="--lora-rank 16", ours=("packed:8192",), peers=("peft:20,40,80",)),
    "rows": Work(
        "8B", 16, (8100, 8150), 1024, 160, 8192, ours=("rows:1", "rows:1 --precision fp8"), peers=("liger:1,2",),
    ),
    "text": Work(
        tokens=(4080, 4090), side=0, samples=360, options="--freeze vision,projector", ours=("rows:2",),
        peers=("megatron:2", "megatron:2 cuda_graph_impl=local", "megatron:2 cuda_graph_impl=local cuda_graph_scope=full_iteration",
               "megatron:2 cross_entropy_fusion_impl=te", "megatron:2 overlap=on"),
    ),
    "experts": Work("A3B", 8, ours=("packed:8192",), peers=("transformers:20,40", "liger:20,40")),
    "expert_layouts": Work(
        "A3B", 8, gpus=2, ours=("packed:8192 --nproc 1", "packed:8192 --ep 2 --distributed-optimizer",
                               "packed:8192 --ep 2 --distributed-optimizer --cuda-graph off"),
    ),
    "layouts": Work(
        samples=5000, gpus=2,
        ours=("packed:8192 --nproc 1", "packed:8192 --distributed-optimizer", "packed:8192 --tp 2 --sequence-parallel",
              "packed:8192 --cp 2"),
    ),
}  # fmt: skip
COLUMNS = {
    "useful_tokens_per_s": "useful tokens/s", "step_ms": "step ms", "mfu": "MFU", "kernels": "kernels' share",
    "waits_for_data": "waits for data",
    "peak_gib": "peak GiB", "plan_gib": "plan GiB", "loss": "loss",
}  # fmt: skip


def words_of(work: Work, what: str, base: Path, shards: Path) -> list[str]:
    """The command line of one of our configurations. A step has four micro batches for each GPU of the work."""
    batch, *more = what.split()
    kind, size = batch.split(":")
    rows = 1 if kind == "packed" else int(size)
    length = size if kind == "packed" else str(work.length)
    layout = [] if "--nproc" in more else ["--nproc", str(work.gpus)]
    return [
        "--load", str(base), "--train-data", str(shards), "--micro-batch-size", str(rows), "--global-batch-size",
        str(rows * MICRO_BATCHES * work.gpus), "--seq-length", length, "--lr", "1e-5", "--max-pixels", str(random_run.PIXELS),
        "--num-workers", "4", *(["--packing"] if kind == "packed" else []), *layout, *work.options.split(), *more,
    ]  # fmt: skip


def planned_gib(work: Work, words: list[str], a: Architecture, lengths: list[int]) -> float:
    """GiB of tensors on the fullest GPU as `qwen3vl plan` estimates them, for the row with the most pictures: one packed of the shortest
    samples. lengths: tokens of samples."""
    options = random_run.options_of_words([*words, "--train-iters", "1000"])
    if not options.packing:
        # rows that are not packed are as long as their samples
        options = dataclasses.replace(options, seq_length=min(options.seq_length, round(statistics.mean(lengths))))
    samples = options.seq_length // min(lengths) if options.packing else 1
    stages = estimate(options, a, options.nproc or 1, min(samples * work.picture_tokens, options.seq_length))
    return round(fullest(stages).allocated / GIB, 1)


def ours(folder: Path, base: Path, shards: Path, work: Work, what: str, steps: int, lengths: list[int], limit: float) -> dict[str, Any]:
    """`qwen3vl finetune`: figures of its record, of the later half of its steps. lengths: tokens of samples; limit: seconds."""
    words = words_of(work, what, base, shards)
    run = random_run.finetune(folder / "runs", words, steps, deadline=limit, profiled=PROFILED)
    later = run.rows[len(run.rows) // 2 :]
    if run.problem and len(later) < max(steps // 4, 1):
        return {"fault": run.problem.strip()}
    rows, average = int(words[words.index("--global-batch-size") + 1]), statistics.mean(lengths)
    step_seconds = [row["step_seconds"] for row in later]
    seconds = statistics.median(step_seconds)
    if "--packing" in words:
        length = int(words[words.index("--seq-length") + 1])
        tokens = statistics.median(row["packing_efficiency"] for row in later) * rows * length
    else:
        tokens = average * rows
    a = Architecture.from_config(json.loads((base / "config.json").read_text()))
    kernels = run.profile.get("kernels_ms", 0.0)
    return {
        "useful_tokens_per_s": round(tokens / seconds), "step_ms": round(1000 * seconds, 1),
        "mfu": round(statistics.median(row["mfu"] for row in later), 3) if "mfu" in later[-1] else None,
        "kernels": round(kernels / 1000 / seconds, 3) if kernels else None,
        "waits_for_data": round(sum(r["data_seconds"] for r in later) / sum(step_seconds), 4),
        "peak_gib": round(max(row.get("memory_gib", 0.0) for row in run.rows), 1), "plan_gib": planned_gib(work, words, a, lengths),
        "loss": round(later[-1]["loss"], 3), "steps": len(run.rows), "losses": run.losses, "profile": run.profile,
    }  # fmt: skip


def measure_peer(what: str, work: Work, config: dict[str, Any], shards: Path, measured: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, figures) of a peer with each of its micro batches, in this process."""
    batch, *words = what.split()
    kind, sizes = batch.split(":")
    settings = dict(word.split("=") for word in words)
    a = Architecture.from_config(config)
    if kind == "megatron":
        import stock_megatron

        train, frozen = stock_megatron.trainer(config, work.length, settings), ["vision", "projector"]
    else:
        import hugging_face

        train, frozen = hugging_face.trainer(kind, config), []
    for rows in map(int, sizes.split(",")):
        name = " ".join([f"{kind}:{rows}", *words])
        steps = batches(shards, rows, WARM + measured, work.length)
        try:
            yield name, timed(train, steps, a, frozen, low_rank=kind == "peft")
        except torch.cuda.OutOfMemoryError as error:
            yield name, {"fault": str(error).split(". ")[0]}
            torch.cuda.empty_cache()


def run_peer(what: str, words: list[str], shards: Path, limit: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same in a separate process, each row as soon as it is known; a failure or more than `limit` seconds is reported."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, *words, "--peer", what, "--shards", str(shards)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        clock = threading.Timer(limit, process.kill)
        clock.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('["'):
                    name, row = json.loads(line)
                    yield name, row
            if process.wait():
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:]
                yield what, {"fault": last[0] if clock.is_alive() and last else f"not done after {limit:g} s"}
        finally:
            clock.cancel()
            process.kill()
            process.wait()


def table_row(name: str, row: dict[str, Any]) -> str:
    if "fault" in row:
        lines = row["fault"].splitlines()
        # libraries warn after the error, too
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no word")
        return f"| {name} | failed: {said[:160]} |" + " |" * (len(COLUMNS) - 1)
    values = ((key, row.get(key)) for key in COLUMNS)
    return (
        f"| {name} | " + " | ".join("" if v is None else f"{v:,}" if key == "useful_tokens_per_s" else str(v) for key, v in values) + " |"
    )


def ratios(rows: dict[str, dict[str, Any]], gpus: int) -> list[str]:
    """This project over each peer at its fastest, fp8 over bf16, several GPUs over one: of useful tokens/s."""
    speed = {name: row["useful_tokens_per_s"] for name, row in rows.items() if "fault" not in row}
    mine = [name for name in speed if name.startswith(("packed:", "rows:"))]
    lines = []
    for kind in dict.fromkeys(name.split(":")[0] for name in speed if name not in mine):
        best = max((name for name in speed if name.startswith(f"{kind}:")), key=lambda name: speed[name])
        lines += [f"{name} over {best}: {speed[name] / speed[best]:.2f}" for name in mine]
    for name in mine:
        plain = name.replace(" --precision fp8", "")
        if plain != name and plain in speed:
            lines.append(f"{name} over bf16: {speed[name] / speed[plain]:.2f}")
    one = next((name for name in mine if "--nproc 1" in name), "")
    if gpus > 1 and one:
        lines += [f"{name}: scaling {speed[name] / speed[one] / gpus:.2f}" for name in mine if name != one]
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=["llava"], metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--ours", nargs="*", help="configurations in place of each work's own")
    parser.add_argument("--peers", nargs="*", help="peers in place of each work's own")
    parser.add_argument("--size", choices=("tiny", "tiny-experts", "2B", "4B", "8B", "A3B"), help="another model")
    parser.add_argument("--layers", type=int, help="language layers to keep; 0: all")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--gpus", type=int, help="of each run of this project")
    parser.add_argument("--steps", type=int, default=30, help="of this project; the later half is measured")
    parser.add_argument("--peer-steps", type=int, default=5, help="of each peer, after three to warm up")
    parser.add_argument("--options", default="", help="more options of `qwen3vl finetune`, in one string")
    parser.add_argument("--time-limit", type=float, default=240, help="seconds for each run of this project and each peer")
    parser.add_argument("--out", type=Path, help="append each row here as it is known, one JSON object a line")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.works:
        if name not in WORKS:
            parser.error(f"{name}: there are {', '.join(WORKS)}")
    return options


def work_of(name: str, options: argparse.Namespace) -> Work:
    """A work with what the command line changes of it."""
    work = WORKS[name]
    changes = {key: getattr(options, key) for key in ("ours", "peers", "size", "layers", "samples", "gpus")}
    work = dataclasses.replace(work, **{key: value for key, value in changes.items() if value is not None})
    return dataclasses.replace(work, options=f"{work.options} {options.options}")


def measure(name: str, work: Work, options: argparse.Namespace, folder: Path) -> None:
    """Print a work's table row by row, then the ratios."""
    print(f"\n{name}: {work}\n\n| configuration | {' | '.join(COLUMNS.values())} |\n|{' --- |' * (len(COLUMNS) + 1)}", flush=True)
    rows: dict[str, dict[str, Any]] = {}

    def add(what: str, row: dict[str, Any]) -> None:
        rows[what] = row
        print(table_row(what, row), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(
                    json.dumps({"work": name, "size": work.size, "layers": work.layers, "gpus": work.gpus, "name": what} | row) + "\n"
                )

    data = folder / f"data-{work.tokens[0]}-{work.side}-{work.samples}"
    shards = data / "shards"
    if not shards.exists():
        random_run.data(data, random_run.TINY.parent, work.samples, tokens=work.tokens, side=work.side)
    base = folder / f"{work.size}-{work.layers}"
    if work.ours and not base.exists():
        random_run.model(base, work.size, work.layers)
    probe = batches(shards, min(100, work.samples // MICRO_BATCHES), 1, work.length)[0]
    lengths = [int(n) for batch in probe for n in batch.lengths]
    for what in work.ours:
        add(what, ours(folder, base, shards, work, what, options.steps, lengths, options.time_limit))
    words = [name, "--size", work.size, "--layers", str(work.layers), "--peer-steps", str(options.peer_steps)]
    for what in work.peers:
        for peer, row in run_peer(what, words, shards, options.time_limit):
            add(peer, row)
    print("\n" + "\n".join(ratios(rows, work.gpus)), flush=True)


def main() -> None:
    options = arguments()
    if options.peer:
        work = work_of(options.works[0], options)
        for name, row in measure_peer(options.peer, work, random_run.config(work.size, work.layers), options.shards, options.peer_steps):
            print(json.dumps([name, row]), flush=True)
        return
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name(), torch.__version__)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.works:
            measure(name, work_of(name, options), options, Path(temporary))


if __name__ == "__main__":
    main()
