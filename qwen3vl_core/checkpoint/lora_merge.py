"""The checkpoint of a LoRA run, read as a model: the base model's weights, with the adapters merged while they are read.

Such a checkpoint holds only adapters and optimizer state; its `extra.json` holds the path and the fingerprint of the base model.
Every reader of a model (convert, load, compare) sees W + (alpha / r) B A.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3vl_core import limits
from qwen3vl_core.checkpoint import torch_dist, transforms
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import Layout, Region
from qwen3vl_core.checkpoint.retention import EXTRA
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.layout.adapters import Adapters

ADAPTERS_KEY = "adapters"
"""Key in `extra.json`."""
INNER, OUTER = ".adapter.linear_in.weight", ".adapter.linear_out.weight"
SAMPLES, SAMPLE = 16, 1024


def fingerprint(source: ModelSource) -> str:
    """Distinguishes models of the same shape: a hash over the first elements of a few matrices, evenly spaced, as fp32.

    The same for a Hugging Face folder and for the Megatron checkpoint converted from it.
    """
    table = [r for r in source.regions(source.layout) if r.transform != "transposed" and len(r.hf_shapes[0]) == 2]
    digest = hashlib.sha256()
    for region in table[:: max(len(table) // SAMPLES, 1)]:
        row = torch.empty(region.hf_shapes[0][1], dtype=source.dtype_of(region))
        source.rows(region, 0, 0, 0, 1, row)
        digest.update(region.hf[0].encode() + row[:SAMPLE].float().numpy().tobytes())
    return digest.hexdigest()[:32]


def adapter_note(adapters: Adapters, source: ModelSource) -> dict[str, Any]:
    """The description of its adapters that a checkpoint stores. source: the base model."""
    return adapters.as_json() | {"base": str(source.origin.absolute()), "base_fingerprint": fingerprint(source)}


def read_adapter_note(data: Path) -> dict[str, Any] | None:
    """The description of the adapters in the checkpoint folder `data`; None if it is not from a LoRA run."""
    try:
        extra = json.loads(read_small(data / EXTRA, limits.EXTRA_JSON))
    except (OSError, ValueError, RecursionError):
        return None
    note = extra.get(ADAPTERS_KEY) if isinstance(extra, dict) else None
    return note if isinstance(note, dict) else None


@dataclass(kw_only=True)
class MergedSource(ModelSource):
    """A base model with adapters. `hf`, `megatron`, `layout` and `experts` are the base's."""

    base: ModelSource
    precision: torch.dtype | None = None
    """What the sum of weight and update is kept in; None: the base's precision."""

    def merge_in(self, dtype: torch.dtype | None) -> None:
        """Choose the precision of what is read: fp32 where the target has another one than the base, so that it is rounded once."""
        own = {self.base.dtype_of(region) for region in self.base.regions()}
        self.precision = None if dtype is None or own == {dtype} else torch.float32

    def dtype_of(self, region: Region, tensor: int = 0) -> torch.dtype:
        return self.precision or self.base.dtype_of(region, tensor)

    def summary(self) -> dict[str, Any]:
        """Rank, alpha and targets of the adapters, as reports show them."""
        raise NotImplementedError

    def factors(self, region: Region, tensor: int) -> tuple[Tensor, Tensor] | None:
        """(L [rows, r], R [r, columns]), fp32: L R is added to a region's Hugging Face tensor; None where nothing is."""
        raise NotImplementedError

    def replacement(self, region: Region, tensor: int) -> Tensor | None:
        """What takes the place of a region's Hugging Face tensor; None where the base's stays."""
        return None

    def read_hf(self, region: Region) -> list[Tensor]:
        tensors = self.base.read_hf(region)
        for i, tensor in enumerate(tensors):
            replacement, pair = self.replacement(region, i), self.factors(region, i)
            value = tensor if replacement is None else replacement
            if pair is not None:
                value = value.float() + (pair[0] @ pair[1]).view(value.shape)
            tensors[i] = value.to(self.dtype_of(region, i))
        return tensors

    def read_box(self, region: Region) -> Tensor:
        return transforms.to_megatron(region, self.read_hf(region))

    def rows(self, region: Region, tensor: int, row: int, at: int, rows: int, out: Tensor) -> None:
        base_dtype = self.base.dtype_of(region, tensor)
        values = out if out.dtype == base_dtype else torch.empty(out.numel(), dtype=base_dtype)
        # the box of a transposed matrix has its columns as rows
        turned = region.transform == "transposed" and not self.hf
        replacement = self.replacement(region, tensor)
        if replacement is None:
            self.base.rows(region, tensor, row, at, rows, values)
        else:
            values = (replacement.t()[at : at + rows] if turned else replacement[row : row + rows]).reshape(-1)
        pair = self.factors(region, tensor)
        if pair is not None:
            left, right = pair if not turned else (pair[1].t(), pair[0].t())
            first = at if turned else row
            values = values.float() + (left[first : first + rows] @ right).view(values.shape)
        if values is not out:
            out.copy_(values.view(out.shape))


