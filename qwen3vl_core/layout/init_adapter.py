"""What `--init-adapter` says of a run's adapters: rank, alpha, layers and parts of a PEFT folder or of a LoRA run. Imports no torch.

PEFT adapts query, key and value, gate and up projection each by itself; Megatron has them in one matrix with one A. Adapters whose A differ
are put below each other: q, k and v of rank r become one adapter of rank 3 r, whose B is zero outside of three blocks. Alpha grows with the
rank, so that the scale alpha / rank stays. Smaller adapters of the same model are filled up with columns of zeros.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular
from qwen3vl_core.layout.resuming import adapters_of, step_folder
from qwen3vl_core.options import FinetuneOptions, options_of
from qwen3vl_core.options.finetune import LORA_TARGETS, PARTS
from qwen3vl_core.peft_folder import WEIGHTS, base_folder, is_peft_folder, number_of, read_config
from qwen3vl_core.problems import Problem

# names of PEFT's modules -> (part, Megatron's layer)
_LAYERS = (
    (r"model\.language_model\.layers\.\d+\.self_attn\.[qkv]_proj", "language", "linear_qkv"),
    (r"model\.language_model\.layers\.\d+\.self_attn\.o_proj", "language", "linear_proj"),
    (r"model\.language_model\.layers\.\d+\.mlp\.(experts\.\d+\.)?(gate|up)_proj", "language", "linear_fc1"),
    (r"model\.language_model\.layers\.\d+\.mlp\.(experts\.\d+\.)?down_proj", "language", "linear_fc2"),
    (r"model\.language_model\.layers\.\d+\.mlp\.experts\.gate_up_proj", "language", "linear_fc1"),
    (r"model\.language_model\.layers\.\d+\.mlp\.experts\.down_proj", "language", "linear_fc2"),
    (r"model\.visual\.blocks\.\d+\.attn\.qkv", "vision", "linear_qkv"),
    (r"model\.visual\.blocks\.\d+\.attn\.proj", "vision", "linear_proj"),
    (r"model\.visual\.blocks\.\d+\.mlp\.linear_fc1", "vision", "linear_fc1"),
    (r"model\.visual\.blocks\.\d+\.mlp\.linear_fc2", "vision", "linear_fc2"),
    (r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc1", "projector", "linear_fc1"),
    (r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc2", "projector", "linear_fc2"),
)
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class AdapterSettings:
    """What a run needs to hold the adapters of a folder."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    parts: tuple[str, ...]
    base: str
    """The model beside them, as the folder names it; empty if it does not."""
    own_rank: int
    """As the folder has it, before adapters of one matrix are put together."""
    own_alpha: float

    def as_options(self) -> dict[str, Any]:
        """The options of a finetune that these settings decide."""
        beyond = tuple(part for part in self.parts if part != "language")
        adapted = PARTS if beyond else ("language",)
        frozen = [part for part in PARTS if part in adapted and part not in self.parts]
        return {
            "lora_rank": self.rank, "lora_alpha": self.alpha, "lora_vision": bool(beyond), "freeze": ",".join(frozen),
            "lora_targets": ",".join(name for name in LORA_TARGETS if name in self.targets),
        }  # fmt: skip


