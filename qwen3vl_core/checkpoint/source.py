"""Opens a model for reading: a Hugging Face folder, a Megatron checkpoint, or adapters (a LoRA run's, PEFT's) with their base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.hf import HFReader, is_hf_folder, pickled_weights
from qwen3vl_core.checkpoint.lora_merge import AdaptedSource, read_adapter_note
from qwen3vl_core.checkpoint.model_source import ModelSource, listed
from qwen3vl_core.checkpoint.name_map import Experts, Layout
from qwen3vl_core.checkpoint.peft_source import PeftSource
from qwen3vl_core.errors import RequestError
from qwen3vl_core.peft_folder import BaseMissing, base_folder, is_peft_folder, read_config
from qwen3vl_core.run_record import TRACKER
from qwen3vl_core.sizes import Architecture


def open_source(path: str | Path, hf_folder: str | None = None, option: str = "", base: str | None = None) -> ModelSource:
    """Open the model at `path`, whatever kind it is.

    hf_folder: has config and tokenizer where a Megatron checkpoint has none beside it. base: the base model of a LoRA
    run or a PEFT adapter, if it was moved since. option: named in messages. Raises RequestError for a path that is neither a model
    folder nor a checkpoint.
    """
    path = Path(path).expanduser()
    name = f"{option} {path}".strip()
    if not path.exists():
        raise RequestError(f"{name}: no such file or folder; give a Hugging Face folder or a Megatron checkpoint")
    if not path.is_dir():
        raise RequestError(f"{name}: a file; give the folder that it is in")
    checkpoint = torch_dist.find(path)
    if checkpoint:
        side = Path(hf_folder).expanduser() if hf_folder else checkpoint.root
        if not (side / "config.json").is_file():
            raise RequestError(
                f"{name}: no config.json beside {TRACKER}; add --hf with the Hugging Face folder that the checkpoint came from"
            )
        note = read_adapter_note(checkpoint.data)
        if note is not None:
            return _adapted(path, side, checkpoint, note, base)
        reader = torch_dist.RegionReader(checkpoint.data)
        architecture = Architecture.read(side)
        reader.rewrite(architecture)
        layout = Layout.found_in(reader.tensors, str(path))
        return ModelSource(path, side, architecture, None, reader, layout, checkpoint.iteration)
    if is_peft_folder(path):
        config = read_config(path)
        return PeftSource.of(path, config, open_source(base_folder(path, config, base), option="--base" if base else ""))
    if is_hf_folder(path):
        architecture, hf = Architecture.read(path), HFReader(path)
        shapes = {key: entry.shape for key, entry in hf.entries.items()}
        experts = Experts.found_in(shapes, architecture) if architecture.is_moe else None
        return ModelSource(path, path, architecture, hf=hf, experts=experts)
    pickles = pickled_weights(path)
    if pickles:
        raise RequestError(f"{name}: its weights are pickles ({listed(pickles)}), which can run programs and are never opened; "
                           "get the model as safetensors")  # fmt: skip
    names = sorted(p.name for p in path.iterdir())
    raise RequestError(
        f"{name}: neither a Hugging Face folder (config.json and .safetensors) nor a Megatron checkpoint ({TRACKER}); "
        f"it holds {listed(names) if names else 'nothing'}; choose the model's own folder"
    )


def _adapted(path: Path, side: Path, checkpoint: torch_dist.Checkpoint, note: dict[str, Any], base: str | None) -> ModelSource:
    """Open the checkpoint of a LoRA run and its base model, which may be a LoRA run's too."""
    folder = Path(base or str(note.get("base", ""))).expanduser()
    if not folder.is_dir():
        raise BaseMissing(f"{path}: holds adapters only; the model that they were trained on is missing from {folder}: restore it "
                           "there, or name it with --base of convert, inspect or compare")  # fmt: skip
    seen, next_base = {checkpoint.data.resolve()}, folder
    while (base_checkpoint := torch_dist.find(next_base)) and (base_note := read_adapter_note(base_checkpoint.data)):
        if base_checkpoint.data.resolve() in seen:
            raise RequestError(f"{path}: its adapters name themselves as their base model; copy the checkpoint again")
        seen.add(base_checkpoint.data.resolve())
        next_base = Path(str(base_note.get("base", ""))).expanduser()
    base_source = open_source(folder, option="--base" if base else "")
    return AdaptedSource.of(path, side, checkpoint.iteration, checkpoint.data, base_source, note)


def side_folder(path: str | Path, base: str | None = None) -> Path:
    """The folder with config.json and tokenizer of a model of either kind. base: as for `open_source`. Raises RequestError where there
    is none."""
    path = Path(path).expanduser()
    if is_peft_folder(path):
        return side_folder(base_folder(path, read_config(path), base))
    checkpoint = torch_dist.find(path) if path.is_dir() else None
    folder = checkpoint.root if checkpoint else path
    if not (folder / "config.json").is_file():
        raise RequestError(f"{path}: no config.json in it; give a Hugging Face folder or a Megatron checkpoint")
    return folder
