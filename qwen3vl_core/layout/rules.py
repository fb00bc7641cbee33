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
    a, tp, pp, cp = architecture, options.tp, options.pp, options.cp
    splits = {
        "attention heads": a.num_heads, "key/value heads": a.num_kv_heads, "vision heads": a.vision.num_heads,
        "FFN columns": a.ffn_hidden_size, "vision FFN columns": a.vision.ffn_hidden_size, "vocabulary": a.vocab_size,
    }  # fmt: skip
    for what, count in splits.items():
        if count % tp:
            best = nearest(tp, divisors(*splits.values()))
            raise RequestError(f"--tp {tp}: {count} {what} / {tp} = {count / tp:.2f} is not whole; use --tp {best}")
    _check_pipeline(options, a)
    model = tp * pp * cp
    if processes % model:
        raise RequestError(
            f"{processes} processes: must be a multiple of tp x pp x cp = {tp} x {pp} x {cp} = {model}; use --nproc {model}"
        )
    dp = processes // model
    _check_experts(options, a, processes)
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


def _check_pipeline(options: FinetuneOptions, a: Architecture) -> None:
    """Layers over stages and chunks; the deepstack layers must all be in the first chunk of the first stage."""
    pp, vp, first, deep = options.pp, options.vp, options.pp0_layers, len(a.vision.deepstack_layers)
    if pp == 1:
        for flag, value in (("--vp", vp if vp > 1 else 0), ("--pp0-layers", first)):
            if value:
                raise RequestError(f"{flag} {value}: needs --pp above 1; leave it out or use --pp 2")
        return
    if first and vp > 1:
        raise RequestError(f"--pp0-layers {first}: not together with --vp {vp}; leave one of them out")
    chunks = pp * vp
    others, stages = (a.num_layers - first, pp - 1) if first else (a.num_layers, chunks)
    if others <= 0 or others % stages:
        if first:
            ways = [n for n in range(deep, a.num_layers) if (a.num_layers - n) % stages == 0]
            raise RequestError(
                f"--pp0-layers {first}: the other {others} layers / {stages} stages = {others / stages:.2f} is not whole; "
                f"use --pp0-layers {nearest(first, ways)}"
            )
        name, value, equation = ("--vp", vp, f"{pp} x {vp} = {chunks} chunks") if vp > 1 else ("--pp", pp, f"{pp}")
        ways = [d // pp for d in divisors(a.num_layers) if d % pp == 0] if vp > 1 else divisors(a.num_layers)
        way_out = f"use {name} {nearest(value, ways)}" if ways else "leave it out"
        raise RequestError(f"{name} {value}: {a.num_layers} layers / {equation} = {a.num_layers / chunks:.2f} is not whole; {way_out}")
    held = first or a.num_layers // chunks
    if held < deep:
        if vp > 1:
            ways = [d // pp for d in divisors(a.num_layers) if d % pp == 0 and a.num_layers // d >= deep]
            way_out = f"use --vp {nearest(vp, ways)}" if ways else "leave it out"
            raise RequestError(
                f"--vp {vp}: a chunk holds {a.num_layers} / ({pp} x {vp}) = {held} layers, but the {deep} deepstack layers must all be "
                f"in the first; {way_out}"
            )
        if first:
            raise RequestError(f"--pp0-layers {first}: the {deep} deepstack layers must all be on the first stage; use --pp0-layers {deep}")
        fewer = nearest(pp, [d for d in divisors(a.num_layers) if a.num_layers // d >= deep])
        raise RequestError(
            f"--pp {pp}: its first stage holds {a.num_layers} / {pp} = {held} layers, but the {deep} deepstack layers "
            f"must all be on it; use --pp {fewer} or give it more with --pp0-layers"
        )


def _check_experts(options: FinetuneOptions, a: Architecture, processes: int) -> None:
    ep, etp, pp = options.ep, options.etp, options.pp
    if not a.is_moe:
        for flag, value in (("--ep", ep), ("--etp", etp)):
            if value > 1:
                raise RequestError(f"{flag} {value}: this checkpoint has no experts; leave it out")
        return
    if a.num_experts % ep:
        best = nearest(ep, divisors(a.num_experts))
        raise RequestError(f"--ep {ep}: {a.num_experts} experts / {ep} = {a.num_experts / ep:.2f} is not whole; use --ep {best}")
    if a.expert_ffn_hidden_size % etp:
        ways = divisors(a.expert_ffn_hidden_size)
        raise RequestError(
            f"--etp {etp}: {a.expert_ffn_hidden_size} FFN columns of an expert / {etp} is not whole; use --etp {nearest(etp, ways)}"
        )
    if processes % (ep * etp * pp):
        ways = [d for d in divisors(a.num_experts) if processes % (d * etp * pp) == 0] or [1]
        raise RequestError(
            f"--ep {ep}: {processes} processes / (ep x etp x pp = {ep} x {etp} x {pp}) is not whole; use --ep {nearest(ep, ways)}"
        )
    if options.tp > 1 and not options.sequence_parallel:
        raise RequestError(f"--tp {options.tp}: with experts it needs --sequence-parallel; add it or use --tp 1")


def check_plan(options: FinetuneOptions, processes: int) -> None:
    """Everything that can be known before a process starts: paths, size, layout. Raises RequestError."""
    load = Path(options.load).expanduser()
    if not load.exists():
        raise RequestError(f"--load {load}: no such folder; give a Megatron checkpoint or a Hugging Face folder")
    side = next((p for p in (load, load / "checkpoints", load.parent) if (p / "config.json").is_file()), None)
    if side is None:
        raise RequestError(
            f"--load {load}: no config.json in it; give a Megatron checkpoint made by qwen3vl convert, or a Hugging Face folder"
        )
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
