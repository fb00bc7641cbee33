"""The name map: which Hugging Face tensors make up each part of each tensor in a Megatron checkpoint.

`TABLE` is the map, one row per tensor, for both directions; search it for the name you know. `{i}` is the layer (or the deepstack
merger's own index), `{e}` the expert. The rest of this module walks the table and gives `Region`s: a box in one Megatron tensor as
stored on disk (layers stacked along a leading axis) and the Hugging Face tensors that fill it, through one of these transforms:

- `copy`       one tensor, unchanged.
- `rows`       several tensors, concatenated along their rows.
- `transposed` one matrix, transposed (the published files store their experts this way).
- `groups`     query, key and value of the language tower: Megatron interleaves them by key/value head.
- `heads`      query, key and value of the vision tower: Hugging Face has all queries first, Megatron interleaves them by head.

Two ways of naming the mergers are in use in Megatron checkpoints, `bridge` and `pai`, and three of storing the experts of
a layer in Hugging Face files (`Experts`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import Architecture

Shape = tuple[int, ...]

HF_LANGUAGE, HF_VISION = "model.language_model.", "model.visual."
HF_OUTPUT = "lm_head.weight"
HF_EMBEDDING = HF_LANGUAGE + "embed_tokens.weight"
LANGUAGE, VISION = "language_model.", "vision_model."


@dataclass(frozen=True)
class MapRow:
    """One Megatron tensor, and the Hugging Face tensors that it consists of."""

    megatron: str
    """Megatron's name; `{i}.` is left out where layers are stacked."""
    transform: str
    hf: Mapping[str, str]
    """Hugging Face names -> shapes, in the words of `_dimensions`; stacks of experts without the expert axis."""
    layouts: tuple[str, ...] = ("bridge", "pai")
    """Ways of naming the mergers that have this row."""
    only: str = ""
    """Models that have it: `dense` or `moe` layers, `untied` embeddings."""
    experts: tuple[str, str] | None = None
    """For a tensor of the experts: (field, value) of `Experts` for which this row applies."""


