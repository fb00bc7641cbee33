"""Parameters of each pipeline stage on one GPU, by part of the model. Imports no torch.

`tests/layout` compares the counts with the model itself. Norms and biases of row parallel layers are replicated on every tensor
parallel rank, weights are split by the tensor parallel size, experts by the expert and the expert tensor parallel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import SIZES, Architecture, VisionArchitecture

PARTS = ("vision", "projector", "language", "experts")
# the demo's model, which is shipped with the package
TINY = Path(__file__).parent.parent / "demo" / "base_hf" / "config.json"


def published(name: str) -> Architecture:
    """The architecture of a published size, for planning without a checkpoint.

    Raises RequestError for an unknown size.
    """
    size = SIZES.get(name)
    if size is None:
        raise RequestError(f"--size {name}: no such size; choose one of {', '.join(SIZES)}")
    if name == "tiny":
        return Architecture.read(TINY)
    large_vision = size.vision_hidden_size == 1152
    return Architecture(
        num_layers=size.num_layers, hidden_size=size.hidden_size, num_heads=size.num_heads, num_kv_heads=size.num_kv_heads,
        head_dim=128, ffn_hidden_size=size.ffn_hidden_size, vocab_size=151936, tied=size.tied, rope_theta=5e6,
        mrope_section=(24, 20, 20), num_experts=size.num_experts, experts_per_token=8 if size.num_experts else 0,
        expert_ffn_hidden_size=size.expert_ffn_hidden_size, router_aux_loss_coef=0.001 if size.num_experts else 0.0,
        vision=VisionArchitecture(
            num_layers=size.vision_layers, hidden_size=size.vision_hidden_size, num_heads=16,
            ffn_hidden_size=4304 if large_vision else 4096, deepstack_layers=(8, 16, 24) if large_vision else (5, 11, 17),
            out_hidden_size=size.hidden_size,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class PipelineStage:
    """What one GPU of a pipeline stage holds."""

    index: int
    layers: int
    first: bool
    """Whether it holds the vision tower and the embeddings."""
    last: bool
    """Whether it holds the output layer."""
    counts: dict[str, int]
    """Parameters on one GPU, by PARTS."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def layer_counts(a: Architecture, tp: int = 1, ep: int = 1, etp: int = 1) -> tuple[int, int]:
    """Parameters of one language layer on one GPU: (all except experts, experts)."""
    h, q, k = a.hidden_size, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    shared = (h * (q + 2 * k) + q * h) // tp + 2 * h + 2 * a.head_dim
    if a.is_moe:
        # the router is not split
        return shared + h * a.num_experts, a.num_experts // ep * 3 * h * a.expert_ffn_hidden_size // etp
    return shared + 3 * h * a.ffn_hidden_size // tp, 0


def vision_counts(a: Architecture, tp: int = 1) -> tuple[int, int]:
    """Parameters on one GPU: (vision tower, mergers). Biases of column parallel layers are split, those of row parallel layers are not."""
    v = a.vision
    h, f = v.hidden_size, v.ffn_hidden_size
    layer = (4 * h * h + 3 * h + 2 * h * f + f) // tp + 2 * h + 4 * h
    tower = v.patch_dim * h + h + v.num_position_embeddings * h + v.num_layers * layer
    merged = h * v.spatial_merge_size**2
    merger = (merged * merged + merged + merged * v.out_hidden_size) // tp + v.out_hidden_size
    # the final merger has a norm over a patch, the deepstack mergers one over the merged patches
    mergers = merger + 2 * h + len(v.deepstack_layers) * (merger + 2 * merged)
    return tower, mergers


def stage_layers(options: FinetuneOptions, num_layers: int) -> list[int]:
    """Language layers of each pipeline stage. The layout must be valid."""
    if options.pp0_layers:
        return [options.pp0_layers] + [(num_layers - options.pp0_layers) // (options.pp - 1)] * (options.pp - 1)
    return [num_layers // options.pp] * options.pp


def stages(options: FinetuneOptions, a: Architecture) -> list[PipelineStage]:
    """Every pipeline stage with its parameters on one GPU. The layout must be valid (`rules.layout_problems`)."""
    dense, experts = layer_counts(a, options.tp, options.ep, options.etp)
    tower, mergers = vision_counts(a, options.tp)
    embedding = a.vocab_size * a.hidden_size // options.tp
    stages = []
    for index, layers in enumerate(stage_layers(options, a.num_layers)):
        first, last = index == 0, index == options.pp - 1
        language = layers * dense
        if first:
            language += embedding
        if last:
            # with several stages the last one holds a second copy of a tied embedding
            language += a.hidden_size + (embedding if not a.tied or not first else 0)
        counts = {
            "vision": tower if first else 0, "projector": mergers if first else 0, "language": language, "experts": layers * experts,
        }  # fmt: skip
        stages.append(PipelineStage(index, layers, first, last, counts))
    return stages


def total_parameters(a: Architecture) -> int:
    """Parameters of the whole model; a tied embedding is counted once."""
    return stages(FinetuneOptions(), a)[0].total


def active_share(a: Architecture) -> Fraction:
    """The share of the experts that compute for one token."""
    return Fraction(a.experts_per_token, a.num_experts) if a.is_moe else Fraction(1)
