"""The rules of a parallel layout, each with its equation and the nearest value that would do. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.layout.machine_rules import Machine, check_machine
from qwen3vl_core.layout.sink_packages import sink_faults
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import CHECKPOINTS
from qwen3vl_core.sizes import Architecture, check_size


def divisors(*numbers: int) -> list[int]:
    """Sizes that divide every one of `numbers`."""
    return [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def nearest(value: int, allowed: list[int]) -> int:
    """The allowed size that is closest to `value`."""
    return min(allowed, key=lambda a: (abs(a - value), a))


def vision_layers_per_recompute(layers: int, vision_layers: int) -> int:
    """Layers of the vision tower that are computed again together: as many as in the language tower, or the most below that
    divide the tower."""
    return max(d for d in divisors(vision_layers) if d <= layers)


def check_layout(options: FinetuneOptions, architecture: Architecture, processes: int) -> None:
    """Raises RequestError for the first rule that the layout breaks.

    architecture: of the checkpoint that the run starts from. processes: of the whole run.
    """
    for fault in layout_faults(options, architecture, processes):
        raise RequestError(fault)


def layout_faults(options: FinetuneOptions, architecture: Architecture, processes: int) -> Iterator[str]:
    """Every rule that the layout breaks, one line each; a rule whose equation another fault spoils is left out."""
    a, tp, pp, cp = architecture, options.tp, options.pp, options.cp
    splits = {
        "attention heads": a.num_heads, "key/value heads": a.num_kv_heads, "vision heads": a.vision.num_heads,
        "FFN columns": a.ffn_hidden_size, "vision FFN columns": a.vision.ffn_hidden_size, "vocabulary": a.vocab_size,
    }  # fmt: skip
    for what, count in splits.items():
        if count % tp:
            best = nearest(tp, divisors(*splits.values()))
            yield f"--tp {tp}: {count} {what} / {tp} = {count / tp:.2f} is not whole; use --tp {best}"
            break
    yield from _pipeline_faults(options, a)
    yield from _recompute_faults(options, a)
    if options.precision == "fp8":
        yield from _fp8_faults(options, a)
    model = tp * pp * cp
    if processes % model:
        yield f"{processes} processes: must be a multiple of tp x pp x cp = {tp} x {pp} x {cp} = {model}; use {_processes(options, model)}"
        yield from _expert_faults(options, a, None)
        return
    dp = processes // model
    yield from _expert_faults(options, a, processes)
    step = options.micro_batch_size * dp
    if options.global_batch_size % step:
        low = options.global_batch_size // step * step
        ways = f"{low} or {low + step}" if low else str(step)
        yield (
            f"--global-batch-size {options.global_batch_size}: must be a multiple of micro batch x data parallel = "
            f"{options.micro_batch_size} x {dp} = {step}; use {ways}"
        )
    elif pp > 1 and options.vp > 1 and options.global_batch_size // step % pp:
        # Megatron's interleaved schedule goes through the micro batches in groups of pp
        count = options.global_batch_size // step
        yield (
            f"--vp {options.vp}: {count} micro batches a step (global batch {options.global_batch_size} / {step}) / pp {pp} = "
            f"{count / pp:.2f} is not whole; use --global-batch-size {max(count // pp, 1) * pp * step} or leave --vp out"
        )
    if options.distributed_optimizer and dp == 1 and options.nproc > 1 and not options.optimizer_offload:
        yield f"--distributed-optimizer: all {processes} processes hold one model (dp = 1), nothing to split; leave it out"


def _processes(options: FinetuneOptions, count: int) -> str:
    """How to ask for so many processes."""
    return f"--nproc {count}" if options.env == "dsw" else f"{count} GPUs"


def _pipeline_faults(options: FinetuneOptions, a: Architecture) -> Iterator[str]:
    """Layers over stages and chunks; the deepstack layers must all be in the first chunk of the first stage."""
    pp, vp, first, deep = options.pp, options.vp, options.pp0_layers, len(a.vision.deepstack_layers)
    if pp == 1:
        for flag, value in (("--vp", vp if vp > 1 else 0), ("--pp0-layers", first)):
            if value:
                yield f"{flag} {value}: needs --pp above 1; leave it out or use --pp 2"
        return
    if first and vp > 1:
        yield f"--pp0-layers {first}: not together with --vp {vp}; leave one of them out"
        return
    chunks = pp * vp
    others, stages = (a.num_layers - first, pp - 1) if first else (a.num_layers, chunks)
    if others <= 0 or others % stages:
        if first:
            ways = [n for n in range(deep, a.num_layers) if (a.num_layers - n) % stages == 0]
            way_out = f"use --pp0-layers {nearest(first, ways)}" if ways else f"use --pp {nearest(pp, divisors(a.num_layers))}"
            rest = f"the other {others} layers / {stages} stages = {others / stages:.2f} is not whole"
            yield f"--pp0-layers {first}: {rest if others > 0 else f'leaves no layer of {a.num_layers} for the other stages'}; {way_out}"
            return
        name, value, equation = ("--vp", vp, f"{pp} x {vp} = {chunks} chunks") if vp > 1 else ("--pp", pp, f"{pp}")
        ways = [d // pp for d in divisors(a.num_layers) if d % pp == 0] if vp > 1 else divisors(a.num_layers)
        way_out = f"use {name} {nearest(value, ways)}" if ways else "leave it out"
        yield f"{name} {value}: {a.num_layers} layers / {equation} = {a.num_layers / chunks:.2f} is not whole; {way_out}"
        return
    held = first or a.num_layers // chunks
    if held >= deep:
        return
    if vp > 1:
        ways = [d // pp for d in divisors(a.num_layers) if d % pp == 0 and a.num_layers // d >= deep]
        way_out = f"use --vp {nearest(vp, ways)}" if ways else "leave it out"
        yield (
            f"--vp {vp}: a chunk holds {a.num_layers} / ({pp} x {vp}) = {held} layers, but the {deep} deepstack layers must all be "
            f"in the first; {way_out}"
        )
    elif first:
        yield f"--pp0-layers {first}: the {deep} deepstack layers must all be on the first stage; use --pp0-layers {deep}"
    else:
        fewer = nearest(pp, [d for d in divisors(a.num_layers) if a.num_layers // d >= deep])
        yield (
            f"--pp {pp}: its first stage holds {a.num_layers} / {pp} = {held} layers, but the {deep} deepstack layers "
            f"must all be on it; use --pp {fewer} or give it more with --pp0-layers"
        )


def _recompute_faults(options: FinetuneOptions, a: Architecture) -> Iterator[str]:
    """Layers computed again together, or kept on the host."""
    count = options.recompute_layers
    if not count:
        return
    if options.recompute == "offload" and count >= a.num_layers:
        yield f"--recompute-layers {count}: at least one of {a.num_layers} layers stays on the GPU; use {a.num_layers - 1}"
    if options.recompute == "full":
        first, stages = options.pp0_layers, options.pp * options.vp
        held = [first, (a.num_layers - first) // max(stages - 1, 1)] if first and stages > 1 else [max(a.num_layers // stages, 1)]
        short = next((n for n in held if n % count), None)
        if short is not None and min(held) > 0:
            where = "a stage's" if stages > 1 else "the"
            yield (
                f"--recompute-layers {count}: {where} {short} layers / {count} = {short / count:.2f} is not whole; "
                f"use {nearest(count, divisors(*held))}"
            )


def _fp8_faults(options: FinetuneOptions, a: Architecture) -> Iterator[str]:
    """fp8 products want rows and columns in multiples of 16 (128 for blockwise scaling)."""
    multiple = 128 if options.fp8_recipe == "blockwise" else 16
    tp, q, k = options.tp, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    sides = {"hidden": a.hidden_size, "attention columns": q // tp, "query, key and value columns": (q + 2 * k) // tp}
    if a.is_moe:
        sides["FFN columns of an expert"] = a.expert_ffn_hidden_size // options.etp
    else:
        sides["FFN columns"] = a.ffn_hidden_size // tp
    for what, count in sides.items():
        if count % multiple:
            yield f"--precision fp8: {count} {what} on a GPU, no multiple of {multiple}; use --precision bf16, or a smaller --tp"
            return


def _expert_faults(options: FinetuneOptions, a: Architecture, processes: int | None) -> Iterator[str]:
    """Experts over ranks. processes: None where their number is wrong already."""
    ep, etp, pp = options.ep, options.etp, options.pp
    if not a.is_moe:
        for flag, value in (("--ep", ep), ("--etp", etp)):
            if value > 1:
                yield f"{flag} {value}: this checkpoint has no experts; leave it out"
        return
    if a.num_experts % ep:
        best = nearest(ep, divisors(a.num_experts))
        yield f"--ep {ep}: {a.num_experts} experts / {ep} = {a.num_experts / ep:.2f} is not whole; use --ep {best}"
        processes = None
    if a.expert_ffn_hidden_size % etp:
        ways = divisors(a.expert_ffn_hidden_size)
        yield f"--etp {etp}: {a.expert_ffn_hidden_size} FFN columns of an expert / {etp} is not whole; use --etp {nearest(etp, ways)}"
        processes = None
    if processes is not None and processes % (ep * etp * pp):
        ways = [d for d in divisors(a.num_experts) if processes % (d * etp * pp) == 0] or [1]
        yield f"--ep {ep}: {processes} processes / (ep x etp x pp = {ep} x {etp} x {pp}) is not whole; use --ep {nearest(ep, ways)}"
    if options.tp > 1 and not options.sequence_parallel:
        yield f"--tp {options.tp}: with experts it needs --sequence-parallel; add it or use --tp 1"


def architecture_of(load: str) -> Architecture:
    """Of the checkpoint that `--load` names. Raises RequestError where there is none, or none that says what it is."""
    folder = Path(load).expanduser()
    if not folder.exists():
        raise RequestError(f"--load {folder}: no such folder; give a Megatron checkpoint or a Hugging Face folder")
    side = next((p for p in (folder, folder / CHECKPOINTS, folder.parent) if (p / "config.json").is_file()), None)
    if side is None:
        raise RequestError(
            f"--load {folder}: no config.json in it; give a Megatron checkpoint made by qwen3vl convert, or a Hugging Face folder"
        )
    return Architecture.read(side)


def data_faults(options: FinetuneOptions) -> Iterator[str]:
    """What is wrong with the folders of the data."""
    for flag, data in (("--train-data", options.train_data), ("--valid-data", options.valid_data)):
        if not data or is_url(data):
            # what a store holds is seen when the run opens it
            continue
        folder = Path(data).expanduser()
        if folder.suffix in (".yaml", ".yml") and folder.is_file():
            # a metadataset
            continue
        if not (folder / ".nv-meta").is_dir():
            what = "no such folder" if not folder.exists() else "no Energon index (.nv-meta) in it"
            yield f"{flag} {folder}: {what}; make the dataset with qwen3vl prepare"


def check_plan(options: FinetuneOptions, processes: int) -> None:
    """Everything that can be known before a process starts: paths, size, layout, this machine. Raises RequestError."""
    architecture = architecture_of(options.load)
    if options.size:
        check_size(options.size, architecture, str(Path(options.load).expanduser()))
    for fault in (*data_faults(options), *sink_faults(options)):
        raise RequestError(fault)
    check_layout(options, architecture, processes)
    check_machine(options, Machine.here())
