"""Checkpoints whose tensors have other names, or are cut otherwise, than ours: their tables rewritten to our own layout.

Only the tables change: which chunk of which file is which box of which tensor. What is rewritten was found in checkpoints that the
programs wrote, and `tools/foreign_checkpoints.py` writes small ones of each kind:

- the vision tower kept as transformers names it: `vision_model.` (Megatron-Bridge 0.3) and `visual.visual.` (ms-swift). Its query, key
  and value go from all queries first to head by head, a chunk for each head;
- Megatron-Core's `singleton_local_shards`: a tensor for each expert, gate and up projection apart (`…weight_w`, `…weight_v`);
- norms that are not fused with the linear layer behind them (`input_layernorm`), and those of experts in plain layers;
- a tower whose layers are stacked beside one whose layers are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qwen3vl_core.checkpoint.dcp_metadata import Chunk, Chunks, Shape, TensorEntry
from qwen3vl_core.checkpoint.name_map import HF_VISION, LANGUAGE, TABLE, VISION
from qwen3vl_core.sizes import Architecture

PROGRAMS = {"vision_model.": "Megatron-Bridge 0.3", "visual.visual.": "ms-swift"}
"""What the transformers names of the vision tower begin with -> the program that writes them."""
_EXPERT = re.compile(r"(.*\.mlp\.experts\.experts\.)(\d+)\.(linear_fc[12]\.weight)(?:_([wv]))?")
_HALF = re.compile(r"(.*\.mlp\.linear_fc1\.weight)_([wv])")
_LAYER = re.compile(r"(.*\.decoder\.(?:layers|deepstack_merger_list)\.)(\d+)\.(.+)")
# transformers' name of a vision tensor, its number left out -> (ours, its transform)
_VISION = {
    next(iter(row.hf)).removeprefix(HF_VISION): (row.megatron, row.transform)
    for row in TABLE
    if row.megatron.startswith(VISION) and "bridge" in row.layouts
}

Tables = tuple[dict[str, TensorEntry], dict[str, Chunks]]


def program_of(keys: Mapping[str, object]) -> str:
    """The program that keeps the vision tower under transformers' names; empty for any other."""
    return next((name for prefix, name in PROGRAMS.items() if f"{prefix}merger.linear_fc1.weight" in keys and
                 f"{prefix}blocks.0.norm1.weight" in keys), "")  # fmt: skip


def is_foreign(keys: Mapping[str, object], architecture: Architecture) -> bool:
    """Whether the tables have to be rewritten before the name map fits them."""
    if program_of(keys):
        return True
    stacked = {tower: f"{tower}decoder.layers.self_attention.linear_proj.weight" in keys for tower in (LANGUAGE, VISION)}
    base = f"{LANGUAGE}decoder.layers." + ("" if stacked[LANGUAGE] else "0.")
    other_norms = ("input_layernorm.weight", "mlp.linear_fc1.layer_norm_weight" if architecture.is_moe else "pre_mlp_layernorm.weight")
    halves = "mlp.experts.experts.0.linear_fc1.weight_w", "mlp.linear_fc1.weight_w", "mlp.experts.experts.0.linear_fc1.weight"
    return stacked[LANGUAGE] != stacked[VISION] or any(base + name in keys for name in (*other_norms, *halves))


def _own_name(key: str, program: str, architecture: Architecture) -> tuple[str, str]:
    """(our name with the layer's number in it, the transform between what is saved and our box)."""
    prefix = next((prefix for prefix, name in PROGRAMS.items() if name == program), "")
    if prefix and key.startswith(prefix):
        name = key.removeprefix(prefix)
        number = re.search(r"\.(\d+)\.", name)
        own, transform = _VISION.get(name.replace(number[0], ".{i}.", 1) if number else name, ("", ""))
        return (own.replace("{i}", number[1]) if number else own) or key, transform
    if key.startswith(LANGUAGE):
        key = key.replace(".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight")
        norms = (".mlp.linear_fc1.layer_norm_weight", ".pre_mlp_layernorm.weight")
        key = key.replace(*(norms if architecture.is_moe else norms[::-1]))
    # Pai's mergers -> Bridge's
    if key.startswith(f"{VISION}projection.encoder."):
        key = key.replace("projection.encoder.", "merger.")
    elif key.startswith(f"{VISION}decoder.final_layernorm."):
        key = key.replace("decoder.final_layernorm.", "merger.patch_norm.")
    key = re.sub(r"(decoder\.deepstack_merger_list\.\d+\.)encoder\.", r"\1", key)
    return re.sub(r"decoder\.deepstack_norm_list\.(\d+)\.", r"decoder.deepstack_merger_list.\1.patch_norm.", key), ""


