"""A PEFT adapter's folder, read as a model: the base model's weights, with the adapter merged while they are read.

A linear layer's update is (alpha / r) B A, over the square root of r with `use_rslora`, with a rank and an alpha of its own where
the configuration has patterns. The experts of a layer are one parameter (`target_parameters`), see `checkpoint/peft.py`. A tensor that is
saved whole (`modules_to_save`) takes the place of the base's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen3vl_core.checkpoint.hf import HFReader, pickled_weights
from qwen3vl_core.checkpoint.lora_merge import MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource, listed
from qwen3vl_core.checkpoint.name_map import Region
from qwen3vl_core.checkpoint.peft import PREFIX, STACKED
from qwen3vl_core.errors import RequestError
from qwen3vl_core.peft_folder import WEIGHTS, number_of

_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_NESTED = ".base_layer"


def peft_targets(config: dict[str, Any]) -> list[str]:
    """The modules and parameters that have adapters, as the configuration names them."""
    modules = config.get("target_modules") or []
    return ([modules] if isinstance(modules, str) else sorted(map(str, modules))) + list(map(str, config.get("target_parameters") or []))


@dataclass(frozen=True)
class LoraPair:
    """A and B of one Hugging Face tensor, by their names in the adapter's file; of a stack of experts all of them."""

    inner: str
    outer: str
    scale: float
    experts: int = 0


