"""The steps of the loop in a workspace: which are done, which is next, and the initial values of its form. Blocking; imports no Textual."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.readers.run_rows import RunRow, Snapshot
from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import CHECKPOINTS, TRACKER
from qwen3vl_core.sizes import Architecture, size_of

DONE, NEXT, LATER, LIVE = "done", "next", "later", "live"
GLYPHS = {DONE: "✓", NEXT: "▸", LATER: "·", LIVE: "▶"}


@dataclass(frozen=True)
class LoopStep:
    """One step of the loop."""

    kind: str
    """Command, and kind of the form."""
    title: str
    text: str
    state: str
    values: dict[str, Any] = field(default_factory=dict)
    """Initial values of its form."""


def steps(workspace: Mapping[str, Any], snapshot: Snapshot) -> list[LoopStep]:
    """Steps of a workspace that names its data: prepare, convert, finetune, convert back, compare. Empty for another workspace."""
    get: Callable[[str], Any] = workspace.get
    names = ("train_json", "data", "base", "base_mcore", "tuned_hf", "heldout_images")
    if not all(isinstance(get(name), str) for name in names):
        return []
    rows = snapshot.rows
    trained = next((row for row in rows if row.kind == "finetune" and row.status == "done"), None)
    checkpoints = str(trained.run.path / CHECKPOINTS) if trained else ""
    finetune = get("finetune") if isinstance(get("finetune"), dict) else {}
    keys = {"base": "base", "tuned": "tuned_hf", "prompt": "prompt", "references": "references"}
    compare = {name: get(key) for name, key in keys.items()}
    loop = [
        ("prepare", "Prepare", "pictures and captions to shards", Path(get("data"), "report.json").exists(),
         {"source": get("train_json"), "to": get("data")}),
        ("convert", "Convert", "the base model, Hugging Face to Megatron", Path(get("base_mcore"), TRACKER).exists(),
         {"source": get("base"), "target": get("base_mcore")}),
        ("finetune", "Finetune", "short captions; watch the loss fall", trained is not None,
         {"load": get("base_mcore"), "train_data": get("data"), **finetune}),
        ("convert", "Convert back", "the finetuned model, Megatron to Hugging Face", Path(get("tuned_hf"), "config.json").exists(),
         {"source": checkpoints, "target": get("tuned_hf")}),
        ("compare", "Compare", "both models' captions side by side", any(_compared(row, get("tuned_hf")) for row in rows),
         {**compare, "images": [get("heldout_images")]}),
    ]  # fmt: skip
    loop_steps, before = [], True
    for kind, title, text, done, values in loop:
        live = not done and any(row.alive and _is(row, kind, values) for row in rows)
        state = DONE if done else LIVE if live else NEXT if before else LATER
        loop_steps.append(LoopStep(kind, title, text, state, {k: v for k, v in values.items() if v}))
        before = before and done
    return loop_steps


def _compared(row: RunRow, tuned: str) -> bool:
    """Whether a run has compared this finetuned model."""
    models = row.run.options.get("tuned")
    return row.kind == "compare" and row.status == "done" and tuned in (models if isinstance(models, list) else [models])


def _is(row: RunRow, kind: str, values: Mapping[str, Any]) -> bool:
    """Whether a run is this step; there are two conversions, which differ in their targets."""
    return row.kind == kind and (kind != "convert" or row.run.options.get("target") == values["target"])


@dataclass(frozen=True)
class OpenedModel:
    """A model that the user opened, and the initial values that it gives to forms."""

    kind: str
    """Kind of the form to open."""
    words: str
    workspace: dict[str, Any]


def open_model(text: str) -> OpenedModel:
    """Identify a model's folder. Raises RequestError if it is not one, with the fix."""
    folder = Path(os.path.expandvars(text.strip().strip("'\""))).expanduser()
    if not text.strip():
        raise RequestError("give the path of a folder: a Hugging Face model (config.json and .safetensors), or a Megatron checkpoint")
    if not folder.exists():
        raise RequestError(filled("{}: no such folder; correct the path, or get a model: qwen3vl download model NAME --to DIR", folder))
    if folder.is_file():
        raise RequestError(filled("{}: is a file; give the folder that contains it", folder))
    folder = folder.absolute()
    checkpoint = (folder / TRACKER).is_file() or (folder / ".metadata").is_file()
    if not checkpoint and not (folder / "config.json").is_file():
        inside = sorted(child.name for child in folder.iterdir() if (child / "config.json").is_file())[:3]
        hint = f"; there is one in {', '.join(inside)}" if inside else "; choose the model's own folder"
        raise RequestError(filled("{}: neither config.json nor {} in it, so this is not a model{}", folder, TRACKER, hint))
    size = ""
    if (folder / "config.json").is_file():
        size = size_of(Architecture.read(folder)) or "custom size"
    if checkpoint:
        return OpenedModel("finetune", f"Megatron checkpoint {folder.name} {size}".strip(), {"base_mcore": str(folder)})
    if not any(folder.glob("*.safetensors")):
        raise RequestError(
            filled("{}: config.json without .safetensors beside it; the download is incomplete, run qwen3vl download again", folder)
        )
    target = folder.with_name(folder.name + "-mcore")
    if not os.access(folder.parent, os.W_OK):
        target = Path.cwd() / target.name
    return OpenedModel("convert", f"{folder.name}, {size}", {"base": str(folder), "base_mcore": str(target)})


def models_nearby(folders: tuple[Path, ...] = ()) -> list[str]:
    """Folders with a Qwen3-VL model in the usual places. Blocking; filters by name and reads few files."""
    home = Path.home()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / ".cache/huggingface") / "hub")
    scope = Path(os.environ.get("MODELSCOPE_CACHE") or home / ".cache/modelscope/hub")
    patterns = [
        *((folder, "*/config.json") for folder in (*folders, Path.cwd(), home / "models")),
        (hub, "models--*Qwen3-VL*/snapshots/*/config.json"),
        (scope, "models/Qwen/Qwen3-VL*/config.json"), (scope, "Qwen/Qwen3-VL*/config.json"),
    ]  # fmt: skip
    models: dict[str, None] = {}
    for root, pattern in patterns:
        try:
            files = sorted(root.glob(pattern))[:50]
            for file in files:
                if b'"qwen3_vl' in read_small(file, limits.CONFIG):
                    models[str(file.parent)] = None
        except (OSError, RequestError):
            continue
    return list(models)[:8]
