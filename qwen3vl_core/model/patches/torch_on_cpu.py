"""Patches of torch for running without CUDA: the CUDA calls of Megatron-Core are mapped to their CPU equivalents.

Megatron-Core uses CUDA in many places: streams, events, the current device, `device="cuda"` in factories,
`tensor.type() == "torch.cuda.FloatTensor"`. Functions are patched instead of using a `TorchFunctionMode`, because a mode is not
active in the backward pass, where recomputation runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")


def _means_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


class _Stream:
    """A stream on a device without streams: every call succeeds and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _Event(_Stream):
    """An event that is always complete."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


def _answer(module: Any, name: str, value: Any) -> None:
    """Replace `module.name` by a function that returns `value`, or `value()` if it is callable."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return value() if callable(value) else value

    setattr(module, name, replacement)


def patch_cuda_module() -> None:
    """`torch.cuda` stands in for the CPU: nothing to synchronize, no memory in use, one device, one random number generator.

    Upstream: Megatron-Core calls `torch.cuda` without checking whether CUDA is available: `current_device()` at every collective,
    `get_rng_state()` in the random number tracker, streams and events in the schedules and in saving.
    Unnecessary from: unknown; 0.19.2 still does so.
    """
    cuda: Any = torch.cuda
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


def _on_cpu_instead(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor factory that allocates CUDA tensors on the CPU, and never pinned ones."""

    @functools.wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and _means_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return on_cpu


def patch_tensors() -> None:
    """Factories, `Tensor.to`, `.cuda` and `.pin_memory` use the CPU for CUDA; `Tensor.type` reports CPU tensors as CUDA tensors.

    Upstream: `device="cuda"` is written out in Megatron-Core's factories, and optimizer, distributed optimizer and gradient
    clipping accept parameters of type "torch.cuda.FloatTensor" only.
    Unnecessary from: unknown; 0.19.2 still does so.
    """
    # `with torch.device(...)` identifies the factories by identity, in a set built on first use: built now, it holds the
    # originals, so that transformers' from_pretrained still builds on the meta device in this process
    _device_constructors()
    for name in (
        "tensor", "as_tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "linspace", "eye",
        "empty_like", "zeros_like", "ones_like", "full_like",
    ):  # fmt: skip
        setattr(torch, name, _on_cpu_instead(getattr(torch, name)))
    tensor: Any = torch.Tensor
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
    module: Any = torch.nn.Module
    module.cuda = lambda self, device=None: self
