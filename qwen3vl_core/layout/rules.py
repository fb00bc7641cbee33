"""The rules of a parallel layout, each with its equation and the nearest value that would do. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture, check_size


def divisors(*numbers: int) -> list[int]:
    """Sizes that divide every one of `numbers`."""
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def nearest(value: int, allowed: list[int]) -> int:
    """The allowed size that is closest to `value`."""
    return min(allowed, key=lambda a: (abs(a - value), a))


def check_layout(options: FinetuneOptions, architecture: Architecture, processes: int) -> None:
    """Raises RequestError for the first rule that the layout breaks.

    architecture: of the checkpoint that the run starts from. processes: of the whole run.
    """
    a, tp, pp = architecture, options.tp, options.pp
    splits = {
        "attention heads": a.num_heads, "key/value heads": a.num_kv_heads, "vision heads": a.vision.num_heads,
        "FFN columns": a.ffn_hidden_size, "vision FFN columns": a.vision.ffn_hidden_size, "vocabulary": a.vocab_size,
    }  # fmt: skip
    for what, count in splits.items():
        if count % tp:
            best = nearest(tp, divisors(*splits.values()))
            raise RequestError(f"--tp {tp}: {count} {what} / {tp} = {count / tp:.2f} is not whole; use --tp {best}")
    if a.num_layers % pp:
        raise RequestError(
            f"--pp {pp}: {a.num_layers} layers / {pp} = {a.num_layers / pp:.2f} is not whole; use --pp {nearest(pp, divisors(a.num_layers))}"
        )
    deep = len(a.vision.deepstack_layers)
    if pp > 1 and a.num_layers // pp < deep:
        raise RequestError(
            f"--pp {pp}: its first stage holds {a.num_layers} / {pp} = {a.num_layers // pp} layers, but the {deep} deepstack layers "
            f"must all be on it; use --pp {nearest(pp, [d for d in divisors(a.num_layers) if a.num_layers // d >= deep])}"
        )
    if processes % (tp * pp):
        raise RequestError(f"{processes} processes: must be a multiple of tp x pp = {tp} x {pp} = {tp * pp}; use --nproc {tp * pp}")
    dp = processes // (tp * pp)
    step = options.micro_batch_size * dp
    if options.global_batch_size % step:
        low = options.global_batch_size // step * step
        ways = f"{low} or {low + step}" if low else str(step)
        raise RequestError(
            f"--global-batch-size {options.global_batch_size}: must be a multiple of micro batch x data parallel = "
            f"{options.micro_batch_size} x {dp} = {step}; use {ways}"
        )
    if options.distributed_optimizer and dp == 1 and options.nproc > 1:
        raise RequestError(f"--distributed-optimizer: all {processes} processes hold one model (dp = 1), nothing to split; leave it out")


def check_plan(options: FinetuneOptions, processes: int) -> None:
    """Everything that can be known before a process starts: paths, size, layout. Raises RequestError."""
    load = Path(options.load).expanduser()
    if not load.exists():
        raise RequestError(f"--load {load}: no such folder; give a Megatron checkpoint or a Hugging Face folder")
    side = next((p for p in (load, load / "checkpoints", load.parent) if (p / "config.json").is_file()), None)
    if side is None:
        raise RequestError(f"--load {load}: no config.json in it; give a Megatron checkpoint made by qwen3vl convert, or a Hugging Face folder")
    architecture = Architecture.read(side)
    if options.size:
        check_size(options.size, architecture, str(load))
    for flag, data in (("--train-data", options.train_data), ("--valid-data", options.valid_data)):
        if data is None:
            continue
        folder = Path(data).expanduser()
        if not (folder / ".nv-meta").is_dir():
            what = "no such folder" if not folder.exists() else "no Energon index (.nv-meta) in it"
            raise RequestError(f"{flag} {folder}: {what}; make the dataset with qwen3vl prepare")
    check_layout(options, architecture, processes)
