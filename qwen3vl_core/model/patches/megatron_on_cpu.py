"""Patches of Megatron-Core for running without CUDA, where patching torch is not enough."""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
from collections.abc import Callable, Iterator
from typing import Any

from qwen3vl_core.model.patches.fused_adam import FusedAdam

import torch


@contextlib.contextmanager
def light_imports() -> Iterator[None]:
    """Import megatron in 3 s instead of 7: without the storage client (1.9 s), without Weights & Biases (0.7 s), and without
    compiling its fusions, which needs a C++ compiler on a CPU and is only faster on a GPU.

    Upstream: Megatron-Core imports both clients whenever they are installed, for storage and inference engines that are not
    used here, and `megatron.core.jit` decorates its fusions with `torch.compile` while they are imported.
    Unnecessary from: unknown; 0.19.2 still does so.
    """
    compile_, absent = torch.compile, [name for name in ("multistorageclient", "wandb") if name not in sys.modules]
    torch_: Any = torch
    torch_.compile = lambda model=None, *args, **kwargs: model if model is not None else (lambda function: function)
    sys.modules |= dict.fromkeys(absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch.compile = compile_
        for name in absent:
            sys.modules.pop(name, None)


def _uneven(gather: Callable[..., Any], reduce_scatter: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Megatron's gather and reduce-scatter along the first dimension, with all ranks' parts padded to the longest."""

    def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.cat((tensor, tensor.new_zeros(rows - tensor.shape[0], *tensor.shape[1:])))

    @functools.wraps(gather)
    def gather_parts(
        input_: torch.Tensor, group: Any, output_split_sizes: list[int] | None = None, use_global_buffer: bool = False
    ) -> torch.Tensor:
        sizes = output_split_sizes
        if sizes is None or len(set(sizes)) == 1 or group.size() == 1:
            return gather(input_, group, sizes, use_global_buffer)
        most = max(sizes)
        parts = gather(padded(input_, most), group).split(most)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @functools.wraps(reduce_scatter)
    def reduce_scatter_parts(
        input_: torch.Tensor, group: Any, input_split_sizes: list[int] | None = None, use_global_buffer: bool = False
    ) -> torch.Tensor:
        sizes = input_split_sizes
        if sizes is None or len(set(sizes)) == 1 or group.size() == 1:
            return reduce_scatter(input_, group, sizes, use_global_buffer)
        most = max(sizes)
        padded_parts = torch.cat([padded(part, most) for part in input_.split(sizes)])
        return reduce_scatter(padded_parts, group)[: sizes[group.rank()]].contiguous()

    return gather_parts, reduce_scatter_parts


def patch_uneven_collectives() -> None:
    """Gather and reduce-scatter along the first dimension take parts of different lengths.

    Upstream: both hand these lengths to torch.distributed, and gloo's all_gather refuses them, unlike NCCL's. With expert tensor
    parallelism the alltoall dispatcher needs both, since the ranks that share an expert received different numbers of tokens.
    Unnecessary from: unknown; Megatron-Core 0.19.2 and gloo's all_gather in torch 2.13 are unchanged.
    """
    import megatron.core.tensor_parallel.mappings as mappings

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = _uneven(
        mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim
    )


def patch_moe() -> None:
    """The experts' router and dispatcher run without Transformer Engine and without CUDA.

    Upstream: `moe_utils` reads `te_general_gemm` where its import failed, a NameError; and `maybe_move_tensor_to_cpu` makes
    numpy arrays of CUDA tensors only, while the alltoall dispatcher needs its split sizes as numpy.
    Unnecessary from: `te_general_gemm` from 0.19.2 at the latest, which sets it to None; the dispatcher unknown, 0.19.2 is unchanged.
    """
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    token_dispatcher.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
        tensor.numpy() if torch.is_tensor(tensor) and as_numpy else tensor
    )


def patch_results_queue() -> None:
    """A synchronous save keeps its results in a queue of this process.

    Upstream: the queue belongs to a spawned manager process, which imports `__main__` again and with it the caller's imports.
    Unnecessary from: unknown; 0.19.2 still spawns it. `write_results` replaces it when a run saves.
    """
    import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async

    filesystem_async._results_queue = queue.Queue()


def patch_adam() -> None:
    """Replaces Megatron's Adam with ours, which has Transformer Engine's interface, so that a GPU run can resume with its state.

    Upstream: without Transformer Engine and APEX both optimizer modules use torch's AdamW, whose state has one step per
    parameter, not one per group as FusedAdam, and save it in a different layout. For the precision-aware optimizer Megatron asks for
    Transformer Engine's version, which fails where it is not installed.
    Unnecessary from: unknown; 0.19.2 still does so.
    """
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distrib_optimizer

    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    optimizer.is_te_min_version = lambda version, check_equality=True: True
    distrib_optimizer.Adam = FusedAdam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_TE_OPTIMIZER, distrib_optimizer.USING_APEX_OPTIMIZER = True, False