@dataclass(kw_only=True)
class AdaptedSource(MergedSource):
    """The checkpoint of a LoRA run."""

    adapters: Adapters
    reader: torch_dist.RegionReader
    canonical: dict[Region, Region] = field(init=False)
    """The base's regions -> the same regions under our own layout's names."""
    all_factors: Callable[[Region], list[tuple[Tensor, Tensor]] | None] = field(init=False)
    """`_factors`, cached."""

    def __post_init__(self) -> None:
        self.canonical = dict(zip(self.base.regions(), self.base.regions(Layout()), strict=True))
        self.all_factors = lru_cache(64)(self._factors)

    @classmethod
    def of(cls, path: Path, side: Path, iteration: int, data: Path, base: ModelSource, note: dict[str, Any]) -> AdaptedSource:
        """Raises RequestError when the base is not the model that the adapters were trained on."""
        if fingerprint(base) != note.get("base_fingerprint"):
            raise RequestError(
                f"{path}: holds adapters only, and {base.path} is not the model that they were trained on (its weights "
                "differ); put that model there again, or name it with --base"
            )
        adapters = Adapters.read(note, str(data / EXTRA))
        return cls(
            path=path, side=side, architecture=base.architecture, hf=base.hf, megatron=base.megatron, layout=base.layout,
            iteration=iteration, experts=base.experts, base=base, adapters=adapters, reader=torch_dist.RegionReader(data),
        )  # fmt: skip

    @property
    def kind(self) -> str:
        return "adapters"

    def adapted_region(self, region: Region) -> Region | None:
        """The region under our own layout's names; None where it has no adapter."""
        own = self.canonical[region]
        return own if own.key.endswith(".weight") and own.key.removesuffix(".weight") + OUTER in self.reader.tensors else None

    def matrices(self, region: Region) -> tuple[Tensor, Tensor] | None:
        """(A [r, in], B [rows of the region's box, r]) in the saved precision; None where the region has no adapter."""
        own = self.adapted_region(region)
        if own is None:
            return None
        name, lead, rank = own.key.removesuffix(".weight"), len(own.size) - 2, self.adapters.rank
        at, single = own.offset[:lead], (1,) * lead
        rows, columns = own.size[lead:]
        inner = self.reader.read(name + INNER, (*at, 0, 0), (*single, rank, columns))
        outer = self.reader.read(name + OUTER, (*own.offset[:-1], 0), (*own.size[:-1], rank))
        return inner.view(rank, columns), outer.view(rows, rank)

    def _factors(self, region: Region) -> list[tuple[Tensor, Tensor]] | None:
        """`factors` of each of a region's tensors."""
        pair = self.matrices(region)
        if pair is None:
            return None
        inner, parts = pair[0].float() * self.adapters.scale, self.outer_parts(region, pair[1].float())
        return [(inner.t(), part) if region.transform == "transposed" else (part, inner) for part in parts]

    def factors(self, region: Region, tensor: int) -> tuple[Tensor, Tensor] | None:
        pairs = self.all_factors(region)
        return None if pairs is None else pairs[tensor]

    def summary(self) -> dict[str, Any]:
        return self.adapters.as_json() | {"base": str(self.base.path)}

    @property
    def origin(self) -> Path:
        return self.reader.data

    def check(self) -> None:
        """Raises RequestError unless the base is complete and every adapter matches one of its weights."""
        self.base.check()
        adapted = [own for own in map(self.adapted_region, self.base.regions()) if own is not None]
        known = {own.key.removesuffix(".weight") + end for own in adapted for end in (INNER, OUTER)}
        unknown = [key for key in self.reader.tensors if (key.endswith((INNER, OUTER)) and key not in known and not key.startswith("opt"))]
        if unknown or not known:
            problem = f"{unknown[0]} adapts no weight of {self.base.path}" if unknown else "holds no adapter"
            raise RequestError(f"{self.path}: {problem}; the checkpoint is of another model")
        for own in adapted:
            name, lead = own.key.removesuffix(".weight"), own.global_shape[:-2]
            rows, columns = own.global_shape[-2:]
            for end, shape in ((INNER, (*lead, self.adapters.rank, columns)), (OUTER, (*lead, rows, self.adapters.rank))):
                saved_shape = list(self.reader.tensors[name + end].size) if name + end in self.reader.tensors else "missing"
                if saved_shape != list(shape):
                    raise RequestError(f"{self.path}: {name + end} is {saved_shape}, not {list(shape)}; copy the checkpoint again")
        for line in self.reader.damage():
            raise RequestError(line)

    def outer_parts(self, region: Region, outer: Tensor) -> list[Tensor]:
        """B of a region, split into the rows of each of its Hugging Face tensors, in their order."""
        rank = outer.shape[1]
        narrow = replace(region, size=(*region.size[:-1], rank), hf_shapes=tuple((shape[0], rank) for shape in region.hf_shapes))
        return transforms.to_hf(narrow, outer)
