"""Process groups of a run: torch.distributed and Megatron's parallel state."""

from __future__ import annotations

import datetime
import os
import weakref
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

TIMEOUT_MINUTES = 10.0
OUTSIDE_BYTES = 5 << 29
"""GPU memory that torch's allocator leaves to the CUDA context, the kernels and NCCL."""
_single_rank_group: dist.ProcessGroup | None = None


class UsesGroups(Protocol):
    """An object that must release the groups before they are destroyed."""

    def release(self) -> None:
        """Let go of the groups."""
        ...


_users: weakref.WeakSet[UsesGroups] = weakref.WeakSet()


def leave_memory_outside() -> None:
    """Let torch's allocator release what it has cached before the GPU is full.

    It does so only when a request of its own fails. NCCL, which allocates at the first reduction, found no byte on a full GPU.
    """
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(max(1 - OUTSIDE_BYTES / total, 0.5))


def initialize(
    tp: int = 1,
    pp: int = 1,
    *,
    cp: int = 1,
    ep: int = 1,
    etp: int = 1,
    vp: int = 1,
    rank: int | None = None,
    world_size: int | None = None,
    seed: int = 1234,
    timeout_minutes: float = TIMEOUT_MINUTES,
) -> None:
    """Create the groups: from torchrun's environment, else for this process alone. Keeps groups that already exist.

    tp, pp, cp, ep, etp: tensor, pipeline, context, expert, expert tensor parallel sizes; vp: model chunks of a stage.
    gloo on a CPU, nccl on CUDA. rank and world_size: read from the environment by default. timeout_minutes: of
    every group, Megatron's too: how long a rank waits in a collective before it fails. Raises ValueError when the number
    of processes is not divisible by tp x pp x cp.
    """
    global _single_rank_group
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=timeout_minutes)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
            leave_memory_outside()
        if world_size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    if not parallel_state.model_parallel_is_initialized():
        total = dist.get_world_size()
        if total % (tp * pp * cp):
            raise ValueError(f"{total} processes are not a multiple of tp x pp x cp = {tp} x {pp} x {cp} = {tp * pp * cp}")
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp, expert_model_parallel_size=ep,
            expert_tensor_parallel_size=etp, virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
            distributed_timeout_minutes=timeout_minutes,
        )  # fmt: skip
        if cp > 1:
            # every rank must take part in creating every group
            _single_rank_group, _ = dist.new_subgroups(group_size=1, timeout=datetime.timedelta(minutes=timeout_minutes))
        # Megatron creates some of its groups without the given timeout
        for group in dist.distributed_c10d._world.pg_map:
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(minutes=timeout_minutes), group)
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed)


def vision_groups() -> ProcessGroupCollection:
    """Groups of the vision tower: every context parallel rank processes whole pictures, so its context parallel group is itself alone."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if _single_rank_group is not None:
        groups.cp = _single_rank_group
    return groups


def release_before_destroy(user: UsesGroups) -> None:
    """Call `user.release` before the groups are destroyed, if `user` still exists then."""
    _users.add(user)


def destroy() -> None:
    """Destroy the groups, so that new ones can be created in this process."""
    global _single_rank_group
    for user in list(_users):
        user.release()
    _single_rank_group = None
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