BRIDGE, PAI = ("bridge",), ("pai",)
# fmt: off
TABLE = (
    # vision tower
    MapRow("vision_model.patch_embed.proj.weight", "copy",
        {"model.visual.patch_embed.proj.weight": "v_hidden v_channels v_frames v_patch v_patch"}),
    MapRow("vision_model.patch_embed.proj.bias", "copy", {"model.visual.patch_embed.proj.bias": "v_hidden"}),
    MapRow("vision_model.pos_embed.weight", "copy", {"model.visual.pos_embed.weight": "v_positions v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_qkv.weight", "heads",
        {"model.visual.blocks.{i}.attn.qkv.weight": "v_qkv v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_proj.weight", "copy",
        {"model.visual.blocks.{i}.attn.proj.weight": "v_hidden v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc1.weight", "copy",
        {"model.visual.blocks.{i}.mlp.linear_fc1.weight": "v_ffn v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc2.weight", "copy",
        {"model.visual.blocks.{i}.mlp.linear_fc2.weight": "v_hidden v_ffn"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight", "copy",
        {"model.visual.blocks.{i}.norm1.weight": "v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight", "copy",
        {"model.visual.blocks.{i}.norm2.weight": "v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_qkv.bias", "heads",
        {"model.visual.blocks.{i}.attn.qkv.bias": "v_qkv"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_proj.bias", "copy",
        {"model.visual.blocks.{i}.attn.proj.bias": "v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc1.bias", "copy",
        {"model.visual.blocks.{i}.mlp.linear_fc1.bias": "v_ffn"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc2.bias", "copy",
        {"model.visual.blocks.{i}.mlp.linear_fc2.bias": "v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.self_attention.linear_qkv.layer_norm_bias", "copy",
        {"model.visual.blocks.{i}.norm1.bias": "v_hidden"}),
    MapRow("vision_model.decoder.layers.{i}.mlp.linear_fc1.layer_norm_bias", "copy",
        {"model.visual.blocks.{i}.norm2.bias": "v_hidden"}),
    # the merger, and one more for each deepstack layer
    MapRow("vision_model.merger.patch_norm.weight", "copy", {"model.visual.merger.norm.weight": "v_hidden"}, BRIDGE),
    MapRow("vision_model.decoder.final_layernorm.weight", "copy", {"model.visual.merger.norm.weight": "v_hidden"}, PAI),
    MapRow("vision_model.merger.linear_fc1.weight", "copy", {"model.visual.merger.linear_fc1.weight": "v_merged v_merged"}, BRIDGE),
    MapRow("vision_model.projection.encoder.linear_fc1.weight", "copy",
        {"model.visual.merger.linear_fc1.weight": "v_merged v_merged"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.linear_fc1.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc1.weight": "v_merged v_merged"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.encoder.linear_fc1.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc1.weight": "v_merged v_merged"}, PAI),
    MapRow("vision_model.merger.linear_fc2.weight", "copy", {"model.visual.merger.linear_fc2.weight": "v_out v_merged"}, BRIDGE),
    MapRow("vision_model.projection.encoder.linear_fc2.weight", "copy", {"model.visual.merger.linear_fc2.weight": "v_out v_merged"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.linear_fc2.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc2.weight": "v_out v_merged"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.encoder.linear_fc2.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc2.weight": "v_out v_merged"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.patch_norm.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.norm.weight": "v_merged"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_norm_list.{i}.weight", "copy",
        {"model.visual.deepstack_merger_list.{i}.norm.weight": "v_merged"}, PAI),
    MapRow("vision_model.merger.patch_norm.bias", "copy", {"model.visual.merger.norm.bias": "v_hidden"}, BRIDGE),
    MapRow("vision_model.decoder.final_layernorm.bias", "copy", {"model.visual.merger.norm.bias": "v_hidden"}, PAI),
    MapRow("vision_model.merger.linear_fc1.bias", "copy", {"model.visual.merger.linear_fc1.bias": "v_merged"}, BRIDGE),
    MapRow("vision_model.projection.encoder.linear_fc1.bias", "copy", {"model.visual.merger.linear_fc1.bias": "v_merged"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.linear_fc1.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc1.bias": "v_merged"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.encoder.linear_fc1.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc1.bias": "v_merged"}, PAI),
    MapRow("vision_model.merger.linear_fc2.bias", "copy", {"model.visual.merger.linear_fc2.bias": "v_out"}, BRIDGE),
    MapRow("vision_model.projection.encoder.linear_fc2.bias", "copy", {"model.visual.merger.linear_fc2.bias": "v_out"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.linear_fc2.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc2.bias": "v_out"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.encoder.linear_fc2.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.linear_fc2.bias": "v_out"}, PAI),
    MapRow("vision_model.decoder.deepstack_merger_list.{i}.patch_norm.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.norm.bias": "v_merged"}, BRIDGE),
    MapRow("vision_model.decoder.deepstack_norm_list.{i}.bias", "copy",
        {"model.visual.deepstack_merger_list.{i}.norm.bias": "v_merged"}, PAI),
    # language tower
    MapRow("language_model.embedding.word_embeddings.weight", "copy", {"model.language_model.embed_tokens.weight": "vocabulary hidden"}),
    MapRow("language_model.decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight", "copy",
        {"model.language_model.layers.{i}.input_layernorm.weight": "hidden"}),
    MapRow("language_model.decoder.layers.{i}.self_attention.linear_qkv.weight", "groups",
        {"model.language_model.layers.{i}.self_attn.q_proj.weight": "query hidden",
         "model.language_model.layers.{i}.self_attn.k_proj.weight": "key_value hidden",
         "model.language_model.layers.{i}.self_attn.v_proj.weight": "key_value hidden"}),
    MapRow("language_model.decoder.layers.{i}.self_attention.linear_proj.weight", "copy",
        {"model.language_model.layers.{i}.self_attn.o_proj.weight": "hidden query"}),
    MapRow("language_model.decoder.layers.{i}.self_attention.q_layernorm.weight", "copy",
        {"model.language_model.layers.{i}.self_attn.q_norm.weight": "head"}),
    MapRow("language_model.decoder.layers.{i}.self_attention.k_layernorm.weight", "copy",
        {"model.language_model.layers.{i}.self_attn.k_norm.weight": "head"}),
    # a layer's MLP: dense
    MapRow("language_model.decoder.layers.{i}.mlp.linear_fc1.layer_norm_weight", "copy",
        {"model.language_model.layers.{i}.post_attention_layernorm.weight": "hidden"}, only="dense"),
    MapRow("language_model.decoder.layers.{i}.mlp.linear_fc1.weight", "rows",
        {"model.language_model.layers.{i}.mlp.gate_proj.weight": "ffn hidden",
         "model.language_model.layers.{i}.mlp.up_proj.weight": "ffn hidden"}, only="dense"),
    MapRow("language_model.decoder.layers.{i}.mlp.linear_fc2.weight", "copy",
        {"model.language_model.layers.{i}.mlp.down_proj.weight": "hidden ffn"}, only="dense"),
    # a layer's MLP: experts, in one of three forms
    MapRow("language_model.decoder.layers.{i}.pre_mlp_layernorm.weight", "copy",
        {"model.language_model.layers.{i}.post_attention_layernorm.weight": "hidden"}, only="moe"),
    MapRow("language_model.decoder.layers.{i}.mlp.router.weight", "copy",
        {"model.language_model.layers.{i}.mlp.gate.weight": "experts hidden"}, only="moe"),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc1.weight", "transposed",
        {"model.language_model.layers.{i}.mlp.experts.gate_up_proj": "hidden expert_gate_up"}, experts=("gate_up", "transposed")),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc1.weight", "copy",
        {"model.language_model.layers.{i}.mlp.experts.gate_up_proj": "expert_gate_up hidden"}, experts=("gate_up", "straight")),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc1.weight", "rows",
        {"model.language_model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "expert_ffn hidden",
         "model.language_model.layers.{i}.mlp.experts.{e}.up_proj.weight": "expert_ffn hidden"}, experts=("gate_up", "each")),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc2.weight", "transposed",
        {"model.language_model.layers.{i}.mlp.experts.down_proj": "expert_ffn hidden"}, experts=("down", "transposed")),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc2.weight", "copy",
        {"model.language_model.layers.{i}.mlp.experts.down_proj": "hidden expert_ffn"}, experts=("down", "straight")),
    MapRow("language_model.decoder.layers.{i}.mlp.experts.experts.linear_fc2.weight", "copy",
        {"model.language_model.layers.{i}.mlp.experts.{e}.down_proj.weight": "hidden expert_ffn"}, experts=("down", "each")),
    MapRow("language_model.decoder.final_layernorm.weight", "copy", {"model.language_model.norm.weight": "hidden"}),
    MapRow("language_model.output_layer.weight", "copy", {"lm_head.weight": "vocabulary hidden"}, only="untied"),
)
# fmt: on


def _dimensions(a: Architecture) -> dict[str, int]:
    v = a.vision
    return {
        "hidden": a.hidden_size,
        "head": a.head_dim,
        "query": a.num_heads * a.head_dim,
        "key_value": a.num_kv_heads * a.head_dim,
        "ffn": a.ffn_hidden_size,
        "expert_ffn": a.expert_ffn_hidden_size,
        "expert_gate_up": 2 * a.expert_ffn_hidden_size,
        "experts": a.num_experts,
        "vocabulary": a.vocab_size,
        "v_hidden": v.hidden_size,
        "v_qkv": 3 * v.hidden_size,
        "v_ffn": v.ffn_hidden_size,
        "v_channels": v.in_channels,
        "v_frames": v.temporal_patch_size,
        "v_patch": v.patch_size,
        "v_positions": v.num_position_embeddings,
        # the patches that become one token, side by side
        "v_merged": v.hidden_size * v.spatial_merge_size**2,
        "v_out": v.out_hidden_size,
    }


@dataclass(frozen=True)
class Region:
    """A box in a Megatron tensor, and what fills it."""

    key: str
    global_shape: Shape
    offset: Shape
    size: Shape
    hf: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    """Shapes of what is taken from each tensor: all of it, or the slice of one expert."""
    transform: str = "copy"
    groups: int = 1
    """Of transform `groups`: key/value heads; of `heads`: attention heads."""
    at: int | None = None
    """If the Hugging Face tensors are stacks of experts: the index of this region's slice."""
    stack: int = 0
    """The number of experts in such a stack."""

    @property
    def stored_shapes(self) -> tuple[Shape, ...]:
        """The shapes of the complete tensors in the files."""
        return self.hf_shapes if self.at is None else tuple((self.stack, *shape) for shape in self.hf_shapes)


@dataclass(frozen=True)
class Experts:
    """How Hugging Face files store the experts of a layer; as published by default.

    `transposed`: all in one tensor, [experts, in, out]. `straight`: all in one, [experts, out, in], as transformers 5
    writes it. `each`: gate, up and down projection of each expert as separate tensors, [out, in].
    """

    gate_up: str = "transposed"
    down: str = "transposed"

    @classmethod
    def found_in(cls, shapes: Mapping[str, Shape], a: Architecture) -> Experts:
        """Detected from the names and shapes in the files. A square stack is taken to have the form of the layer's other stack."""
        base = f"{HF_LANGUAGE}layers.0.mlp.experts."
        width = a.expert_ffn_hidden_size
        forms: list[str] = []
        for name, single, rows in (("gate_up_proj", "gate_proj", 2 * width), ("down_proj", "down_proj", a.hidden_size)):
            if base + name not in shapes:
                forms.append("each" if f"{base}0.{single}.weight" in shapes else "")
                continue
            columns = a.hidden_size if name == "gate_up_proj" else width
            shape = shapes[base + name][1:]
            forms.append("" if rows == columns else "straight" if shape == (rows, columns) else "transposed")
        gate_up, down = forms
        return cls(gate_up or (down if down in ("straight", "transposed") else "straight"), down or gate_up or "straight")

    @classmethod
    def written(cls, a: Architecture) -> Experts:
        """How a conversion writes them: as published. A square stack is written straight: transformers 5 tells the two forms apart by
        their shapes alone."""
        return cls("straight", "straight") if a.hidden_size in (a.expert_ffn_hidden_size, 2 * a.expert_ffn_hidden_size) else cls()


@dataclass(frozen=True)
class Layout:
    """How a Megatron checkpoint names and stacks its tensors."""

    mergers: str = "bridge"
    stacked_layers: bool = True
    stacked_mergers: bool = True

    @classmethod
    def named(cls, name: str) -> Layout:
        """The layout that a conversion writes: `pai` never stacks its deepstack mergers."""
        return cls(name, True, name == "bridge")

    @classmethod
    def found_in(cls, keys: Collection[str], path: str) -> Layout:
        """The layout of the checkpoint at `path`, which holds `keys`. Raises RequestError when it is none of the known ones."""
        if VISION + "merger.linear_fc1.weight" in keys:
            mergers = "bridge"
        elif VISION + "projection.encoder.linear_fc1.weight" in keys:
            mergers = "pai"
        else:
            some = ", ".join(sorted(k for k in keys if not k.startswith("optimizer"))[:3])
            raise RequestError(f"{path}: no Qwen3-VL vision tower in it (it holds {some or 'nothing'}, …); choose a Qwen3-VL checkpoint")
        stacked = LANGUAGE + "decoder.layers.self_attention.linear_proj.weight" in keys
        one = VISION + "decoder.deepstack_merger_list."
        return cls(mergers, stacked, one + "linear_fc1.weight" in keys)


def _is_used(row: MapRow, a: Architecture, layout: Layout, experts: Experts) -> bool:
    if row.experts is not None:
        form, value = row.experts
        return a.is_moe and getattr(experts, form) == value
    kinds = ("", "moe" if a.is_moe else "dense", "tied" if a.tied else "untied")
    return row.only in kinds and layout.mergers in row.layouts


def _repeats(row: MapRow, a: Architecture, layout: Layout) -> tuple[str, int, bool]:
    """(what the row is repeated over, how often, whether Megatron stacks it). Successive rows over the same layers form one group,
    which is walked layer by layer."""
    if "{i}" not in row.megatron:
        return row.megatron, 1, False
    for base, count in ((LANGUAGE + "decoder.layers.", a.num_layers), (VISION + "decoder.layers.", a.vision.num_layers)):
        if row.megatron.startswith(base):
            return base, count, layout.stacked_layers
    return row.megatron, len(a.vision.deepstack_layers), layout.stacked_mergers


def _megatron_shape(transform: str, shapes: list[Shape]) -> Shape:
    first = shapes[0]
    return first[::-1] if transform == "transposed" else (sum(shape[0] for shape in shapes), *first[1:])


def _regions_of(row: MapRow, a: Architecture, index: int, count: int, stacked: bool) -> Iterator[Region]:
    """The regions of a row in layer `index` of `count`: one, one per expert, or one per Hugging Face tensor."""
    sizes = _dimensions(a)
    shapes = [tuple(sizes[word] for word in shape.split()) for shape in row.hf.values()]
    shape = _megatron_shape(row.transform, shapes)
    key = row.megatron.replace("{i}.", "" if stacked else f"{index}.")
    lead, at = ((count,), (index,)) if stacked else ((), ())
    groups = {"groups": a.num_kv_heads, "heads": a.vision.num_heads}.get(row.transform, 1)
    if row.experts is not None:
        # one region per expert and projection, so that at most one expert is in memory
        for expert in range(a.num_experts):
            names = tuple(name.format(i=index, e=expert) for name in row.hf)
            box = (key, (*lead, a.num_experts, *shape), (*at, expert, *(0,) * len(shape)), (1,) * (len(lead) + 1) + shape)
            stack = 0 if row.experts[1] == "each" else a.num_experts
            yield Region(*box, names, tuple(shapes), row.transform, at=expert if stack else None, stack=stack)
        return
    hf_names = tuple(name.format(i=index) for name in row.hf)
    if row.transform == "rows":
        # one region per tensor, for the same reason
        begin = 0
        for name, piece in zip(hf_names, shapes, strict=True):
            offset = (*at, begin, *(0,) * (len(shape) - 1))
            yield Region(key, lead + shape, offset, (1,) * len(lead) + piece, (name,), (piece,))
            begin += piece[0]
        return
    offset = at + (0,) * len(shape)
    yield Region(key, lead + shape, offset, (1,) * len(lead) + shape, hf_names, tuple(shapes), row.transform, groups)


def regions(architecture: Architecture, layout: Layout | None = None, experts: Experts | None = None) -> list[Region]:
    """Every region of a checkpoint with this architecture. Order and boxes are the same for all layouts and forms of experts."""
    layout, experts = layout or Layout(), experts or Experts.written(architecture)
    rows = [row for row in TABLE if _is_used(row, architecture, layout, experts)]
    result: list[Region] = []
    for (_, count, stacked), group in groupby(rows, key=lambda row: _repeats(row, architecture, layout)):
        repeated = list(group)
        for index in range(count):
            for row in repeated:
                result += _regions_of(row, architecture, index, count, stacked)
    return result


# Modules with a state of their own under Transformer Engine (fp8 scaling); Megatron's loader expects an entry for each
_STATEFUL = ("self_attention.core_attention", "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def extra_states(architecture: Architecture, layout: Layout) -> Iterator[tuple[str, Shape, Shape]]:
    """(key, index, count) of every empty module state that a Megatron checkpoint lists in addition to its tensors."""
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
