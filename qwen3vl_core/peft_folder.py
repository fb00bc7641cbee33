"""A PEFT adapter's folder: its `adapter_config.json`, and where the model is that it was trained beside. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


_TYPES: dict[str, tuple[type, ...]] = {
    "target_modules": (list, str), "target_parameters": (list,), "rank_pattern": (dict,), "alpha_pattern": (dict,), "r": (int,),
    "lora_alpha": (int, float), "base_model_name_or_path": (str,),
}  # fmt: skip
"""What these entries hold where they hold anything."""


class BaseMissing(RequestError):
    """The model that adapters were trained beside is not on this machine."""


def is_peft_folder(path: Path) -> bool:
    """True for a folder with an adapter's configuration, complete or not."""
    return (path / CONFIG).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises RequestError for one that is not readable, or of adapters that are not merged here."""
    file = folder / CONFIG
    config = read_object(file, limits.CONFIG, copy="copy the adapter")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{file}: adapters of type {kind!r}, only LORA is read; merge them with peft, and give the merged model")
    for name, kinds in _TYPES.items():
        if not isinstance(config.get(name) or kinds[0](), kinds):
            raise RequestError(f"{file}: {name} is no {' or '.join(kind.__name__ for kind in kinds)}; copy the adapter again")
    for name, word in (("use_dora", "DoRA"), ("fan_in_fan_out", "fan_in_fan_out"), ("alora_invocation_tokens", "activated LoRA")):
        if config.get(name):
            raise RequestError(f"{file}: {word} is not read; merge the adapter with peft, and give the merged model")
    return config


def number_of(config: dict[str, Any], name: str, pattern: str, module: str, folder: Path) -> float:
    """A number of the configuration, which may have another one for some modules under `pattern`. Raises RequestError without one."""
    patterns = config.get(pattern) or {}
    try:
        own = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config.get(name))
    except (TypeError, re.error, RecursionError, OverflowError):
        raise RequestError(f"{folder}: adapter_config.json has no valid {pattern}; copy the adapter again") from None
    if not isinstance(own, int | float) or isinstance(own, bool) or not 0 < own < 1e6:
        raise RequestError(f"{folder}: adapter_config.json has no {name}; copy the adapter again")
    return float(own)


def base_folder(folder: Path, config: dict[str, Any], base: str | None = None) -> Path:
    """The model that an adapter was trained beside: `base` where given, else what the configuration names, as a folder or as the name
    of a model in Hugging Face's cache. Raises RequestError where it is not on this machine."""
    if base is not None:
        return Path(base).expanduser()
    named = str(config.get("base_model_name_or_path") or "")
    places = [Path(named).expanduser(), folder / named] if named else []
    try:
        model = next((place for place in places if place.is_dir()), None) or (_cached(named) if named else None)
    except (OSError, ValueError):  # no name that a file system takes
        model = None
    if model is None:
        what = (
            f"the model that it was trained beside, {named}, is not on this machine" if named else "it does not say which model it is for"
        )
        raise BaseMissing(f"{folder}: a PEFT adapter, and {what}; name the model's folder with --base of convert, inspect or compare")
    if model.resolve() == folder.resolve():
        raise RequestError(
            f"{folder}: the adapter names itself as the model beside it; name the model with --base of convert, inspect or compare"
        )
    return model


def _cached(name: str) -> Path | None:
    """The newest complete snapshot of a model in Hugging Face's cache, by its name; no network is asked."""
    if name.count("/") != 1:
        return None
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    snapshots = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    complete = [folder for folder in snapshots.glob("*") if (folder / "config.json").exists()]
    return max(complete, key=lambda folder: folder.stat().st_mtime, default=None)