def _by_head(chunk: Chunk, heads: int, rows: int) -> Iterator[Chunk]:
    """The parts of a chunk of query, key and value, [3, heads, d] by rows, where they are head by head, [heads, 3, d]."""
    width = rows // (3 * heads)
    first, count = chunk.offset[0], chunk.size[0]
    for block in range(first // width, -(-(first + count) // width)):
        low, high = max(block * width, first), min((block + 1) * width, first + count)
        part, head = divmod(block, heads)
        start = (head * 3 + part) * width + low - block * width
        yield chunk.part(low - first, high - low, (start, *chunk.offset[1:]))


class _Rewritten:
    """The rewritten tables while they are made."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.shapes: dict[str, Shape] = {}
        self.entries: dict[str, TensorEntry] = {}
        self.chunks: dict[str, list[Chunk]] = {}

    def add(self, key: str, shape: Shape, entry: TensorEntry, chunks: list[Chunk], lead: Shape, counts: Shape, row: int, rows: int) -> None:
        """Boxes of `key`. lead, counts: their place and the extent along the axes added in front. row: where their rows begin; rows: of
        all of them."""
        extent = (rows, *shape[1:]) if shape else shape
        self.shapes[key] = counts + extent
        self.entries.setdefault(key, entry)
        for c in chunks:
            self.chunks.setdefault(key, []).append(c.placed(lead, row))

    def tables(self) -> Tables:
        tensors = {key: entry.sized(self.shapes[key]) for key, entry in self.entries.items()}
        return tensors, {key: Chunks(chunks) for key, chunks in self.chunks.items()}


def rewritten(tensors: dict[str, TensorEntry], chunks: dict[str, Chunks], architecture: Architecture) -> Tables:
    """The tables in the layout `Layout()`: Bridge's names, every layer stacked. Tensors without a place keep their names."""
    a, program = architecture, program_of(tensors)
    counts = {LANGUAGE: a.num_layers, VISION: a.vision.num_layers, "deepstack": len(a.vision.deepstack_layers)}
    result = _Rewritten(a)
    for key, entry in tensors.items():
        shape = tuple(entry.size)
        parts = chunks[key].all if key in chunks else []
        if not key.startswith((LANGUAGE, VISION, *PROGRAMS)):
            result.add(key, shape, entry, parts, (), (), 0, shape[0] if shape else 0)
            continue
        name, transform = _own_name(key, program, a)
        stacked = ".decoder.layers." in name and not re.search(r"\.layers\.\d", name)
        lead: Shape = ()
        extents: Shape = ()
        if layer := _LAYER.fullmatch(name):
            tower = "deepstack" if "deepstack" in layer[1] else LANGUAGE if name.startswith(LANGUAGE) else VISION
            name, lead, extents = layer[1] + layer[3], (int(layer[2]),), (counts[tower],)
        if stacked:
            result.add(name, shape, entry, parts, (), (), 0, shape[0])
            continue
        row, rows, half = 0, shape[0] if shape else 0, None
        if expert := _EXPERT.fullmatch(name):
            name, half = expert[1] + expert[3], expert[4]
            lead, extents = (*lead, int(expert[2])), (*extents, a.num_experts)
        elif split := _HALF.fullmatch(name):
            name, half = split[1], split[2]
        if half:
            row, rows = (rows if half == "v" else 0), 2 * rows
        if transform == "heads":
            parts = [piece for c in parts for piece in _by_head(c, a.vision.num_heads, shape[0])]
        result.add(name, shape, entry, parts, lead, extents, row, rows)
    return result.tables()


def described(keys: Mapping[str, object]) -> str:
    """In words how the tensors `keys` are named and cut, as saved."""
    program = program_of(keys)
    pai = f"{VISION}projection.encoder.linear_fc1.weight" in keys
    names = f"vision tower as transformers names it ({program})" if program else "pai" if pai else "bridge"
    stacked = f"{LANGUAGE}decoder.layers.self_attention.linear_proj.weight" in keys
    each = any(_EXPERT.fullmatch(key) for key in keys)
    return f"{names}, {'layers stacked' if stacked else 'each layer by itself'}{', each expert too' if each else ''}"
