"""Whether the micro batches of a run are replayed as CUDA graphs, and why not where they are not. Imports no torch."""

from __future__ import annotations

from qwen3vl_core.layout.machine_rules import Machine
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture

GROUPED_KERNEL = 9.0
"""CUDA capability from which torch has a kernel for `grouped_mm`."""


GATHERED_RANKS = 2
"""Most ranks whose experts' tokens are gathered where each layer keeps its activations: each rank reserves rows for all experts of all
tokens of the group, of which it computes a share."""


def most_gathered(options: FinetuneOptions, architecture: Architecture) -> int:
    """Most ranks that gather tokens. With recomputation one layer has such rows at a time; beyond the experts of a token gathering moves
    more bytes than sending."""
    return architecture.experts_per_token if options.recompute in ("sel", "full") else GATHERED_RANKS


def gathers_tokens(options: FinetuneOptions, architecture: Architecture, machine: Machine) -> bool:
    """Whether the ranks that share the experts gather each other's tokens, in sizes that are known before, instead of sending each token
    to its experts, in numbers that the host reads."""
    return architecture.is_moe and options.ep > 1 and not no_graph_because(options, architecture, machine)


def no_graph_because(options: FinetuneOptions, architecture: Architecture, machine: Machine) -> str:
    """Why forward and backward of a micro batch run kernel by kernel; empty if they are replayed as one CUDA graph."""
    o, moe = options, architecture.is_moe
    if o.cuda_graph == "off":
        return "--cuda-graph off"
    reasons = (
        (not machine.gpus, "this machine has no GPU"),
        (not machine.transformer_engine, "Transformer Engine is not installed"),
        (o.precision == "fp32", "--precision fp32: graphs are made for bf16, fp16 and fp8"),
        (moe and o.precision != "bf16", f"--precision {o.precision}: Transformer Engine splits the experts' tokens on the host"),
        (
            moe and (o.tp * o.etp > 1 or o.ep > most_gathered(o, architecture)),
            "tokens are sent to experts on other ranks, in numbers that the host reads",
        ),
        # ranks can gather tokens only if they have the same number of them
        (moe and o.ep > 1 and not o.packing, "rows that are not packed differ in length between the ranks that share the experts"),
        (moe and o.ep > 1 and o.cp > 1, f"--ep {o.ep} with --cp {o.cp}"),
        (moe and (machine.capability or GROUPED_KERNEL) < GROUPED_KERNEL, "this GPU has no grouped matrix product for experts"),
        (moe and o.pp > 1, f"--pp {o.pp}: the loss of the experts' balance is weighted by each micro batch"),
        # these have not been tried together
        (o.precision == "fp8" and o.tp * o.pp * o.cp > 1, "--precision fp8 with tensor, pipeline or context parallelism"),
        (o.pp > 1 and o.vp > 1, f"--pp {o.pp} with --vp {o.vp}"),
        (o.pp > 1 and o.recompute != "none", f"--pp {o.pp} with --recompute {o.recompute}"),
        (o.pp > 1 and o.precision == "fp16", f"--pp {o.pp} with --precision fp16"),
        (o.pp > 1 and o.overlap_grad_reduce, "--overlap-grad-reduce with --pp: gradients are reduced when their kernels are launched"),
        (o.recompute == "offload", "--recompute offload copies activations to the host"),
        (o.overlap_param_gather, "--overlap-param-gather waits for weights in each layer"),
    )
    return next((reason for holds, reason in reasons if holds), "")
