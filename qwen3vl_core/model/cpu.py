"""Everything that is patched so that Megatron-Core 0.16 runs on a CPU. The only module that patches anything.

Megatron-Core asks for CUDA in many small places: streams, events, the current device, `device="cuda"` in factories,
`tensor.type() == "torch.cuda.FloatTensor"`. Where CUDA is absent each of these is answered with its CPU meaning.
Functions are patched, not a `TorchFunctionMode`: a mode is not active in the backward pass, where recompute runs.

`install()` runs once, before anything of megatron is imported (`qwen3vl_core.model` does it), and does nothing where CUDA
is available. `finish()` runs when megatron is imported and mends what needs megatron's own modules.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")
ONE_THREAD_PARAMETERS = 20_000_000
_installed = False


def on_cpu() -> bool:
    """True where there is no CUDA device, so that the patches and the local layer spec are in use."""
    return not torch.cuda.is_available() if not _installed else True


def _means_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


class _Stream:
    """A stream on a device that has none: every call succeeds and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 1

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


class _Event(_Stream):
    """An event that has always happened."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


def _answer(module: Any, name: str, value: Any) -> None:
    """Replace `module.name` by a function that returns `value`, or what `value()` makes."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return value() if callable(value) else value

    setattr(module, name, replacement)


def _patch_cuda_module() -> None:
    cuda = torch.cuda
    for name in ("synchronize", "empty_cache", "set_device", "ipc_collect", "reset_peak_memory_stats"):
        _answer(cuda, name, None)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        _answer(cuda, name, 0)
    _answer(cuda, "current_device", lambda: CPU)
    _answer(cuda, "device_count", 1)
    _answer(cuda, "current_stream", _Stream)
    _answer(cuda, "default_stream", _Stream)
    _answer(cuda, "stream", contextlib.nullcontext)
    cuda.Stream, cuda.Event = _Stream, _Event
    _answer(cuda.nvtx, "range_push", None)
    _answer(cuda.nvtx, "range_pop", None)
    # one generator: what Megatron's tracker calls the CUDA state is the CPU generator's
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda device="cuda": torch.get_rng_state()
        module.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
        module.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
    cuda.default_generators = {CPU: torch.default_generator}
    cuda._lazy_call = lambda call, **kwargs: call()


def _on_cpu_instead(function):
    """A tensor factory that makes on the CPU what was asked for on CUDA, unpinned."""

    @functools.wraps(function)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _means_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return made


def _patch_tensors() -> None:
    # `with torch.device(...)` knows the factories by identity, in a set made when it is first used: made now, it holds the
    # real ones, so that transformers' from_pretrained still builds on the meta device in this process
    _device_constructors()
    for name in (
        "tensor", "as_tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "linspace", "eye",
        "empty_like", "zeros_like", "ones_like", "full_like",
    ):  # fmt: skip
        setattr(torch, name, _on_cpu_instead(getattr(torch, name)))
    tensor = torch.Tensor
    for name in ("cuda", "pin_memory"):
        setattr(tensor, name, lambda self, *args, **kwargs: self)
    tensor.record_stream = lambda self, stream: None
    original_to, original_type = tensor.to, tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _means_cuda(args[0]):
            args = (CPU, *args[1:])
        if "device" in kwargs and _means_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original_type(self, *args, **kwargs)
        # the optimizer and gradient clipping compare with "torch.cuda.FloatTensor"
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    tensor.to, tensor.type = to, type_
    torch.nn.Module.cuda = lambda self, device=None: self


@contextlib.contextmanager
def _light_imports():
    """Import megatron in 3 s instead of 7: without the storage client (1.9 s), without Weights & Biases (0.7 s), which it wants for
    inference engines that nothing here starts, and without compiling its fusions.

    `torch.compile` needs a C++ compiler on a CPU and pays for itself on a GPU only.
    """
    compile_, absent = torch.compile, [name for name in ("multistorageclient", "wandb") if name not in sys.modules]
    torch.compile = lambda model=None, *args, **kwargs: model if model is not None else (lambda function: function)
    sys.modules |= dict.fromkeys(absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch.compile = compile_
        for name in absent:
            sys.modules.pop(name, None)


def _uneven(gather, reduce_scatter) -> tuple:
    """Megatron's gather and reduce-scatter along the first dimension for parts of different lengths, which gloo has only
    for equal ones: all are made as long as the longest. Ranks receive different numbers of tokens for their experts."""

    def padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.cat((tensor, tensor.new_zeros(rows - tensor.shape[0], *tensor.shape[1:])))

    @functools.wraps(gather)
    def gather_parts(input_, group, output_split_sizes=None, use_global_buffer=False):
        sizes = output_split_sizes
        if sizes is None or len(set(sizes)) == 1 or group.size() == 1:
            return gather(input_, group, sizes, use_global_buffer)
        most = max(sizes)
        parts = gather(padded(input_, most), group).split(most)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @functools.wraps(reduce_scatter)
    def reduce_scatter_parts(input_, group, input_split_sizes=None, use_global_buffer=False):
        sizes = input_split_sizes
        if sizes is None or len(set(sizes)) == 1 or group.size() == 1:
            return reduce_scatter(input_, group, sizes, use_global_buffer)
        most = max(sizes)
        whole = torch.cat([padded(part, most) for part in input_.split(sizes)])
        return reduce_scatter(whole, group)[: sizes[group.rank()]].contiguous()

    return gather_parts, reduce_scatter_parts


def _patch_megatron() -> None:
    """What can be mended only in megatron's own modules."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distrib_optimizer
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    from qwen3vl_core.training.cpu_adam import FusedAdam

    # 0.16.1 names it without importing it where Transformer Engine is absent
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    # the alltoall dispatcher moves split sizes out of tensors for CUDA tensors only
    token_dispatcher.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
        tensor.numpy() if torch.is_tensor(tensor) and as_numpy else tensor
    )
    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = _uneven(
        mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim
    )
    # a synchronous save needs no manager process, which would import __main__ again
    filesystem_async._results_queue = queue.Queue()
    # the optimizer state then has the layout of Transformer Engine's FusedAdam, so that a GPU run can go on from it
    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    distrib_optimizer.Adam = FusedAdam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_TE_OPTIMIZER, distrib_optimizer.USING_APEX_OPTIMIZER = True, False


def install() -> None:
    """Patch torch and import Megatron-Core so that it runs on this CPU; nothing where CUDA is available, or twice."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    _patch_cuda_module()
    _patch_tensors()
    with _light_imports():
        import megatron.core.models.gpt
        import megatron.core.tensor_parallel  # noqa: F401

        _patch_megatron()


def suit_threads(parameters: int) -> int:
    """One thread for a model of few parameters; returns how many there were.

    Its operations are over before a second thread has anything to do, and where other processes want the cores too,
    threads that wait for each other at every operation take ten times as long.
    """
    before = torch.get_num_threads()
    if parameters < ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return before
