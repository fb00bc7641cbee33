"""Throughput figures: model FLOPs of a batch, and the GPU's memory, utilisation and power."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch

from qwen3vl_core.layout.flops import attention_forward, language_forward, passes, vision_forward
from qwen3vl_core.run_metrics import GPU_UTILISATION, GPU_WATTS
from qwen3vl_core.sizes import Architecture

# NVML is queried at most this often
NVML_SECONDS = 1.0
# dense bf16 tensor-core FLOP/s by the data sheets, without sparsity
PEAK_BF16 = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L20": 119.5e12, "L4": 121e12,
    "A40": 150e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 6000 Ada": 182e12,
}  # fmt: skip


def peak_flops(gpu: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its device name; None for one that is not in the table."""
    return next((PEAK_BF16[name] for name in sorted(PEAK_BF16, key=len, reverse=True) if name in gpu), None)


def sample_lengths(batch: Any) -> list[int]:
    """Tokens of each sample of a micro batch (each document of a packed row), without padding. Empty for a batch without lengths."""
    lengths = getattr(batch, "lengths", None)
    return [] if lengths is None else lengths.tolist()


def training_flops(a: Architecture, batch: Any, frozen: Collection[str] = (), *, low_rank: bool = False) -> float:
    """Model FLOPs of forward and backward over a micro batch, language and vision, from the actual lengths of its samples.

    h: hidden size, d: head size, q and k: query and key/value heads, f: FFN columns, V: vocabulary size; v, f_v: hidden size and FFN
    columns of the vision tower, m: its merge size. Matrix products only, a multiply-add counts as two. Forward:

    - a language layer on a sample of n tokens: n [2 h d (2 q + 2 k) + 6 h f] + 2 q d n^2 (causal attention needs half of the
      square). With experts, the FFN term covers the selected experts and the router. Output layer: 2 n h V.
    - a vision layer on the p patches of a frame: p (8 v^2 + 4 v f_v) + 4 v p^2. Patch embedding: 2 p v x values of a patch.
    - a merger (one, and one for every deepstack layer): 2 (m^2 v)^2 + 2 m^2 v h for each of p / m^2 tokens.

    Backward: the forward's FLOPs once for the weight gradients where a part is trained, and once for the activation gradients where
    it or a part before it is trained (attention: both). So full fine-tuning takes 3 times its forward, the patch embedding twice.
    Padding, the optimizer and activation recomputation do not count.
    low_rank: LoRA adapters are trained and the weights are frozen; the adapters' few FLOPs are left out.
    """
    frames = [int(h * w) for t, h, w in getattr(batch, "image_grid_thw", torch.empty(0, 3)).tolist() for _ in range(int(t))]
    vision = "vision" not in frozen
    projector, language = "projector" not in frozen, "language" not in frozen
    vision_is_trained = bool(frames) and (vision or projector)
    matrices, vocabulary = language_forward(a)
    total = 0.0
    for length in sample_lengths(batch):
        total += length * (matrices + vocabulary) * passes(language and not low_rank, vision_is_trained or language)
        total += attention_forward(a, length) * (3 if vision_is_trained or language else 1)
    for patches in frames:
        tower, mergers = vision_forward(a, patches // a.vision.spatial_merge_size**2)
        total += tower * passes(vision and not low_rank, vision) + mergers * passes(projector and not low_rank, vision or projector)
        if vision:
            # pixels need no gradients
            total -= 2.0 * patches * a.vision.patch_dim * a.vision.hidden_size
    return total


class Gpu:
    """Utilisation and power of this rank's GPU from NVML, where nvidia-ml-py and the driver are installed."""

    def __init__(self) -> None:
        self._handle: Any = None
        self.problem = ""
        """Why utilisation and power are not recorded on a machine with a GPU."""
        self._queried_at = 0.0
        self._last: dict[str, float] = {}
        self.peak_flops: float | None = None
        """Dense bf16 FLOP/s; None on a CPU, and for a GPU that is not in the table."""
        if not torch.cuda.is_available():
            return
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.peak_flops = peak_flops(device.name)
        uuid = str(device.uuid)
        self._handle = self.open(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

    def open(self, uuid: str) -> Any:
        """NVML's handle of a GPU by its UUID; None where NVML is not usable, which `problem` then explains. Training continues."""
        try:
            import pynvml
        except ImportError:
            self.problem = "utilisation and power are not recorded: nvidia-ml-py is not installed"
            return None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            # no driver library, a container without permissions, an unknown UUID
            self.problem = f"utilisation and power are not recorded: {error}"
            return None

    def figures(self) -> dict[str, float]:
        """{GPU_UTILISATION: percent, GPU_WATTS: …}, at most `NVML_SECONDS` old; empty where NVML is not usable."""
        now = time.monotonic()
        if self._handle is None or (self._last and now - self._queried_at < NVML_SECONDS):
            return self._last
        self._queried_at = now
        try:
            self._last = {
                GPU_UTILISATION: float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
                GPU_WATTS: round(self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000, 1),
            }
        except self._nvml.NVMLError:
            self._handle, self._last = None, {}
        return self._last


def peak_memory(*, since_start: bool = False) -> tuple[float, ...]:
    """Peak bytes that this rank allocated and reserved since the last call; empty on a CPU.

    since_start: over the whole run, as PyTorch counts a CUDA graph's memory only when the graph is captured.
    """
    if not torch.cuda.is_available():
        return ()
    peaks = float(torch.cuda.max_memory_allocated()), float(torch.cuda.max_memory_reserved())
    if not since_start:
        torch.cuda.reset_peak_memory_stats()
    return peaks
