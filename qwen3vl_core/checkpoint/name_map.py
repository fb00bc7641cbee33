"""The name map: which Hugging Face tensors make up each part of each tensor in a Megatron checkpoint.

A table read in both directions. A `Region` is a box in one Megatron tensor (as it is on disk: layers stacked along a
leading axis) and the Hugging Face tensors that fill it, through one of these rules:

- `copy`       one tensor, the same numbers.
- `rows`       several tensors, one below the other.
- `transposed` one matrix, columns for rows (the published files keep their experts so).
- `groups`     query, key and value of the language tower: Megatron keeps them together by key/value head.
- `heads`      query, key and value of the vision tower: Hugging Face has all queries first, Megatron goes head by head.

Two ways of naming the mergers are in use in Megatron checkpoints, `bridge` and `pai`, and three of keeping the experts of
a layer in Hugging Face files (`Experts`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import Architecture

Shape = tuple[int, ...]

HF_LANGUAGE, HF_VISION = "model.language_model.", "model.visual."
HF_OUTPUT = "lm_head.weight"
HF_EMBEDDING = HF_LANGUAGE + "embed_tokens.weight"
LANGUAGE, VISION = "language_model.", "vision_model."


@dataclass(frozen=True)
class Region:
    """A box in a Megatron tensor, and what fills it."""

    key: str
    global_shape: Shape
    offset: Shape
    size: Shape
    hf: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    """Of what is taken from each tensor: all of it, or the slice of one expert."""
    rule: str = "copy"
    groups: int = 1
    """`groups`: key/value heads; `heads`: attention heads."""
    at: int | None = None
    """Where the Hugging Face tensors are stacks of `stack` experts: the slice that this region takes."""
    stack: int = 0

    @property
    def stored_shapes(self) -> tuple[Shape, ...]:
        """The shapes of the whole tensors in the files."""
        return self.hf_shapes if self.at is None else tuple((self.stack, *shape) for shape in self.hf_shapes)


@dataclass(frozen=True)
class Experts:
    """How Hugging Face files keep the experts of a layer; as published unless said otherwise.

    `transposed`: all in one tensor, [experts, in, out]. `straight`: all in one, [experts, out, in], as transformers 5
    writes it. `each`: gate, up and down projection of each expert a tensor of its own, [out, in].
    """

    gate_up: str = "transposed"
    down: str = "transposed"

    @classmethod
    def found_in(cls, shapes: Mapping[str, Shape], a: Architecture) -> Experts:
        """From the names and shapes in the files. A stack that is square is as the other one of its layer is."""
        base = f"{HF_LANGUAGE}layers.0.mlp.experts."
        width = a.expert_ffn_hidden_size
        found: list[str] = []
        for name, single, rows in (("gate_up_proj", "gate_proj", 2 * width), ("down_proj", "down_proj", a.hidden_size)):
            if base + name not in shapes:
                found.append("each" if f"{base}0.{single}.weight" in shapes else "")
                continue
            columns = a.hidden_size if name == "gate_up_proj" else width
            shape = shapes[base + name][1:]
            found.append("" if rows == columns else "straight" if shape == (rows, columns) else "transposed")
        gate_up, down = found
        return cls(gate_up or (down if down in ("straight", "transposed") else "straight"), down or gate_up or "straight")

    @classmethod
    def written(cls, a: Architecture) -> Experts:
        """As published. A square stack is written straight: transformers 5 tells the two apart by their shapes alone."""
        return cls("straight", "straight") if a.hidden_size in (a.expert_ffn_hidden_size, 2 * a.expert_ffn_hidden_size) else cls()


@dataclass(frozen=True)
class Layout:
    """How a Megatron checkpoint names and stacks its tensors."""

    mergers: str = "bridge"
    stacked_layers: bool = True
    stacked_mergers: bool = True

    @classmethod
    def named(cls, name: str) -> Layout:
        """The layout as it is written: `pai` never stacks its deepstack mergers."""
        return cls(name, True, name == "bridge")

    @classmethod
    def found_in(cls, keys: set[str] | dict, where: str) -> Layout:
        """The layout of a checkpoint that holds `keys`. Raises RequestError when it is none of the known ones."""
        if VISION + "merger.linear_fc1.weight" in keys:
            mergers = "bridge"
        elif VISION + "projection.encoder.linear_fc1.weight" in keys:
            mergers = "pai"
        else:
            some = ", ".join(sorted(k for k in keys if not k.startswith("optimizer"))[:3])
            raise RequestError(f"{where}: no Qwen3-VL vision tower in it (it holds {some or 'nothing'}, …); choose a Qwen3-VL checkpoint")
        stacked = LANGUAGE + "decoder.layers.self_attention.linear_proj.weight" in keys
        one = VISION + "decoder.deepstack_merger_list."
        return cls(mergers, stacked, one + "linear_fc1.weight" in keys)


class _Map:
    """Collects regions; one method for each way in which tensors are put together."""

    def __init__(self, layout: Layout, experts: Experts) -> None:
        self.layout, self.experts = layout, experts
        self.regions: list[Region] = []

    def whole(self, key: str, shape: Shape, name: str) -> None:
        """One tensor of its own."""
        self.regions.append(Region(key, shape, (0,) * len(shape), shape, (name,), (shape,)))

    def add(self, base: str, index: int, count: int, stacked: bool, part: str, shape: Shape, hf: list[tuple[str, Shape]], **rule) -> None:
        """Tensor `part` of layer `index` of `count` below `base`; `hf` fills it through `rule`, or row after row."""
        key = f"{base}{part}" if stacked else f"{base}{index}.{part}"
        lead, at, one = ((count,), (index,), (1,)) if stacked else ((), (), ())
        if rule:
            names, shapes = zip(*hf, strict=True)
            self.regions.append(Region(key, lead + shape, at + (0,) * len(shape), one + shape, names, shapes, **rule))
            return
        row = 0
        for name, piece in hf:
            rest = (0,) * (len(shape) - 1)
            self.regions.append(Region(key, lead + shape, (*at, row, *rest), one + piece, (name,), (piece,)))
            row += piece[0]


def _language(table: _Map, a: Architecture) -> None:
    hidden, dim, heads, groups, ffn = a.hidden_size, a.head_dim, a.num_heads, a.num_kv_heads, a.ffn_hidden_size
    table.whole(LANGUAGE + "embedding.word_embeddings.weight", (a.vocab_size, hidden), HF_EMBEDDING)
    base, stacked = LANGUAGE + "decoder.layers.", table.layout.stacked_layers
    for i in range(a.num_layers):
        h = f"{HF_LANGUAGE}layers.{i}."

        def add(part: str, shape: Shape, *hf: tuple[str, Shape], _h: str = h, _i: int = i, **rule) -> None:
            table.add(base, _i, a.num_layers, stacked, part, shape, [(_h + name, s) for name, s in hf], **rule)

        add("self_attention.linear_qkv.layer_norm_weight", (hidden,), ("input_layernorm.weight", (hidden,)))
        add(
            "self_attention.linear_qkv.weight", ((heads + 2 * groups) * dim, hidden),
            ("self_attn.q_proj.weight", (heads * dim, hidden)), ("self_attn.k_proj.weight", (groups * dim, hidden)),
            ("self_attn.v_proj.weight", (groups * dim, hidden)), rule="groups", groups=groups,
        )  # fmt: skip
        add("self_attention.linear_proj.weight", (hidden, heads * dim), ("self_attn.o_proj.weight", (hidden, heads * dim)))
        add("self_attention.q_layernorm.weight", (dim,), ("self_attn.q_norm.weight", (dim,)))
        add("self_attention.k_layernorm.weight", (dim,), ("self_attn.k_norm.weight", (dim,)))
        if a.is_moe:
            add("pre_mlp_layernorm.weight", (hidden,), ("post_attention_layernorm.weight", (hidden,)))
            add("mlp.router.weight", (a.num_experts, hidden), ("mlp.gate.weight", (a.num_experts, hidden)))
            _experts(table, a, i)
            continue
        add("mlp.linear_fc1.layer_norm_weight", (hidden,), ("post_attention_layernorm.weight", (hidden,)))
        add("mlp.linear_fc1.weight", (2 * ffn, hidden), ("mlp.gate_proj.weight", (ffn, hidden)), ("mlp.up_proj.weight", (ffn, hidden)))
        add("mlp.linear_fc2.weight", (hidden, ffn), ("mlp.down_proj.weight", (hidden, ffn)))
    table.whole(LANGUAGE + "decoder.final_layernorm.weight", (hidden,), HF_LANGUAGE + "norm.weight")
    if not a.tied:
        table.whole(LANGUAGE + "output_layer.weight", (a.vocab_size, hidden), HF_OUTPUT)


def _experts(table: _Map, a: Architecture, layer: int) -> None:
    """One region an expert and projection, so that the largest thing in memory is one expert."""
    base, name = LANGUAGE + "decoder.layers.", f"{HF_LANGUAGE}layers.{layer}.mlp.experts."
    hidden, width = a.hidden_size, a.expert_ffn_hidden_size
    for form, fc, shape, stacked, single in (
        (table.experts.gate_up, "linear_fc1", (2 * width, hidden), "gate_up_proj", ("gate_proj", "up_proj")),
        (table.experts.down, "linear_fc2", (hidden, width), "down_proj", ("down_proj",)),
    ):
        key, lead = f"mlp.experts.experts.{fc}.weight", (a.num_experts,)
        key, lead = (base + key, (a.num_layers, *lead)) if table.layout.stacked_layers else (f"{base}{layer}.{key}", lead)
        for expert in range(a.num_experts):
            at = (layer, expert) if table.layout.stacked_layers else (expert,)
            box = (key, lead + shape, (*at, 0, 0), (1,) * len(lead) + shape)
            if form == "each":
                rows = (shape[0] // len(single), shape[1])
                names = tuple(f"{name}{expert}.{one}.weight" for one in single)
                region = Region(*box, names, (rows,) * len(single), "rows" if len(single) > 1 else "copy")
            else:
                there, rule = (shape, "copy") if form == "straight" else (shape[::-1], "transposed")
                region = Region(*box, (name + stacked,), (there,), rule, at=expert, stack=a.num_experts)
            table.regions.append(region)


def _vision(table: _Map, a: Architecture) -> None:
    v = a.vision
    hidden, ffn, joined, out = v.hidden_size, v.ffn_hidden_size, v.hidden_size * v.spatial_merge_size**2, v.out_hidden_size
    kernel = (hidden, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    table.whole(VISION + "patch_embed.proj.weight", kernel, HF_VISION + "patch_embed.proj.weight")
    table.whole(VISION + "patch_embed.proj.bias", (hidden,), HF_VISION + "patch_embed.proj.bias")
    table.whole(VISION + "pos_embed.weight", (v.num_position_embeddings, hidden), HF_VISION + "pos_embed.weight")
    base, stacked = VISION + "decoder.layers.", table.layout.stacked_layers
    for i in range(v.num_layers):
        for kind, shape in (("weight", (hidden, hidden)), ("bias", (hidden,))):
            rest = shape[1:]
            for part, name, rows, columns, rule in (
                ("self_attention.linear_qkv." + kind, "attn.qkv." + kind, 3 * hidden, hidden, {"rule": "heads", "groups": v.num_heads}),
                ("self_attention.linear_proj." + kind, "attn.proj." + kind, hidden, hidden, {}),
                ("mlp.linear_fc1." + kind, "mlp.linear_fc1." + kind, ffn, hidden, {}),
                ("mlp.linear_fc2." + kind, "mlp.linear_fc2." + kind, hidden, ffn, {}),
            ):
                full = (rows, columns)[: 1 + len(rest)]
                table.add(base, i, v.num_layers, stacked, part, full, [(f"{HF_VISION}blocks.{i}.{name}", full)], **rule)
            for part, name in (("self_attention.linear_qkv.layer_norm_", "norm1."), ("mlp.linear_fc1.layer_norm_", "norm2.")):
                table.add(base, i, v.num_layers, stacked, part + kind, (hidden,), [(f"{HF_VISION}blocks.{i}.{name}{kind}", (hidden,))])
    pai = table.layout.mergers == "pai"
    for kind in ("weight", "bias"):
        norm = "decoder.final_layernorm." if pai else "merger.patch_norm."
        table.whole(VISION + norm + kind, (hidden,), f"{HF_VISION}merger.norm.{kind}")
        for layer, rows in (("linear_fc1.", joined), ("linear_fc2.", out)):
            shape = (rows, joined) if kind == "weight" else (rows,)
            prefix = "projection.encoder." if pai else "merger."
            table.whole(VISION + prefix + layer + kind, shape, f"{HF_VISION}merger.{layer}{kind}")
            inner = "encoder." if pai else ""
            _deepstack(table, a, "deepstack_merger_list.", inner + layer + kind, shape, layer + kind)
        group, part = ("deepstack_norm_list.", kind) if pai else ("deepstack_merger_list.", "patch_norm." + kind)
        _deepstack(table, a, group, part, (joined,), "norm." + kind)


def _deepstack(table: _Map, a: Architecture, group: str, part: str, shape: Shape, name: str) -> None:
    count = len(a.vision.deepstack_layers)
    for i in range(count):
        hf = [(f"{HF_VISION}deepstack_merger_list.{i}.{name}", shape)]
        table.add(VISION + "decoder." + group, i, count, table.layout.stacked_mergers, part, shape, hf)


def regions(architecture: Architecture, layout: Layout | None = None, experts: Experts | None = None) -> list[Region]:
    """Every region of a checkpoint with this architecture. The order and the boxes are the same for each layout and form."""
    table = _Map(layout or Layout(), experts or Experts.written(architecture))
    _vision(table, architecture)
    _language(table, architecture)
    return table.regions


# Modules that keep a state of their own under Transformer Engine (fp8 scaling); Megatron's loader asks for an entry of each
_STATEFUL = ("self_attention.core_attention", "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def extra_states(architecture: Architecture, layout: Layout) -> Iterator[tuple[str, Shape, Shape]]:
    """(key, index, count) of every empty module state that a Megatron checkpoint lists beside its tensors."""
    a, v = architecture, architecture.vision
    attention, mlp = _STATEFUL[:3], _STATEFUL[3:]
    language = (*attention, "self_attention.q_layernorm", "self_attention.k_layernorm", *(("pre_mlp_layernorm",) if a.is_moe else mlp))
    for tower, count, parts in ((LANGUAGE, a.num_layers, language), (VISION, v.num_layers, _STATEFUL)):
        for i in range(count):
            base = f"{tower}decoder.layers.{'' if layout.stacked_layers else f'{i}.'}"
            at, of = ((i,), (count,)) if layout.stacked_layers else ((), ())
            for part in parts:
                yield f"{base}{part}._extra_state", at or (0,), of or (1,)
            if a.is_moe and tower == LANGUAGE:
                for part in mlp:
                    for expert in range(a.num_experts):
                        yield f"{base}{part.replace('mlp.', 'mlp.experts.experts.')}._extra_state", (*at, expert), (*of, a.num_experts)
    pai = layout.mergers == "pai"
    for fc in ("linear_fc1", "linear_fc2"):
        yield f"{VISION}{'projection.encoder' if pai else 'merger'}.{fc}._extra_state", (0,), (1,)
        for i in range(len(v.deepstack_layers)):
            base = f"{VISION}decoder.deepstack_merger_list."
            inner = "encoder." if pai else ""
            if layout.stacked_mergers:
                yield f"{base}{inner}{fc}._extra_state", (i,), (len(v.deepstack_layers),)
            else:
                yield f"{base}{i}.{inner}{fc}._extra_state", (0,), (1,)
    yield f"{LANGUAGE}decoder.final_layernorm._extra_state", (0,), (1,)
    yield f"{LANGUAGE}output_layer._extra_state", (0,), (1,)
