"""What options need of the machine. An option that the machine cannot provide is refused with the reason, never ignored.

Imports no torch: a command checks with nvidia-smi before it starts anything (`Machine.here`); a training process, which
has torch, checks itself (`qwen3vl_core.training.setup.this_machine`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from qwen3vl_core.layout.gpus import visible
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.problems import Problem

# compute capabilities: Ampere, Ada, Hopper
AMPERE, ADA, HOPPER = 8.0, 8.9, 9.0


@dataclass(frozen=True)
class Machine:
    """The hardware and packages that a run would use."""

    gpus: int
    capability: float | None = None
    """Compute capability of the oldest GPU, 9.0 for Hopper; None: not known."""
    transformer_engine: bool = False
    flash_attention: bool = False
    """Whether a flash-attn package is installed."""

    @classmethod
    def here(cls, ids: str | None = None) -> Machine:
        """This machine by nvidia-smi and the installed packages; of its GPUs those that --gpu-ids names, if given."""
        installed = {name: importlib.util.find_spec(name) is not None for name in ("transformer_engine", "flash_attn", "flash_attn_3")}
        capabilities = _capabilities(ids)
        return cls(
            len(capabilities), min((c for c in capabilities if c is not None), default=None), installed["transformer_engine"],
            installed["flash_attn"] or installed["flash_attn_3"],
        )  # fmt: skip


ASSUMED_GPU = Machine(gpus=1, capability=9.0, transformer_engine=True)
"""The machine that the estimate assumes where there is no GPU: a Hopper GPU with Transformer Engine installed."""


def _capabilities(ids: str | None) -> list[float | None]:
    capabilities: list[float | None] = []
    for gpu in visible("compute_cap", ids=ids) or visible(ids=ids):
        try:
            capabilities.append(float(gpu["compute_cap"]))
        except (KeyError, ValueError):
            # an old driver does not support the query
            capabilities.append(None)
    return capabilities


def machine_problems(options: FinetuneOptions, machine: Machine) -> Iterator[Problem]:
    """Every option that this machine cannot provide."""
    o, old = options, machine.capability if machine.capability is not None else HOPPER
    bf16, no_kernel = {"precision": "bf16"}, {"attention": "auto"}
    no_offload, no_recompute_offload = {"optimizer_offload": None}, {"recompute": "full"}
    if not machine.gpus:
        if o.precision == "fp8":
            yield Problem("fp8-without-gpu", "precision", "fp8", remedies=(bf16,))
        if o.attention != "auto":
            yield Problem("attention-without-gpu", "attention", o.attention, remedies=(no_kernel,))
        if o.recompute == "offload":
            yield Problem("recompute-offload-without-gpu", "recompute", "offload", remedies=(no_recompute_offload, {"recompute": None}))
        if o.optimizer_offload:
            yield Problem("optimizer-offload-without-gpu", "optimizer_offload", o.optimizer_offload, remedies=(no_offload,))
        return
    engine, capability = "needs-transformer-engine", {"capability": old}
    if o.precision == "fp8":
        least, name = (HOPPER, "Hopper (9.0)") if o.fp8_recipe == "blockwise" else (ADA, "Ada (8.9)")
        if not machine.transformer_engine:
            yield Problem(engine, "precision", "fp8", remedies=(bf16,))
        elif old < least:
            yield Problem("fp8-on-old-gpu", "precision", "fp8", {"recipe": o.fp8_recipe, "least": name, **capability}, (bf16,))
    if o.precision == "bf16" and old < AMPERE:
        yield Problem("needs-ampere", "precision", "bf16", capability, ({"precision": "fp16"},))
    if o.attention == "flash" and old < AMPERE:
        yield Problem("needs-ampere", "attention", "flash", capability, (no_kernel,))
    if o.attention != "auto" and o.precision == "fp32":
        yield Problem("attention-fp32", "attention", o.attention, remedies=(bf16, no_kernel))
    elif o.cp > 1 and o.precision == "fp32" and machine.transformer_engine:
        yield Problem("context-parallel-fp32", "cp", o.cp, remedies=(bf16, {"cp": 1}))
    if o.attention == "flash" and o.cp > 1 and not machine.flash_attention:
        yield Problem("flash-attention-missing", "attention", "flash", {"cp": o.cp}, ({"attention": "fused"},))
    if o.attention == "fused" and not machine.transformer_engine:
        yield Problem(engine, "attention", "fused", remedies=(no_kernel,))
    if o.recompute == "offload" and not machine.transformer_engine:
        yield Problem(engine, "recompute", "offload", remedies=(no_recompute_offload,))
    if o.optimizer_offload and not machine.transformer_engine:
        yield Problem(engine, "optimizer_offload", o.optimizer_offload, remedies=(no_offload,))
    if o.use_precision_aware_optimizer and not machine.transformer_engine:
        without = {"use_precision_aware_optimizer": None, "exp_avg_dtype": None, "exp_avg_sq_dtype": None}
        yield Problem(engine, "use_precision_aware_optimizer", True, remedies=(without,))
