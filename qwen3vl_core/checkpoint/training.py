"""Checkpoints of a run: saved by Megatron's distributed save, whole or not there; read back by our own safe reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, merge
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base

from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.hf import copy_side_files
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import UNFINISHED, disk_full, write_text

EXTRA = "extra.json"


def metadata() -> dict[str, Any]:
    """How the optimizer state is laid out: by parameter, so that any later layout can read it."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _names(models: list[torch.nn.Module]) -> list[str]:
    """Megatron-LM's keys of the chunks of a stage: `model`, or `model0`, `model1`, …"""
    return ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]


def _state(models: list[torch.nn.Module], optimizer, scheduler, *, loading: bool) -> dict[str, Any]:
    layout = metadata()
    chunks = {name: model.sharded_state_dict(metadata=layout) for name, model in zip(_names(models), models, strict=True)}
    weights = chunks if len(models) > 1 else chunks["model"]
    return chunks | {
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=loading, metadata=layout),
        "opt_param_scheduler": scheduler.state_dict(),
    }


def _on_every_rank(action: Callable[[], None], where: Path) -> None:
    """Do what one rank does alone; when it fails, every rank learns of it instead of waiting for ever."""
    failure: list[str | None] = [None]
    error: OSError | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as caught:
            error, failure = caught, [caught.strerror or str(caught)]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise WorkError(f"{where}: {failure[0]}; the checkpoint was not written, the one before it is whole") from error


def save_training(
    directory: Path, iteration: int, *, models, optimizer, scheduler, extra: dict[str, Any], common: dict[str, Any], side: Path
) -> Path:
    """Write `directory/iter_…` and point the tracker to it, last of all. Called by every rank.

    models: the chunks of this stage, without their data-parallel wrapping. extra: plain values for
    `load_training`. common: what Megatron-LM expects in `common.pt`. side: folder whose config and tokenizer files go beside the tracker.
    """
    folder = directory / torch_dist.iteration_folder(iteration)
    building = folder.with_name(folder.name + UNFINISHED)

    def begin() -> None:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        if not (directory / "config.json").exists():
            copy_side_files(side, directory)

    _on_every_rank(begin, building)
    state = _state(models, optimizer, scheduler, loading=False) | common | {"iteration": iteration}
    try:
        dist_checkpointing.save(state, str(building), content_metadata=metadata())
    except Exception as error:
        shutil.rmtree(building, ignore_errors=True)
        if disk_full(error) or "No space left" in str(error) or "PytorchStreamWriter" in str(error):
            raise WorkError(f"{folder}: the disk is full; the checkpoint before it is whole; free some space and resume the run") from error
        raise

    def end() -> None:
        write_text(building / EXTRA, json.dumps(extra) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
        write_text(directory / torch_dist.TRACKER, f"{iteration}\n")

    _on_every_rank(end, folder)
    return folder


def load_training(directory: Path, *, models, optimizer, scheduler) -> tuple[int, dict[str, Any]] | None:
    """Go on where the last checkpoint in `directory` was written, by whatever layout: (iteration, extra).

    None where there is no checkpoint yet. Raises RequestError when something that the run needs is not in it.
    """
    if not (directory / torch_dist.TRACKER).exists():
        return None
    found = torch_dist.find(directory)
    reader = torch_dist.RegionReader(found.data)
    state, nonpersistent, factories = load_preprocess(_state(models, optimizer, scheduler, loading=True))
    sharded, _ = extract_sharded_base(state)

    def read(wanted: Any) -> Any:
        if isinstance(wanted, ShardedObject):
            # module states hold fp8 scaling only; one that was not written is empty
            return reader.read_object(wanted.unique_key) if wanted.unique_key in reader.objects else None
        if not isinstance(wanted, ShardedTensor):
            return wanted
        if wanted.key not in reader.tensors:
            raise RequestError(f"{found.data}: {wanted.key} is not in it; the checkpoint is of another model or optimizer")
        lead = wanted.prepend_axis_num
        offset, size = tuple(wanted.global_offset), (1,) * lead + tuple(wanted.local_shape)
        shape = tuple(reader.tensors[wanted.key].size)
        if shape != tuple(wanted.global_shape) and not wanted.allow_shape_mismatch:
            raise RequestError(f"{found.data}: {wanted.key} is {list(shape)}, the run asks for {list(wanted.global_shape)}")
        return reader.read(wanted.key, offset, size).reshape(wanted.local_shape)

    common = torch_dist.read_common(found.data)
    merge(common, nonpersistent)
    merge(common, dict_list_map_outplace(read, sharded))
    loaded = apply_factory_merges(common, factories)
    for name, model in zip(_names(models), models, strict=True):
        weights = {k: v for k, v in loaded[name].items() if not k.endswith("_extra_state") or v is not None}
        missing = [k for k in model.load_state_dict(weights, strict=False).missing_keys if not k.endswith("_extra_state")]
        if missing:
            raise RequestError(f"{found.data}: {missing[0]} and {len(missing) - 1} more are not in it; the checkpoint is of another model")
    with torch.no_grad():
        optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["opt_param_scheduler"])
    try:
        extra = json.loads((found.data / EXTRA).read_text())
    except (OSError, ValueError):
        raise RequestError(f"{found.data / EXTRA}: not readable; this checkpoint was not written by a run: name it with --load") from None
    return found.iteration, extra
