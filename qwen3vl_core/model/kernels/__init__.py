"""Our own kernels, most of them in Triton, and when they are used.

A CUDA build of torch includes Triton. Without CUDA or Triton the layers use Megatron's and Transformer Engine's modules.

`QWEN3VL_KERNELS` switches kernels off, for measuring only: `-swiglu` one of them, `-swiglu,-qk_rope` two, `none` all. With `interpret`
they run on a CPU too, in Triton's interpreter, as the tests compare them; `TRITON_INTERPRET=1` must be set when Triton is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os

from torch import Tensor

KERNELS = {
    "qk_rope": "norm of query and key, and rotary embedding",
    "swiglu": "SwiGLU",
    "cross_entropy": "loss of each token",
    "weight_gradients": "gradient of embeddings and output layer, added in place",
    "expert_order": "order of tokens by their experts",
    "expert_rows": "rows of tokens for their experts, and their sums",
    "expert_swiglu": "SwiGLU of experts, weighted by probabilities",
    "expert_gradients": "weight gradients of experts, added in place",
}
FUSIONS = {
    "vision_fusions": "bias and GELU, bias and residual of the vision tower, by Megatron",
    "linear_gradients": "weight gradients of linear layers, added in place by Transformer Engine",
    "trained_logits": "logits of trained tokens only",
}
"""What else the variable switches off, so that its gain can be measured."""
SWITCH = "QWEN3VL_KERNELS"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _switches() -> frozenset[str]:
    """The words of the environment variable. Raises ValueError for other words."""
    words = frozenset(os.environ.get(SWITCH, "").replace(",", " ").split())
    allowed = ["none", "interpret", *(f"-{name}" for name in (*KERNELS, *FUSIONS))]
    if unknown := sorted(words.difference(allowed)):
        raise ValueError(f"{SWITCH}: {unknown[0]!r} is not a switch; choose from {', '.join(allowed)}")
    return words


def switched_off(name: str) -> bool:
    """Whether the environment variable switches the kernel or fusion `name` off."""
    return bool(_switches() & {"none", f"-{name}"})


def enabled(name: str, tensor: Tensor) -> bool:
    """Whether the Triton kernel `name` computes on `tensor`'s device."""
    on_device = tensor.is_cuda or (tensor.device.type == "cpu" and "interpret" in _switches())
    return on_device and _has_triton() and not switched_off(name)
