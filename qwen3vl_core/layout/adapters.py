"""What a LoRA run trains: which matrices have an adapter, and how many parameters that is. Imports no torch.

LoRA (Hu et al., 2021, arXiv:2106.09685): a frozen matrix W [out, in] gets A [r, in] and B [out, r]; the layer computes
W x + (alpha / r) B A x. Megatron fuses query, key and value into one matrix, and gate and up projection into another: each fused
matrix has one A.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.parameters import stage_layers, stages, total_parameters
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.options.finetune import LORA_TARGETS
from qwen3vl_core.sizes import Architecture

PARTS = ("language", "vision", "projector")
Matrix = tuple[str, str, int, int, int]
"""(part, Megatron name, output size, input size, number of such matrices)."""


@dataclass(frozen=True)
class Adapters:
    """The adapter settings of a LoRA run."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = LORA_TARGETS
    parts: tuple[str, ...] = ("language",)
    """Parts of the model that have adapters."""
    dropout: float = 0.0
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def of(cls, options: FinetuneOptions) -> Adapters | None:
        """The settings in a run's options; None for a run without adapters."""
        if not options.lora_rank:
            return None
        alpha = options.lora_rank if options.lora_alpha is None else options.lora_alpha
        targets, parts = tuple(options.lora_target_list()), tuple(options.lora_parts())
        return cls(options.lora_rank, alpha, targets, parts, options.lora_dropout, options.seed)

    @classmethod
    def read(cls, values: Any, file: str) -> Adapters:
        """From the JSON values in `file`. Raises RequestError when they are invalid."""
        try:
            adapters = cls(
                int(values["rank"]), float(values["alpha"]), tuple(map(str, values["targets"])), tuple(map(str, values["parts"])),
                float(values["dropout"]), int(values["seed"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError):
            raise RequestError(f"{file}: does not describe its adapters; copy the checkpoint again") from None
        if adapters.rank < 1:
            raise RequestError(f"{file}: adapters of rank {adapters.rank}; copy the checkpoint again")
        return adapters

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"targets": list(self.targets), "parts": list(self.parts)}


def matrices(adapters: Adapters, a: Architecture) -> Iterator[Matrix]:
    """Every kind of matrix that has an adapter, in the whole model."""
    v, layers = a.vision, a.num_layers
    q, k = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    merged = v.hidden_size * v.spatial_merge_size**2
    experts = layers * a.num_experts
    mlp, width, count = ("mlp.experts", a.expert_ffn_hidden_size, experts) if a.is_moe else ("mlp", a.ffn_hidden_size, layers)
    candidates: list[Matrix] = [
        ("language", "self_attention.linear_qkv", q + 2 * k, a.hidden_size, layers),
        ("language", "self_attention.linear_proj", a.hidden_size, q, layers),
        ("language", f"{mlp}.linear_fc1", 2 * width, a.hidden_size, count),
        ("language", f"{mlp}.linear_fc2", a.hidden_size, width, count),
        ("vision", "self_attention.linear_qkv", 3 * v.hidden_size, v.hidden_size, v.num_layers),
        ("vision", "self_attention.linear_proj", v.hidden_size, v.hidden_size, v.num_layers),
        ("vision", "mlp.linear_fc1", v.ffn_hidden_size, v.hidden_size, v.num_layers),
        ("vision", "mlp.linear_fc2", v.hidden_size, v.ffn_hidden_size, v.num_layers),
        ("projector", "linear_fc1", merged, merged, 1 + len(v.deepstack_layers)),
        ("projector", "linear_fc2", v.out_hidden_size, merged, 1 + len(v.deepstack_layers)),
    ]
    return (m for m in candidates if m[0] in adapters.parts and m[1].rsplit(".", 1)[-1] in adapters.targets)


def trained(adapters: Adapters, a: Architecture) -> int:
    """Parameters of all adapters."""
    return sum(count * adapters.rank * (out + into) for _, _, out, into, count in matrices(adapters, a))


def stage_parameters(adapters: Adapters, options: FinetuneOptions, a: Architecture, stage: int) -> dict[str, int]:
    """Parameters of the adapters on one GPU of a pipeline stage, by part (`layout.parameters.PARTS`).

    The adapter matrix that is not split (A of qkv and fc1, B of proj and fc2) is replicated on every tensor parallel rank.
    """
    counts = dict.fromkeys(("vision", "projector", "language", "experts"), 0)
    layers = stage_layers(options, a.num_layers)[stage]
    for part, name, out, into, count in matrices(adapters, a):
        if part != "language" and stage:
            continue
        expert = ".experts." in name
        tp = options.etp if expert else options.tp
        split, replicated = (out, into) if name.endswith(("qkv", "fc1")) else (into, out)
        number = count * layers // a.num_layers if part == "language" else count
        counts["experts" if expert else part] += number // (options.ep if expert else 1) * adapters.rank * (split // tp + replicated)
    return counts


def trained_lines(options: FinetuneOptions, a: Architecture) -> list[str]:
    """The printed table of what a run trains: a line for each part, or for each kind of matrix that has an adapter, and the total."""
    adapters = Adapters.of(options)
    return _parts(options, a) if adapters is None else _matrices(adapters, a)


def _parts(options: FinetuneOptions, a: Architecture) -> list[str]:
    counts, frozen = stages(FinetuneOptions(), a)[0].counts, options.frozen_parts()
    trained = {part: count for part, count in counts.items() if count and ("language" if part == "experts" else part) not in frozen}
    lines = [f"trained: {sum(trained.values()):,} of {sum(counts.values()):,} parameters"]
    for part, count in counts.items():
        if count:
            lines.append(f"  {part:<10} {count:>17,}  {'trained' if part in trained else 'frozen (--freeze)'}")
    return lines


def _matrices(adapters: Adapters, a: Architecture) -> list[str]:
    rows = list(matrices(adapters, a))
    numbers = [count * adapters.rank * (out + into) for _, _, out, into, count in rows]
    total, size = sum(numbers), total_parameters(a)
    dropout = f", dropout {adapters.dropout:g}" if adapters.dropout else ""
    lines = [
        f"trained: {total:,} parameters of adapters (LoRA, rank {adapters.rank}, alpha {adapters.alpha:g}{dropout}), {total / size:.3%} "
        f"of the model's {size:,}, which are frozen",
        f"  {'part':<10} {'matrix':<28} {'out x in':>15} {'matrices':>9} {'trained':>14}",
    ]  # fmt: skip
    for (part, name, out, into, count), number in zip(rows, numbers, strict=True):
        lines.append(f"  {part:<10} {name:<28} {f'{out} x {into}':>15} {count:>9,} {number:>14,}")
    return lines
