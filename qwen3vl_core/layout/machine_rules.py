"""What a machine must have for an option to do what it says: refused with the reason where it is missing, never ignored.

Imports no torch: a command looks by nvidia-smi before it starts anything (`Machine.here`); a training process, which
has torch, looks for itself (`qwen3vl_core.training.setup.this_machine`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.gpus import visible
from qwen3vl_core.options import FinetuneOptions

# compute capabilities: Ampere, Ada, Hopper
AMPERE, ADA, HOPPER = 8.0, 8.9, 9.0
INSTALL = "pip install 'qwen3vl-console[gpu]'"


@dataclass(frozen=True)
class Machine:
    """What a run would find."""

    gpus: int
    capability: float | None = None
    """Compute capability of the oldest GPU, 9.0 for Hopper; None: not known."""
    transformer_engine: bool = False
    flash_attention: bool = False
    """Whether a flash-attn package is installed."""

    @classmethod
    def here(cls) -> Machine:
        """This machine by nvidia-smi and the installed packages."""
        installed = {name: importlib.util.find_spec(name) is not None for name in ("transformer_engine", "flash_attn", "flash_attn_3")}
        capabilities = _capabilities()
        return cls(
            len(capabilities), min((c for c in capabilities if c is not None), default=None), installed["transformer_engine"],
            installed["flash_attn"] or installed["flash_attn_3"],
        )  # fmt: skip


def _capabilities() -> list[float | None]:
    found: list[float | None] = []
    for gpu in visible("compute_cap") or visible():
        try:
            found.append(float(gpu["compute_cap"]))
        except (KeyError, ValueError):
            # an old driver does not know the question
            found.append(None)
    return found


def machine_faults(options: FinetuneOptions, machine: Machine) -> Iterator[str]:
    """Every option that this machine cannot serve, one line each."""
    o, old = options, machine.capability if machine.capability is not None else HOPPER
    if not machine.gpus:
        if o.precision == "fp8":
            yield "--precision fp8: needs Transformer Engine and an Ada, Hopper or newer GPU; this machine has no GPU; use --precision bf16"
        if o.attention != "auto":
            yield f"--attention {o.attention}: a kernel of GPUs, and this machine has none; use --attention auto"
        if o.recompute == "offload":
            yield "--recompute offload: this machine has no GPU, all activations are on the host; use --recompute full or leave it out"
        if o.optimizer_offload:
            yield f"--optimizer-offload {o.optimizer_offload:g}: this machine has no GPU, the optimizer is on the host; leave it out"
        return
    engine = f"needs Transformer Engine, which is not installed; {INSTALL}"
    if o.precision == "fp8":
        least, name = (HOPPER, "Hopper (9.0)") if o.fp8_recipe == "blockwise" else (ADA, "Ada (8.9)")
        if not machine.transformer_engine:
            yield f"--precision fp8: {engine}, or use --precision bf16"
        elif old < least:
            yield f"--precision fp8: {o.fp8_recipe} scaling needs {name} or newer, and a GPU here is of {old:g}; use --precision bf16"
    if o.precision == "bf16" and old < AMPERE:
        yield f"--precision bf16: needs Ampere (8.0) or newer, and a GPU here is of {old:g}; use --precision fp16"
    if o.attention == "flash" and old < AMPERE:
        yield f"--attention flash: needs Ampere (8.0) or newer, and a GPU here is of {old:g}; use --attention auto"
    if o.attention != "auto" and o.precision == "fp32":
        yield f"--attention {o.attention}: multiplies in bf16 or fp16 only; use --precision bf16, or --attention auto"
    elif o.cp > 1 and o.precision == "fp32" and machine.transformer_engine:
        yield f"--cp {o.cp}: Transformer Engine passes keys and values on in bf16 or fp16 only; use --precision bf16, or --cp 1"
    if o.attention == "flash" and o.cp > 1 and not machine.flash_attention:
        yield f"--attention flash: with --cp {o.cp} it needs the flash-attn package; pip install flash-attn, or use --attention fused"
    if o.attention == "fused" and not machine.transformer_engine:
        yield f"--attention fused: {engine}, or use --attention auto"
    if o.recompute == "offload" and not machine.transformer_engine:
        yield f"--recompute offload: {engine}, or use --recompute full"
    if o.optimizer_offload and not machine.transformer_engine:
        yield f"--optimizer-offload {o.optimizer_offload:g}: {engine}, or leave it out"


def check_machine(options: FinetuneOptions, machine: Machine) -> None:
    """Raises RequestError for the first option that this machine cannot serve."""
    for fault in machine_faults(options, machine):
        raise RequestError(fault)
