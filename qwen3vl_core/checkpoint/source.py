"""What a path holds, and the accounting of its tensors against the name map: nothing missing, nothing left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, dtype

from qwen3vl_core.checkpoint import torch_dist, transforms
from qwen3vl_core.checkpoint.accounting import describe, listed, problems
from qwen3vl_core.checkpoint.hf import HFReader, is_hf_folder, pickled_weights
from qwen3vl_core.checkpoint.name_map import Experts, Layout, Region, regions
from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import Architecture

__all__ = ["Source", "describe", "listed", "open_source", "side_folder"]


@dataclass
class Source:
    """A model to read, region by region: a Hugging Face folder or a Megatron checkpoint."""

    path: Path
    side: Path
    """Folder with config.json and tokenizer."""
    architecture: Architecture
    hf: HFReader | None = None
    megatron: torch_dist.RegionReader | None = None
    layout: Layout = Layout()
    iteration: int = 0
    experts: Experts | None = None
    """How the files keep the experts; None: as they are written."""

    @property
    def kind(self) -> str:
        return "hf" if self.hf else "megatron"

    def regions(self, layout: Layout | None = None) -> list[Region]:
        """The name map of this model. The regions of every layout come in the same order."""
        return regions(self.architecture, layout or self.layout, self.experts)

    def read_hf(self, region: Region) -> list[Tensor]:
        """The Hugging Face tensors of a region; of stacked experts its slices."""
        if self.hf:
            return [self.hf.read(name, region.at) for name in region.hf]
        return transforms.to_hf(region, self.megatron.read(region.key, region.offset, region.size))

    def read_box(self, region: Region) -> Tensor:
        """The Megatron box of a region (of this source's own layout, where it is a Megatron checkpoint)."""
        if self.hf:
            return transforms.to_megatron(region, self.read_hf(region))
        return self.megatron.read(region.key, region.offset, region.size)

    def rows(self, region: Region, tensor: int, row: int, at: int, rows: int, out: Tensor) -> None:
        """Fill `out`, flat, with rows that lie together: from `row` on in Hugging Face's tensor, from `at` on in the box.

        Which of the two counts depends on what this source is.
        """
        if self.hf:
            self.hf.read_rows(region.hf[tensor], region.at, row, out)
            return
        axis = len(region.size) - len(region.hf_shapes[0])
        offset, size = list(region.offset), list(region.size)
        offset[axis], size[axis] = offset[axis] + at, rows
        self.megatron.read(region.key, tuple(offset), tuple(size), out.view(size))

    def dtype_of(self, region: Region, tensor: int = 0) -> dtype:
        if self.hf:
            return self.hf.entries[region.hf[tensor]].dtype
        return self.megatron.tensors[region.key].properties.dtype

    def check(self) -> None:
        """Raises RequestError unless the tensors are exactly those that the architecture asks for, each of them whole."""
        for line in problems(self):
            raise RequestError(line)


def open_source(path: str | Path, hf_folder: str | None = None, option: str = "", base: str | None = None) -> Source:
    """Find out what `path` is. `hf_folder` gives config and tokenizer where a Megatron checkpoint has none beside it.

    base: where the other weights of a LoRA run's checkpoint are, if not where the run found them.
    Raises RequestError for a path that is neither a model folder nor a checkpoint; `option` names it in the message.
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
                f"{name}: no config.json beside {torch_dist.TRACKER}; add --hf with the Hugging Face folder that the checkpoint came from"
            )
        from qwen3vl_core.checkpoint import lora_merge

        note = lora_merge.noted(checkpoint.data)
        if note is not None:
            return _adapted(path, side, checkpoint, note, base)
        reader = torch_dist.RegionReader(checkpoint.data)
        layout = Layout.found_in(reader.tensors, str(path))
        return Source(path, side, Architecture.read(side), None, reader, layout, checkpoint.iteration)
    if is_hf_folder(path):
        architecture, reader = Architecture.read(path), HFReader(path)
        shapes = {key: entry.shape for key, entry in reader.entries.items()}
        return Source(path, path, architecture, hf=reader, experts=Experts.found_in(shapes, architecture) if architecture.is_moe else None)
    pickles = pickled_weights(path)
    if pickles:
        raise RequestError(f"{name}: its weights are pickles ({listed(pickles)}), which can run programs and are never opened; "
                           "get the model as safetensors")  # fmt: skip
    holds = sorted(p.name for p in path.iterdir())
    raise RequestError(
        f"{name}: neither a Hugging Face folder (config.json and .safetensors) nor a Megatron checkpoint ({torch_dist.TRACKER}); "
        f"it holds {listed(holds) if holds else 'nothing'}; choose the model's own folder"
    )


def _adapted(path: Path, side: Path, checkpoint: torch_dist.Checkpoint, note: dict[str, Any], base: str | None) -> Source:
    """The checkpoint of a LoRA run, and what it was trained beside: maybe a LoRA run's too."""
    from qwen3vl_core.checkpoint.lora_merge import AdaptedSource, noted

    where = Path(base or str(note.get("base", ""))).expanduser()
    if not where.is_dir():
        raise RequestError(f"{path}: holds adapters only; the model that they were trained beside is gone from {where}: put it there "
                           "again, or name it with qwen3vl convert --base")  # fmt: skip
    seen, at = {checkpoint.data.resolve()}, where
    while (found := torch_dist.find(at)) and (more := noted(found.data)):
        if found.data.resolve() in seen:
            raise RequestError(f"{path}: its adapters name themselves as the model beside them; copy the checkpoint again")
        seen.add(found.data.resolve())
        at = Path(str(more.get("base", ""))).expanduser()
    beside = open_source(where, option="--base" if base else "")
    return AdaptedSource.of(path, side, checkpoint.iteration, checkpoint.data, beside, note)


def side_folder(path: str | Path) -> Path:
    """The folder with config.json and tokenizer of either kind of model. Raises RequestError where there is none."""
    path = Path(path).expanduser()
    checkpoint = torch_dist.find(path) if path.is_dir() else None
    folder = checkpoint.root if checkpoint else path
    if not (folder / "config.json").is_file():
        raise RequestError(f"{path}: no config.json in it; give a Hugging Face folder or a Megatron checkpoint")
    return folder
