"""The training state that a run's checkpoint holds, and its loading by our own safe reader; `saving.py` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen3vl_core.model.fp8_scales import scales, set_scales
from qwen3vl_core.model.lora import of_adapters

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, merge
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.module import MegatronModule

from qwen3vl_core import file_digests, limits
from qwen3vl_core.checkpoint import retention, torch_dist
from qwen3vl_core.checkpoint.retention import EXTRA
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.run_record import checkpoint_step

# key prefixes of the fp32 master weights in the two kinds of optimizer: the distributed one and the plain one
MASTER = ("optimizer.state.param.", "optimizer.state.fp32_param.")


def metadata() -> dict[str, Any]:
    """How the optimizer state is stored: by parameter, so that any other layout can read it."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _names(models: list[MegatronModule]) -> list[str]:
    """Megatron-LM's keys of the chunks of a stage: `model`, or `model0`, `model1`, …"""
    return ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]


def _random_state() -> dict[str, Any]:
    """The states of this rank's random number generators, as tensors."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    trackers = {name: state.get_state() if isinstance(state, torch.Generator) else state for name, state in _trackers().items()}
    return {"torch": torch.get_rng_state(), "cuda": cuda, "trackers": trackers}


def _trackers() -> dict[str, Any]:
    """The RNG states that Megatron tracks: generators where CUDA graphs use them, else tensors."""
    return dict(get_cuda_rng_tracker().get_states())


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    trackers = _trackers()
    if state["trackers"].keys() != trackers.keys():
        return
    if any(isinstance(tracker, torch.Generator) for tracker in trackers.values()):
        for name, tracker in trackers.items():
            tracker.set_state(state["trackers"][name])
    else:
        get_cuda_rng_tracker().set_states(state["trackers"])


def _rank_key(name: str) -> str:
    """The key of a state that belongs to a rank of a layout (RNG states, fp8 scales): another layout cannot resume it."""
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_context_parallel_world_size(), parallel_state.get_expert_model_parallel_world_size(),
    )  # fmt: skip
    return name + ".tp{}.pp{}.cp{}.ep{}".format(*sizes)


def _adapted(models: list[MegatronModule]) -> bool:
    """Whether adapters are trained, and nothing else."""
    return getattr(models[0], "adapters", None) is not None


def sharded_state(models: list[MegatronModule], optimizer: Any, scheduler: Any, *, loading: bool) -> dict[str, Any]:
    """Weights, optimizer, schedule, random states and fp8 scales as Megatron's save writes them. loading: as what a load fills."""
    layout = metadata()
    chunks = {name: model.sharded_state_dict(metadata=layout) for name, model in zip(_names(models), models, strict=True)}
    if _adapted(models):
        # the other weights are those of --load and are not saved again
        chunks = {name: of_adapters(state) for name, state in chunks.items()}
    weights = chunks if len(models) > 1 else chunks["model"]

    def of_this_rank(name: str, value: Any) -> ShardedObject:
        return ShardedObject(_rank_key(name), value, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)

    delayed = getattr(models[0].config, "fp8", None) and models[0].config.fp8_recipe == "delayed"
    updates = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=layout)
    if not loading:
        _leave_out_classes(updates)
    return chunks | {
        "optimizer": updates,
        "opt_param_scheduler": scheduler.state_dict(),
        "random": of_this_rank("random", _random_state()),
        **({"fp8": of_this_rank("fp8", scales(models))} if delayed else {}),
    }


