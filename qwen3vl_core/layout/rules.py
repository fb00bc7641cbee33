"""The rules of a parallel layout, each with its equation and the nearest valid value as remedy. Imports no torch."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.layout.torchrun_command import processes_problem
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.peft_folder import base_folder, is_peft_folder, read_config
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import CHECKPOINTS
from qwen3vl_core.sizes import Architecture


@functools.cache
def divisors(*numbers: int) -> list[int]:
    """The common divisors of `numbers`, ascending."""
    common = math.gcd(*numbers)
    small = [d for d in range(1, math.isqrt(common) + 1) if common % d == 0]
    return small + [common // d for d in reversed(small) if d * d != common]


def nearest(value: int, allowed: list[int]) -> int:
    """The allowed value that is closest to `value`."""
    return min(allowed, key=lambda a: (abs(a - value), a))


def vision_layers_per_recompute(layers: int, vision_layers: int) -> int:
    """Layers of the vision tower that are recomputed together: as many as in the language tower, or the next smaller divisor of the
    tower's number of layers."""
    return max(d for d in divisors(vision_layers) if d <= layers)


def layout_problems(options: FinetuneOptions, architecture: Architecture, processes: int, asked: str = "") -> Iterator[Problem]:
    """Every rule that the layout breaks; rules whose equation another problem invalidates are skipped.

    architecture: of the checkpoint that the run starts from. processes: of the whole run. asked: the option that set their
    number, if not --nproc.
    """
    a, tp, pp, cp = architecture, options.tp, options.pp, options.cp
    splits = {
        "attention heads": a.num_heads, "key/value heads": a.num_kv_heads, "vision heads": a.vision.num_heads,
        "FFN columns": a.ffn_hidden_size, "vision FFN columns": a.vision.ffn_hidden_size, "vocabulary": a.vocab_size,
    }  # fmt: skip
    for what, count in splits.items():
        if count % tp:
            rule = {"count": count, "what": what, "tp": tp, "quotient": count / tp}
            yield Problem("tp-not-whole", "tp", tp, rule, ({"tp": nearest(tp, divisors(*splits.values()))},))
            break
    yield from _pipeline_problems(options, a)
    yield from _recompute_problems(options, a)
    if options.precision == "fp8":
        yield from _fp8_problems(options, a)
    model = tp * pp * cp
    if processes % model:
        yield processes_problem(options, processes, asked)
        yield from _expert_problems(options, a, None)
        return
    dp = processes // model
    yield from _expert_problems(options, a, processes)
    step, batch = options.micro_batch_size * dp, options.global_batch_size
    if batch % step:
        low = batch // step * step
        # the larger of the two valid batches comes first
        ways = ({"global_batch_size": low + step}, *([{"global_batch_size": low}] if low else []))
        rule = {"micro": options.micro_batch_size, "dp": dp, "step": step}
        yield Problem("batch-not-multiple", "global_batch_size", batch, rule, ways)
    elif pp > 1 and options.vp > 1 and batch // step % pp:
        # Megatron's interleaved schedule goes through the micro batches in groups of pp
        count = batch // step
        rule = {"count": count, "batch": batch, "step": step, "pp": pp, "quotient": count / pp}
        remedies: tuple[dict[str, int | None], ...] = ({"global_batch_size": max(count // pp, 1) * pp * step}, {"vp": None})
        yield Problem("micro-batches-not-whole", "vp", options.vp, rule, remedies)
    other_reason = options.optimizer_offload or options.use_precision_aware_optimizer
    if options.distributed_optimizer and dp == 1 and options.nproc > 1 and not other_reason:
        yield Problem(
            "nothing-to-split", "distributed_optimizer", True, {"processes": processes}, ({"distributed_optimizer": None},)
        )  # fmt: skip


def _pipeline_problems(options: FinetuneOptions, a: Architecture) -> Iterator[Problem]:
    """Rules of layers in stages and chunks; all deepstack layers must be in the first chunk of the first stage."""
    pp, vp, first, deep, layers = options.pp, options.vp, options.pp0_layers, len(a.vision.deepstack_layers), a.num_layers
    if pp == 1:
        for name, value in (("vp", vp if vp > 1 else 0), ("pp0_layers", first)):
            if value:
                yield Problem("needs-stages", name, value, remedies=({name: None}, {"pp": 2}))
        return
    if first and vp > 1:
        yield Problem("first-stage-with-chunks", "pp0_layers", first, {"vp": vp}, ({"pp0_layers": None}, {"vp": None}))
        return
    chunks = pp * vp
    others, stages = (layers - first, pp - 1) if first else (layers, chunks)
    # numbers of layers in the first stage for which the other stages share the rest evenly
    firsts = [n for n in range(max(deep, 1), layers) if (layers - n) % (pp - 1) == 0]
    if others <= 0 or others % stages:
        if first:
            fewer = {"pp": nearest(pp, divisors(layers)), "pp0_layers": None}
            ways: tuple[dict[str, int | None], ...] = ({"pp0_layers": nearest(first, firsts)},) if firsts else (fewer,)
            if others > 0:
                rule = {"others": others, "stages": stages, "quotient": others / stages}
                yield Problem("first-stage-not-whole", "pp0_layers", first, rule, ways)
            else:
                yield Problem("first-stage-takes-all", "pp0_layers", first, {"layers": layers}, ways)
        elif vp > 1:
            sizes = [d // pp for d in divisors(layers) if d % pp == 0]
            rule = {"layers": layers, "pp": pp, "vp": vp, "chunks": chunks, "quotient": layers / chunks}
            yield Problem("chunks-not-whole", "vp", vp, rule, ({"vp": nearest(vp, sizes) if sizes else None},))
        else:
            rule = {"layers": layers, "pp": pp, "quotient": layers / pp}
            yield Problem("stages-not-whole", "pp", pp, rule, ({"pp": nearest(pp, divisors(layers))},))
        return
    first_layers = first or layers // chunks
    if first_layers >= deep:
        return
    rule = {"layers": layers, "pp": pp, "vp": vp, "first_layers": first_layers, "deep": deep}
    if vp > 1:
        sizes = [d // pp for d in divisors(layers) if d % pp == 0 and layers // d >= deep]
        yield Problem("deepstack-beyond-chunk", "vp", vp, rule, ({"vp": nearest(vp, sizes) if sizes else None},))
    elif first:
        yield Problem(
            "deepstack-beyond-first-stage", "pp0_layers", first, rule, ({"pp0_layers": nearest(first, firsts) if firsts else deep},)
        )
    else:
        # a model of fewer layers than deepstack outputs has one stage
        fewer = {"pp": nearest(pp, [d for d in divisors(layers) if layers // d >= deep] or [1])}
        more = [{"pp0_layers": nearest(layers // pp, firsts)}] if firsts else []
        yield Problem("deepstack-beyond-stage", "pp", pp, rule, (fewer, *more))


def _recompute_problems(options: FinetuneOptions, a: Architecture) -> Iterator[Problem]:
    """Rules of `--recompute-layers`: layers recomputed together, or offloaded to the host."""
    count = options.recompute_layers
    if not count:
        return
    if options.recompute == "offload" and count >= a.num_layers:
        ways = ({"recompute_layers": a.num_layers - 1},)
        yield Problem("recompute-offload-all", "recompute_layers", count, {"layers": a.num_layers}, ways)
    if options.recompute == "full":
        first, stages = options.pp0_layers, options.pp * options.vp
        sizes = [first, (a.num_layers - first) // max(stages - 1, 1)] if first and stages > 1 else [max(a.num_layers // stages, 1)]
        indivisible = next((n for n in sizes if n % count), None)
        if indivisible is not None and min(sizes) > 0:
            rule = {"where": "a stage's" if stages > 1 else "the", "layers": indivisible, "count": count, "quotient": indivisible / count}
            ways = ({"recompute_layers": nearest(count, divisors(*sizes))},)
            yield Problem("recompute-layers-not-whole", "recompute_layers", count, rule, ways)


def _fp8_columns(options: FinetuneOptions, a: Architecture, tp: int, etp: int) -> tuple[str, int] | None:
    """The dimension on a GPU that fp8 GEMMs do not support, and its size; None if they support all."""
    multiple = _fp8_multiple(options)
    q, k = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    sides = {"hidden": a.hidden_size, "attention columns": q // tp, "query, key and value columns": (q + 2 * k) // tp}
    if a.is_moe:
        sides["FFN columns of an expert"] = a.expert_ffn_hidden_size // etp
    else:
        sides["FFN columns"] = a.ffn_hidden_size // tp
    return next(((what, count) for what, count in sides.items() if count % multiple), None)


def _fp8_multiple(options: FinetuneOptions) -> int:
    return 128 if options.fp8_recipe == "blockwise" else 16


def _fp8_problems(options: FinetuneOptions, a: Architecture) -> Iterator[Problem]:
    """fp8 GEMMs need rows and columns in multiples of 16 (128 for blockwise scaling)."""
    unsupported = _fp8_columns(options, a, options.tp, options.etp)
    if unsupported is None:
        return
    ways: list[dict[str, int | str]] = [{"precision": "bf16"}]
    for tp in reversed(range(1, min(options.tp, a.num_heads + 1))):
        if a.num_heads % tp == 0 and _fp8_columns(options, a, tp, options.etp) is None:
            ways.append({"tp": tp})
            break
    for etp in reversed(range(1, min(options.etp, a.expert_ffn_hidden_size + 1))):
        if a.is_moe and a.expert_ffn_hidden_size % etp == 0 and _fp8_columns(options, a, options.tp, etp) is None:
            ways.append({"etp": etp})
            break
    rule = {"what": unsupported[0], "count": unsupported[1], "multiple": _fp8_multiple(options)}
    yield Problem("fp8-columns", "precision", "fp8", rule, tuple(ways))


def _expert_problems(options: FinetuneOptions, a: Architecture, processes: int | None) -> Iterator[Problem]:
    """Rules of experts on ranks. processes: None if their number is invalid already."""
    ep, etp, pp = options.ep, options.etp, options.pp
    if not a.is_moe:
        for name, value in (("ep", ep), ("etp", etp)):
            if value > 1:
                yield Problem("no-experts", name, value, remedies=({name: None},))
        return
    if a.num_experts % ep:
        rule = {"experts": a.num_experts, "ep": ep, "quotient": a.num_experts / ep}
        yield Problem("experts-not-whole", "ep", ep, rule, ({"ep": nearest(ep, divisors(a.num_experts))},))
        processes = None
    if a.expert_ffn_hidden_size % etp:
        rule = {"columns": a.expert_ffn_hidden_size, "etp": etp}
        yield Problem("expert-columns-not-whole", "etp", etp, rule, ({"etp": nearest(etp, divisors(a.expert_ffn_hidden_size))},))
        processes = None
    if processes is not None and processes % (ep * etp * pp):
        sizes = [d for d in divisors(a.num_experts) if processes % (d * etp * pp) == 0]
        way = {"ep": nearest(ep, sizes)} if sizes else {"ep": None, "etp": None}
        yield Problem("expert-ranks-not-whole", "ep", ep, {"processes": processes, "ep": ep, "etp": etp, "pp": pp}, (way,))
    if options.tp > 1 and not options.sequence_parallel:
        yield Problem("experts-without-sequence-parallel", "tp", options.tp, remedies=({"sequence_parallel": True}, {"tp": 1}))


def architecture_of(load: str) -> Architecture:
    """The architecture of the checkpoint that `--load` names. Raises RequestError if there is none, or it has no config.json."""
    folder = Path(load).expanduser()
    if not folder.exists():
        raise RequestError(Problem("no-such-checkpoint", "load", str(folder)))
    if is_peft_folder(folder):
        folder = base_folder(folder, read_config(folder))
    side = next((p for p in (folder, folder / CHECKPOINTS, folder.parent) if (p / "config.json").is_file()), None)
    if side is None:
        raise RequestError(Problem("checkpoint-without-config", "load", str(folder)))
    return Architecture.read(side)


def data_problems(options: FinetuneOptions) -> Iterator[Problem]:
    """Problems of the data folders, and of the mirror's."""
    if options.mirror and not is_url(options.mirror):
        mirror = Path(options.mirror).expanduser().absolute()
        nearest = next(folder for folder in (mirror, *mirror.parents) if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            yield Problem("mirror-not-writable", "mirror", options.mirror, {"folder": str(nearest)})
    for name, data in (("train_data", options.train_data), ("valid_data", options.valid_data)):
        if not data or is_url(data):
            # remote data is checked when the run opens it
            continue
        folder = Path(data).expanduser()
        if folder.suffix in (".yaml", ".yml") and folder.is_file():
            # a metadataset
            continue
        if not (folder / ".nv-meta").is_dir():
            yield Problem("dataset-without-index" if folder.exists() else "no-such-dataset", name, str(folder))
