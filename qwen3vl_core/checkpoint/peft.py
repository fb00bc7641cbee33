"""The adapters of a LoRA run as a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`, as `peft` reads them.

Hugging Face has separate query, key, value, gate and up projections: each gets the shared A and its own rows of B. All experts of a
layer are one parameter there (`target_parameters`): the A matrices of the experts are concatenated by rows, the columns of B are
ordered by rank first and expert second, and the wrapper of the second parameter encloses that of the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen3vl_core import limits
from qwen3vl_core.checkpoint.hf import is_hf_folder
from qwen3vl_core.checkpoint.lora_merge import AdaptedSource
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.name_map import HF_VISION, Region
from qwen3vl_core.files import read_small
from qwen3vl_core.peft_folder import CONFIG, WEIGHTS
from qwen3vl_core.sizes import size_of

PREFIX = "base_model.model."
ORIGIN = "origin.json"
"""Beside the weights of a converted checkpoint."""
PUBLISHED, NAMES = "Qwen/Qwen3-VL-{}-Instruct", {"A3B": "30B-A3B", "A22B": "235B-A22B"}
# the parameters of a layer's experts in the order in which peft wraps them
STACKED = ("gate_up_proj", "down_proj")


def _matrices(source: AdaptedSource, region: Region) -> tuple[Tensor, Tensor]:
    matrices = source.matrices(region)
    assert matrices is not None, f"{region.key} has no adapter"
    return matrices


def _single(source: AdaptedSource, region: Region, tensors: dict[str, Tensor]) -> None:
    """Add the adapters of the linear layers that a region holds to `tensors`."""
    inner, outer = _matrices(source, region)
    for name, rows in zip(region.hf, source.outer_parts(region, outer), strict=True):
        module = PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = inner.clone(), rows.contiguous()


def _stacked(source: AdaptedSource, regions: list[Region], wrappers: int, tensors: dict[str, Tensor]) -> None:
    """Add the adapters of all experts of one parameter to `tensors`.

    regions: in the order of the experts. wrappers: how many other PEFT wrappers enclose this one.
    """
    pairs = [_matrices(source, region) for region in regions]
    module = PREFIX + regions[0].hf[0].rsplit(".", 1)[0] + ".base_layer" * wrappers
    tensors[f"{module}.lora_A.weight"] = torch.cat([inner for inner, _ in pairs])
    tensors[f"{module}.lora_B.weight"] = torch.stack([outer for _, outer in pairs], dim=-1).flatten(1)


def tensors_of(source: AdaptedSource) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(tensors by PEFT's names, `target_modules`, `target_parameters`): the last two are endings of names."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, None] = {}
    stacks: dict[str, list[Region]] = {}
    for region in source.regions():
        if source.adapted_region(region) is None:
            continue
        if region.at is not None:
            stacks.setdefault(region.hf[0], []).append(region)
            continue
        _single(source, region, tensors)
        for name in region.hf:
            words = name.removesuffix(".weight").split(".")
            # two words for the vision tower: its blocks and mergers share single names
            modules[words[-1] if not name.startswith(HF_VISION) else ".".join(words[2:] if "blocks" not in words else words[-2:])] = None
    parameters = dict.fromkeys(".".join(name.rsplit(".", 3)[-3:]) for name in stacks)
    kinds = {name.rsplit(".", 1)[-1] for name in stacks}
    for name, regions in stacks.items():
        is_wrapped = name.rsplit(".", 1)[-1] == STACKED[0] and len(kinds) > 1
        _stacked(source, sorted(regions, key=lambda r: r.at or 0), int(is_wrapped), tensors)
    return tensors, list(modules), list(parameters)


def base_name(source: AdaptedSource, hf_folder: str | None) -> str:
    """The base model as PEFT loads it: a Hugging Face folder, or a name on the hub.

    hf_folder: given by the user. Else the base where it is such a folder, else what its Megatron checkpoint was converted from, else
    the published model of its size.
    """
    if hf_folder:
        return str(Path(hf_folder).expanduser().absolute())
    base: ModelSource = source.base
    if base.kind == "hf":
        return str(base.path.absolute())
    origin = converted_from(base.megatron.data) if base.kind == "megatron" and base.megatron else None
    size = size_of(base.architecture)
    return origin or (PUBLISHED.format(NAMES.get(size, size)) if size and size != "tiny" else str(base.path.absolute()))


def note_source(data: Path, source: Path) -> None:
    """Write beside a converted checkpoint's weights which Hugging Face folder they are of."""
    (data / ORIGIN).write_text(json.dumps({"converted_from": str(source.absolute())}) + "\n")


def converted_from(data: Path) -> str | None:
    """The Hugging Face folder that a checkpoint was converted from, if it is still there."""
    try:
        folder = json.loads(read_small(data / ORIGIN, limits.CONFIG))["converted_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if isinstance(folder, str) and is_hf_folder(Path(folder)) else None


def config_of(source: AdaptedSource, modules: list[str], parameters: list[str], base: str) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    a = source.adapters
    alpha = int(a.alpha) if float(a.alpha).is_integer() else a.alpha
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "r": a.rank, "lora_alpha": alpha,
        # peft has no dropout for parameters, and dropout is for training only
        "lora_dropout": 0.0 if parameters else a.dropout, "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "inference_mode": True, "init_lora_weights": True, "target_modules": modules or None, "modules_to_save": None,
    } | ({"target_parameters": parameters} if parameters else {})  # fmt: skip


def write_peft(source: AdaptedSource, folder: Path, dtype: torch.dtype | None, base: str) -> dict[str, Tensor]:
    """Write the adapter into `folder`, in its saved precision or in `dtype`. base: see `base_name`. Returns its tensors."""
    tensors, modules, parameters = tensors_of(source)
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config_of(source, modules, parameters, base), indent=2) + "\n")
    return tensors