@dataclass(kw_only=True)
class PeftSource(MergedSource):
    """A base model with a PEFT adapter. `hf`, `megatron`, `layout` and `experts` are the base's."""

    file: HFReader
    config: dict[str, Any]
    pairs: dict[str, LoraPair] = field(default_factory=dict)
    """By the Hugging Face tensor that they belong to."""
    whole: dict[str, str] = field(default_factory=dict)
    """Hugging Face tensors that the adapter holds whole -> their names in its file."""
    unplaced: list[str] = field(default_factory=list)
    pair: Callable[[str, int | None], tuple[Tensor, Tensor] | None] = field(init=False)
    """`_pair`, cached."""

    @classmethod
    def of(cls, path: Path, config: dict[str, Any], base: ModelSource) -> PeftSource:
        """Raises RequestError for a folder whose tensors are missing or pickled."""
        if not (path / WEIGHTS).is_file():
            pickles = pickled_weights(path)
            if pickles:
                raise RequestError(f"{path}: its weights are pickles ({listed(pickles)}), which can run programs and are never opened; "
                                   "save the adapter as safetensors")  # fmt: skip
            raise RequestError(f"{path}: {WEIGHTS} is missing; copy the adapter again")
        adapter = cls(
            path=path, side=base.side, architecture=base.architecture, hf=base.hf, megatron=base.megatron, layout=base.layout,
            experts=base.experts, base=base, file=HFReader(path, pattern=WEIGHTS), config=config,
        )  # fmt: skip
        adapter._place()
        return adapter

    @property
    def kind(self) -> str:
        return "peft"

    @property
    def origin(self) -> Path:
        return self.path

    def summary(self) -> dict[str, Any]:
        numbers = {"rank": self.config.get("r"), "alpha": self._number("lora_alpha", "", "")}
        return numbers | {"targets": peft_targets(self.config), "base": str(self.base.path)}

    def _number(self, name: str, pattern: str, module: str) -> float:
        """A value of the configuration, which may have another one for some modules."""
        return number_of(self.config, name, pattern, module, self.path)

    def _scale(self, module: str, rank: int) -> float:
        return self._number("lora_alpha", "alpha_pattern", module) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _place(self) -> None:
        """Find the tensor of the base that each tensor of the adapter belongs to."""
        stacks = {region.hf[0]: region.stack for region in self.base.regions() if region.at is not None}
        names = {name for region in self.base.regions() for name in region.hf}
        parameters = [str(name).rsplit(".", 1)[-1] for name in self.config.get("target_parameters") or ()]
        halves: dict[str, dict[str, str]] = {}
        for key in self.file.entries:
            name = key.removeprefix(PREFIX)
            if match := _MATRIX.fullmatch(name):
                halves.setdefault(match[1], {})[match[2]] = key
            elif (plain := name.replace(".modules_to_save", "")) in names:
                self.whole[plain] = key
            else:
                self.unplaced.append(key)
        for module, both in halves.items():
            tensor, count = f"{module}.weight", 0
            if module.removesuffix(_NESTED).endswith(".mlp.experts"):
                # the wrapper of the second parameter encloses that of the first
                which = STACKED[0] if module.endswith(_NESTED) else (parameters[0] if len(parameters) == 1 else STACKED[1])
                tensor = f"{module.removesuffix(_NESTED)}.{which}"
                count = stacks.get(tensor, 0)
            if both.keys() != {"A", "B"} or tensor not in names:
                self.unplaced += both.values()
                continue
            rank = self.file.entries[both["A"]].shape[0] // max(count, 1)
            self.pairs[tensor] = LoraPair(both["A"], both["B"], self._scale(module, rank), count)

    def __post_init__(self) -> None:
        self.pair = lru_cache(64)(self._pair)

    def _pair(self, name: str, at: int | None) -> tuple[Tensor, Tensor] | None:
        """(A [r, in], B [out, r]) in fp32; of one expert of a stack."""
        pair = self.pairs.get(name)
        if pair is None:
            return None
        inner, outer = self.file.read(pair.inner).float(), self.file.read(pair.outer).float()
        if pair.experts:
            assert at is not None
            inner = inner.view(pair.experts, -1, inner.shape[-1])[at]
            outer = outer.view(outer.shape[0], -1, pair.experts)[:, :, at]
        return inner, outer

    def factors(self, region: Region, tensor: int) -> tuple[Tensor, Tensor] | None:
        pair = self.pair(region.hf[tensor], region.at)
        if pair is None:
            return None
        inner, outer = pair[0] * self.pairs[region.hf[tensor]].scale, pair[1]
        return (outer, inner) if self._straight(region, tensor, inner) else (inner.t(), outer.t())

    def megatron_matrices(self, region: Region, tensor: int) -> tuple[Tensor, Tensor, float] | None:
        """(A [r, in], B [out, r], scale) of one of a region's tensors, as Megatron's layer computes with them; None without an adapter."""
        pair = self.pair(region.hf[tensor], region.at)
        if pair is None:
            return None
        inner, outer = pair
        # a transposed tensor is [in, out]
        plain = self._straight(region, tensor, inner) == (region.transform != "transposed")
        a, b = (inner, outer) if plain else (outer.t(), inner.t())
        return a, b, self.pairs[region.hf[tensor]].scale

    def _straight(self, region: Region, tensor: int, inner: Tensor) -> bool:
        """Whether Hugging Face's tensor, as it is stored, is changed by B A, and not by its transpose."""
        # which of the two axes A reads is seen from its width; a square one is taken as the layer computes
        rows, columns = region.hf_shapes[tensor]
        return inner.shape[1] == columns if rows != columns else region.transform != "transposed"

    def replacement(self, region: Region, tensor: int) -> Tensor | None:
        key = self.whole.get(region.hf[tensor])
        return None if key is None else self.file.read(key, region.at)

    def check(self) -> None:
        """Raises RequestError unless the base is complete and every tensor of the adapter matches one of its weights."""
        self.base.check()
        if self.unplaced or not (self.pairs or self.whole):
            what = f"{self.unplaced[0]} has no place in {self.base.path}" if self.unplaced else "holds no adapter"
            raise RequestError(
                f"{self.path}: {what}; the adapter is of another model or kind: merge it with peft, and give the merged model"
            )
        shapes = {name: shape for region in self.base.regions() for name, shape in zip(region.hf, region.hf_shapes, strict=True)}
        stored = {name: shape for r in self.base.regions() for name, shape in zip(r.hf, r.stored_shapes, strict=True)}
        for name, pair in self.pairs.items():
            inner, outer, shape = self.file.entries[pair.inner].shape, self.file.entries[pair.outer].shape, shapes[name]
            # A has the ranks as rows, B as columns; of a stack those of every expert
            fits = len(inner) == len(outer) == len(shape) == 2 and inner[0] == outer[1] and inner[0] % max(pair.experts, 1) == 0
            if not fits or sorted((inner[1], outer[0])) != sorted(shape):
                raise RequestError(f"{self.path}: {pair.inner} and its lora_B are {list(inner)} and {list(outer)}, which do not fit {name} "
                                   f"{list(shape)} of {self.base.path}; choose the model that the adapter was trained beside")  # fmt: skip
        for name, key in self.whole.items():
            if self.file.entries[key].shape != stored[name]:
                raise RequestError(f"{self.path}: {key} is {list(self.file.entries[key].shape)}, {name} of {self.base.path} is "
                                   f"{list(stored[name])}; choose the model that the adapter was trained beside")  # fmt: skip
