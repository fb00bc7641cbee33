"""Whether the micro batches of a run are replayed as CUDA graphs, and why not where they are not. Imports no torch."""

from __future__ import annotations

from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture


def no_graph_because(options: FinetuneOptions, architecture: Architecture, machine: Machine) -> str:
    """Why forward and backward of a micro batch run kernel by kernel; empty if they are replayed as one CUDA graph."""
    o = options
    if o.cuda_graph == "off":
        return "--cuda-graph off"
    reasons = (
        (not machine.gpus, "this machine has no GPU"),
        (not machine.transformer_engine, "Transformer Engine is not installed"),
        # fp8 can be captured, but a resumed run had other losses than an uninterrupted one: not before that is understood
        (o.precision != "bf16", f"--precision {o.precision}: graphs are made for bf16"),
        (architecture.is_moe, "the host has to know how many tokens each expert gets"),
        # collectives can be captured, but that has not been tried
        (o.tp > 1, f"--tp {o.tp}: ranks exchange activations in every layer"),
        (o.pp > 1, f"--pp {o.pp}: stages wait for each other"),
        (o.cp > 1, f"--cp {o.cp}: documents are split on the host"),
        (o.recompute == "offload", "--recompute offload copies activations to the host"),
        (o.overlap_param_gather, "--overlap-param-gather waits for weights in each layer"),
        (o.attention == "flash" and not machine.flash_attention, "--attention flash without the flash-attn package"),
    )
    return next((reason for holds, reason in reasons if holds), "")