def settings_of(path: str) -> AdapterSettings:
    """The settings of the adapters at `path`. Raises RequestError where there are none, or none that can be trained here."""
    folder = Path(path).expanduser()
    if is_peft_folder(folder):
        return _of_peft(folder)
    try:
        note = adapters_of(step_folder(path))
    except RequestError:
        note = None
    if note is None:
        raise RequestError(Problem("no-adapter", "init_adapter", path))
    try:
        rank, alpha = int(note["rank"]), float(note["alpha"])
        targets, parts = tuple(map(str, note["targets"])), tuple(map(str, note["parts"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RequestError(Problem("no-adapter", "init_adapter", path)) from None
    return AdapterSettings(rank, alpha, targets, parts, str(note.get("base") or ""), rank, alpha)


def _of_peft(folder: Path) -> AdapterSettings:
    config = read_config(folder)
    header, start = _header(folder / WEIGHTS)
    parameters = [str(name).rsplit(".", 1)[-1] for name in config.get("target_parameters") or ()]
    weights: dict[str, str] = {}
    layers: dict[tuple[str, str], dict[str, int]] = {}
    for key in header:
        match = _MATRIX.fullmatch(key.removeprefix(_PREFIX))
        name = _module(match[1], parameters) if match else key.removeprefix(_PREFIX)
        layer = next(((part, target) for pattern, part, target in _LAYERS if re.fullmatch(pattern, name)), None)
        if match is None or layer is None:
            what = "adapter" if match else "tensor"
            raise RequestError(Problem("adapter-not-trained-here", "init_adapter", str(folder), {"what": what, "name": name}))
        if match[2] == "A":
            weights[name] = key
            # which matrix of Megatron's a module is part of
            fused = name if name.endswith("experts.gate_up_proj") else re.sub(r"([qkv]|gate|up)_proj$", layer[1], name)
            layers.setdefault((layer[1], fused), {})[name] = int(number_of(config, "r", "rank_pattern", match[1], folder))
    if not weights:
        raise RequestError(Problem("no-adapter", "init_adapter", str(folder)))
    shared: dict[str, bool] = {}
    rank = 1
    for (target, _), ranks in layers.items():
        if len(ranks) > 1 and target not in shared:
            # where query, key and value have the same A, as our own export writes them, they are one adapter
            contents = {_bytes(folder / WEIGHTS, start, header[weights[name]]) for name in ranks}
            shared[target] = len(contents) == 1
        rank = max(rank, max(ranks.values()) if shared.get(target, False) else sum(ranks.values()))
    own = int(number_of(config, "r", "", "", folder))
    alpha = number_of(config, "lora_alpha", "", "", folder)
    scale = alpha / (math.sqrt(own) if config.get("use_rslora") else own)
    targets = {target for _, target in (_layer_of(name) for name in weights)}
    parts = {part for part, _ in (_layer_of(name) for name in weights)}
    try:
        base = str(base_folder(folder, config))
    except RequestError:
        base = ""
    return AdapterSettings(
        rank, scale * rank, tuple(t for t in LORA_TARGETS if t in targets), tuple(p for p in PARTS if p in parts), base, own, alpha
    )


def _layer_of(name: str) -> tuple[str, str]:
    return next((part, target) for pattern, part, target in _LAYERS if re.fullmatch(pattern, name))


def _module(name: str, parameters: list[str]) -> str:
    """The module that a pair of matrices adapts; of stacked experts the parameter, as `peft_source` finds it."""
    plain = name.removesuffix(".base_layer")
    if not plain.endswith(".mlp.experts"):
        return name
    # the wrapper of the second parameter encloses that of the first
    which = "gate_up_proj" if name != plain else (parameters[0] if len(parameters) == 1 else "down_proj")
    return f"{plain}.{which}"


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(tensors of a safetensors file, where their bytes begin). Raises RequestError."""
    try:
        with open_regular(file, links=True) as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= limits.SAFETENSORS_HEADER:
                raise ValueError(size)
            header = json.loads(stream.read(size))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        assert all(len(entry["data_offsets"]) == 2 for entry in tensors.values())
    except FileNotFoundError:
        raise RequestError(f"{file}: missing; copy the adapter again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise RequestError(f"{file}: not readable; copy the adapter again") from None
    return tensors, 8 + size


def _bytes(file: Path, start: int, entry: Mapping[str, Any]) -> bytes:
    begin, end = entry["data_offsets"]
    with open_regular(file, links=True) as stream:
        stream.seek(start + begin)
        return stream.read(max(end - begin, 0))


def with_adapter(options: FinetuneOptions) -> FinetuneOptions:
    """The options with what `--init-adapter` decides: rank, alpha, layers and parts, and the model beside it if there is no `--load`.
    Doing so twice changes nothing. Raises RequestError for an option that says otherwise."""
    path = options.init_adapter
    if not path:
        return options
    if options.resume:
        raise RequestError(Problem("init-adapter-resumes", "init_adapter", path, remedies=({"resume": None}, {"init_adapter": None})))
    if not Path(path).expanduser().exists():
        if options.lora_rank and options.load:
            # a run that resumes: its checkpoint has the adapters
            return options
        raise RequestError(Problem("no-adapter", "init_adapter", path))
    settings = settings_of(path)
    values, problems = settings.as_options(), []
    aliases = {"lora_rank": settings.own_rank, "lora_alpha": settings.own_alpha}
    defaults = {o.name: o.default for o in options_of(FinetuneOptions)}
    if set(dataclasses.replace(options, **(values | {"freeze": options.freeze})).lora_parts()) == set(settings.parts):
        # also freezing a part that has no adapters changes nothing
        values["freeze"] = options.freeze
    for name, value in values.items():
        given = getattr(options, name)
        if given not in (defaults[name], value, aliases.get(name, value)):
            problems.append(Problem("adapter-says-otherwise", name, given, {"adapter": path, "value": value}, ({name: None},)))
    load = options.load or settings.base
    if load and Path(load).expanduser().resolve() == Path(path).expanduser().resolve():
        problems.append(Problem("adapter-is-the-model", "load", load))
    if problems:
        raise RequestError(*problems)
    return dataclasses.replace(options, load=load, **values)