def _cores(state: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """The common values of the optimizer, or of each optimizer in a chain."""
    yield from state.values() if state and all(isinstance(key, int) for key in state) else (state,)


def _leave_out_classes(state: dict[Any, Any]) -> None:
    """Remove the offloaded optimizer's classes from its options: a checkpoint that loads safely holds plain values only."""
    for part in _cores(state):
        for group in part.get("optimizer", part).get("param_groups", ()):
            for name in [name for name, value in group.items() if isinstance(value, type)]:
                del group[name]


def _keep_step_counts(optimizer: Any) -> None:
    """After a load: the offloaded optimizer copies its own options to its inner optimizers before every step, which would reset
    their step counts to the loaded one each time."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(getattr(part, "optimizer", None), HybridDeviceOptimizer):
            for group in part.optimizer.param_groups:
                group.pop("step", None)


def _carry_over(saved: dict[Any, Any], present: dict[Any, Any]) -> None:
    """Copy the number of updates and the loss scale into the common values of the present optimizer.

    The other values are options, which the resumed run sets itself. So the checkpoint may come from another kind of optimizer,
    from another number of them, or from another layout.
    """
    inner = [part.get("optimizer", part) for part in _cores(saved)]
    steps = [group["step"] for core in inner for group in core.get("param_groups", ()) if group.get("step") is not None]
    steps += [core["state"]["common_step"] for core in inner if isinstance(core.get("state"), dict) and "common_step" in core["state"]]
    scalers = [part["grad_scaler"] for part in _cores(saved) if part.get("grad_scaler")]
    for part in _cores(present):
        core = part.get("optimizer", part)
        for group in core.get("param_groups", ()):
            if steps:
                group["step"] = max(int(step) for step in steps)
        if scalers and "grad_scaler" in part:
            part["grad_scaler"] = scalers[0]


def load_training(
    directory: Path, *, models: list[MegatronModule], optimizer: Any, scheduler: Any, requires: Sequence[str] = ()
) -> tuple[int, dict[str, Any]] | None:
    """Resume from the newest checkpoint in `directory` that is complete and undamaged, written by any layout: (iteration, extra).

    extra has `layout_kept`: False if random numbers are seeded again, because the saved ones are of another layout.
    Every byte is compared with the checkpoint's digests first, by all ranks together. When newer checkpoints are passed over, extra
    also has a list `damaged` with a line for each. None when there is no checkpoint yet. requires: tables that extra must have. Raises
    RequestError when the checkpoint lacks something that the run needs. Called by every rank.
    """
    known: dict[int, str] = {}
    while True:
        # step, error, damaged
        chosen: list[Any] = [None, None, []]
        if dist.get_rank() == 0:
            try:
                if not known:
                    retention.clear_unfinished(directory)
                checkpoint, problems = retention.newest(directory, requires, known)
                chosen = [checkpoint.iteration if checkpoint else None, None, problems]
            except (RequestError, OSError) as error:
                chosen = [None, str(error), []]
        # one rank decides: on shared storage another one may still see an older tracker
        dist.broadcast_object_list(chosen, src=0)
        if chosen[1] is not None:
            raise RequestError(chosen[1])
        if chosen[0] is None:
            return None
        data = directory / torch_dist.iteration_folder(chosen[0])
        problem = _differs(data)
        if problem is None:
            extra = _load(data, models, optimizer, scheduler)
            return chosen[0], extra | ({"damaged": chosen[2]} if chosen[2] else {})
        known[chosen[0]] = problem


def _differs(data: Path) -> str | None:
    """The first byte of a checkpoint that is not as it was written; each rank reads its share. The same on every rank."""
    try:
        digests = torch_dist.read_digests(data)
        share = dist.get_rank(), dist.get_world_size()
        problem = file_digests.problem(data, digests, share=share) if digests is not None else None
    except (RequestError, OSError) as error:
        problem = torch_dist.first_line(error)
    each: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(each, problem)
    return next(filter(None, each), None)


def load_step(data: Path, *, models: list[MegatronModule], optimizer: Any, scheduler: Any) -> tuple[int, dict[str, Any]]:
    """Go on from the checkpoint folder `data` of another run, as `load_training` does from one of this run's."""
    step = checkpoint_step(data.name)
    assert step is not None, data
    differs = _differs(data)
    if line := differs or retention.damage(data):
        raise RequestError(f"{data}: {line}; give another checkpoint")
    return step, _load(data, models, optimizer, scheduler)


def _load(data: Path, models: list[MegatronModule], optimizer: Any, scheduler: Any) -> dict[str, Any]:
    reader = torch_dist.RegionReader(data, check=False)
    state, nonpersistent, factories = load_preprocess(sharded_state(models, optimizer, scheduler, loading=True))
    sharded, plain = extract_sharded_base(state)

    def read(target: Any) -> Any:
        if isinstance(target, ShardedObject):
            if target.key.endswith("_extra_state"):
                # Transformer Engine would unpickle it
                return None
            # RNG states and fp8 scales of this rank; missing when another layout wrote the checkpoint
            return reader.read_object(target.unique_key) if target.unique_key in reader.objects else None
        return _tensor(reader, target) if isinstance(target, ShardedTensor) else target

    saved = torch_dist.read_common(data)
    _carry_over(saved["optimizer"], plain["optimizer"])
    loaded = {"optimizer": plain["optimizer"], "opt_param_scheduler": saved["opt_param_scheduler"]}
    merge(loaded, {key: value for key, value in nonpersistent.items() if key != "opt_param_scheduler"})
    merge(loaded, dict_list_map_outplace(read, sharded))
    loaded = apply_factory_merges(loaded, factories)
    for name, model in zip(_names(models), models, strict=True):
        weights = {k: v for k, v in loaded[name].items() if not k.endswith("_extra_state")}
        unset = dict.fromkeys(k for k in model.load_state_dict(weights, strict=False).missing_keys if not k.endswith("_extra_state"))
        missing = list(of_adapters(unset) if _adapted(models) else unset)
        if missing:
            raise RequestError(f"{data}: {missing[0]} and {len(missing) - 1} more are not in it; the checkpoint is of another model")
    with torch.no_grad():
        optimizer.load_state_dict(loaded["optimizer"])
    _keep_step_counts(optimizer)
    scheduler.load_state_dict(loaded["opt_param_scheduler"])
    if loaded.get("fp8") is not None:
        set_scales(models, loaded["fp8"])
    if loaded["random"] is not None:
        _set_random_state(loaded["random"])
    try:
        extra = json.loads(read_small(data / EXTRA, limits.EXTRA_JSON))
        extra.pop(retention.DIGESTS, None)
        return extra | {"layout_kept": loaded["random"] is not None}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise RequestError(f"{data / EXTRA}: not readable; this checkpoint was not written by a run: name it with --load") from None


def _tensor(reader: torch_dist.RegionReader, target: ShardedTensor) -> torch.Tensor:
    """This rank's box of a tensor, whichever kind of optimizer wrote it. Raises RequestError when the checkpoint lacks it."""
    key = target.key
    for prefix in MASTER:
        if key.startswith(prefix) and key not in reader.tensors:
            name = key.removeprefix(prefix)
            # an fp32 run without a distributed optimizer has no second copy of its weights
            key = next((other + name for other in MASTER if other + name in reader.tensors), name)
            break
    if key not in reader.tensors:
        if key.startswith("optimizer."):
            raise RequestError(
                f"{reader.data}: it has no {key}; that part was not trained: use the --freeze that the run started with, "
                "or start a new run from the checkpoint with --load"
            )
        raise RequestError(f"{reader.data}: {key} is not in it; the checkpoint is of another model or optimizer")
    lead = target.prepend_axis_num
    offset, size = tuple(target.global_offset), (1,) * lead + tuple(target.local_shape)
    shape = tuple(reader.tensors[key].size)
    if shape != tuple(target.global_shape) and not target.allow_shape_mismatch:
        raise RequestError(f"{reader.data}: {key} is {list(shape)}, the run asks for {list(target.global_shape)}")
    return reader.read(key, offset, size).reshape(target.local_shape)
