"""What a path holds, and the accounting of its tensors against the name map: nothing missing, nothing left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, dtype

from qwen3vl_core.checkpoint import rules, torch_dist
from qwen3vl_core.checkpoint.hf import HFReader, is_hf_folder
from qwen3vl_core.checkpoint.names import HF_EMBEDDING, HF_OUTPUT, Layout, Region, regions
from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import Architecture, size_of

# beside the model's weights a training run saves these; they are no part of a model
NOT_WEIGHTS = ("optimizer", "rng_state", "rerun_state_machine_state", "extra.")


def describe(architecture: Architecture) -> str:
    """`size 4B`, or the shape for a model of one's own."""
    size = size_of(architecture)
    if size:
        return f"size {size}"
    return f"a model of {architecture.num_layers} layers, hidden size {architecture.hidden_size}"


def listed(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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

    @property
    def kind(self) -> str:
        return "hf" if self.hf else "megatron"

    def regions(self, layout: Layout | None = None) -> list[Region]:
        """The name map of this model."""
        return regions(self.architecture, layout or self.layout)

    def read_hf(self, region: Region) -> list[Tensor]:
        """The Hugging Face tensors of a region."""
        if self.hf:
            return [self.hf.read(name) for name in region.hf]
        return rules.to_hf(region, self.megatron.read(region.key, region.offset, region.size))

    def read_box(self, region: Region) -> Tensor:
        """The Megatron box of a region (of this source's own layout, where it is a Megatron checkpoint)."""
        if self.hf:
            return rules.to_megatron(region, self.read_hf(region))
        return self.megatron.read(region.key, region.offset, region.size)

    def dtype_of(self, region: Region) -> dtype:
        if self.hf:
            return self.hf.entries[region.hf[0]].dtype
        return self.megatron.tensors[region.key].properties.dtype

    def check(self) -> None:
        """Raises RequestError unless the tensors are exactly those that the architecture asks for."""
        (_check_hf if self.hf else _check_megatron)(self)


def open_source(path: str | Path, hf_folder: str | None = None, option: str = "") -> Source:
    """Find out what `path` is. `hf_folder` gives config and tokenizer where a Megatron checkpoint has none beside it.

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
        reader = torch_dist.RegionReader(checkpoint.data)
        layout = Layout.found_in(reader.tensors, str(path))
        return Source(path, side, Architecture.read(side), megatron=reader, layout=layout, iteration=checkpoint.iteration)
    if is_hf_folder(path):
        return Source(path, path, Architecture.read(path), hf=HFReader(path))
    holds = sorted(p.name for p in path.iterdir())
    raise RequestError(
        f"{name}: neither a Hugging Face folder (config.json and .safetensors) nor a Megatron checkpoint ({torch_dist.TRACKER}); "
        f"it holds {listed(holds) if holds else 'nothing'}; choose the model's own folder"
    )


def side_folder(path: str | Path) -> Path:
    """The folder with config.json and tokenizer of either kind of model. Raises RequestError where there is none."""
    path = Path(path).expanduser()
    checkpoint = torch_dist.find(path) if path.is_dir() else None
    folder = checkpoint.root if checkpoint else path
    if not (folder / "config.json").is_file():
        raise RequestError(f"{path}: no config.json in it; give a Hugging Face folder or a Megatron checkpoint")
    return folder


def _other_size(source: Source, name: str, there: tuple[int, ...], expected: tuple[int, ...]) -> RequestError:
    return RequestError(
        f"{source.path}: {name} is {list(there)}, but {source.side / 'config.json'} ({describe(source.architecture)}) asks for "
        f"{list(expected)}: weights and config are of different sizes; take both from one checkpoint"
    )


def _check_hf(source: Source) -> None:
    entries = source.hf.entries
    expected = {name: shape for region in source.regions() for name, shape in zip(region.hf, region.hf_shapes, strict=True)}
    for name, shape in expected.items():
        if name in entries and entries[name].shape != shape:
            raise _other_size(source, name, entries[name].shape, shape)
    missing = [name for name in expected if name not in entries]
    unused = [name for name in entries if name not in expected]
    if HF_OUTPUT in unused and source.architecture.tied and HF_EMBEDDING in entries:
        # some writers store the tied matrix twice; it is written once, if it really is the same
        if not source.hf.read(HF_OUTPUT).equal(source.hf.read(HF_EMBEDDING)):
            raise RequestError(f"{source.path}: config.json ties the embeddings, but {HF_OUTPUT} differs from {HF_EMBEDDING}; "
                               "set tie_word_embeddings to what the weights are")  # fmt: skip
        unused.remove(HF_OUTPUT)
    _refuse(source, missing, unused)


def _check_megatron(source: Source) -> None:
    tensors = source.megatron.tensors
    expected = {region.key: region.global_shape for region in source.regions()}
    vocabulary = {key for key in expected if key.endswith(("word_embeddings.weight", "output_layer.weight"))}
    for key, shape in expected.items():
        if key not in tensors:
            continue
        there = tuple(tensors[key].size)
        # Megatron-LM pads the vocabulary to a round number of rows
        if there != shape and not (key in vocabulary and there[1:] == shape[1:] and there[0] > shape[0]):
            raise _other_size(source, key, there, shape)
    missing = [key for key in expected if key not in tensors]
    unused = [key for key in tensors if key not in expected and not key.startswith(NOT_WEIGHTS) and not key.endswith("_extra_state")]
    _refuse(source, missing, unused)


def _refuse(source: Source, missing: list[str], unused: list[str]) -> None:
    config = f"{source.side / 'config.json'} ({describe(source.architecture)})"
    if missing:
        raise RequestError(
            f"{source.path}: {len(missing)} tensors that {config} asks for are missing: {listed(missing)}; "
            "the checkpoint is of another size or not whole"
        )
    if unused:
        raise RequestError(
            f"{source.path}: {len(unused)} tensors have no place in {config}: {listed(unused)}; the checkpoint is of another size or kind"
        )
