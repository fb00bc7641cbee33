"""Throughput figures: model FLOPs of a batch, and the GPU's memory, utilisation and power."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch

from qwen3vl_core.layout.flops import model_flops
from qwen3vl_core.layout.gpus import peak_flops
from qwen3vl_core.run_metrics import GPU_UTILISATION, GPU_WATTS
from qwen3vl_core.sizes import Architecture

# NVML is queried at most this often
NVML_SECONDS = 1.0


def sample_lengths(batch: Any) -> list[int]:
    """Tokens of each sample of a micro batch (each document of a packed row), without padding. Empty for a batch without lengths."""
    lengths = getattr(batch, "lengths", None)
    return [] if lengths is None else lengths.tolist()


def patch_count(batch: Any) -> int:
    """Patches of the pictures and videos of a micro batch."""
    grids = [getattr(batch, name, None) for name in ("image_grid_thw", "video_grid_thw")]
    return sum(int(grid.prod(dim=1).sum()) for grid in grids if grid is not None)


def training_flops(a: Architecture, batch: Any, frozen: Collection[str] = (), *, low_rank: bool = False) -> float:
    """`model_flops` of a micro batch, from the actual lengths of its samples."""
    frames = [int(h * w) for t, h, w in getattr(batch, "image_grid_thw", torch.empty(0, 3)).tolist() for _ in range(int(t))]
    return model_flops(a, sample_lengths(batch), frames, frozen, low_rank=low_rank).model


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


class GpuClock:
    """`with clock: …` marks work of the current stream. Its time is known when the GPU has done it, and nothing waits for that."""

    def __init__(self) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def __enter__(self) -> None:
        if torch.cuda.is_available():
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float | None:
        """Of the last work; None on a CPU, before any work, and while the GPU is still at it."""
        if self._events is None or not self._events[1].query():
            return None
        return self._events[0].elapsed_time(self._events[1]) / 1000


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
