"""One encoded sample, and a micro batch of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qwen3vl_core.data.pictures import CHANNELS, PictureRules
from qwen3vl_core.structure.buckets import LEAST_ROW, bucket, packed_row, round_up
from qwen3vl_core.structure.micro_batch import IGNORED, Structure, StructureRules, build_structure, select_trained
from qwen3vl_core.structure.picture_shares import own_patches


def _none(*width: int, kind: type = np.uint8) -> np.ndarray:
    return np.zeros((0, *width), dtype=kind)


@dataclass(frozen=True)
class Encoded:
    """One sample, ready to be collated; arrays only, as they are cheap to send between processes."""

    key: str
    ids: np.ndarray
    """int64 [s], pictures' placeholders repeated once for each of their tokens."""
    labels: np.ndarray
    """int64 [s], already shifted: labels[i] is the token to predict at position i, or IGNORED."""
    patches: np.ndarray
    """uint8 [n, 3 * patch * patch] of all pictures, in order."""
    grids: np.ndarray
    """int64 [k, 3], (1, rows, columns) in patches of each picture."""
    video_patches: np.ndarray = field(default_factory=lambda: _none(0))
    """uint8 [n, 3 * frames * patch * patch] of all videos, in order."""
    video_grids: np.ndarray = field(default_factory=lambda: _none(3, kind=np.int64))
    """int64 [k, 3], (temporal patches, rows, columns) in patches of each video."""

    @property
    def tokens(self) -> int:
        """Trained tokens."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Batch:
    """A micro batch on the host."""

    input_ids: torch.Tensor
    """long [b, s], padded right."""
    labels: torch.Tensor
    """long [b, s], already shifted: labels[i] is the token to predict at position i; IGNORED is not trained."""
    lengths: torch.Tensor
    """long [b], tokens of each row before the padding; of a packed row [documents], tokens of each document before its own."""
    patches: torch.Tensor
    """uint8 [n, 3 * patch * patch]: one frame, merge order."""
    image_grid_thw: torch.Tensor
    """long [k, 3] in patches; k is 0 for a batch without pictures."""
    keys: list[str]
    rules: PictureRules
    video_patches: torch.Tensor
    """uint8 [n, 3 * frames * patch * patch]: all frames of a temporal patch, merge order."""
    video_grid_thw: torch.Tensor
    """long [k, 3] in patches; k is 0 for a batch without videos."""
    video_rules: PictureRules | None
    """None where the checkpoint reads no videos."""
    cu_seqlens: torch.Tensor | None = None
    """long [documents + 1], of a packed row: where each document begins, and the end of the last; b is 1 then."""
    structure: Structure | None = None
    """Positions, masks and indices of the batch, built by `structured`; `patches` and `video_patches` are then those of this context
    parallel rank, padded to match."""
    dealt: int = 0
    """Checksum of how the samples of its global batch were dealt to the ranks: the same on all of them."""

    @property
    def tokens(self) -> int:
        """Trained tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def attention_mask(self) -> torch.Tensor:
        """long [b, s]: 1 for tokens, 0 for padding."""
        positions = torch.arange(self.input_ids.shape[1])
        if self.cu_seqlens is None:
            return (positions < self.lengths[:, None]).long()
        document = torch.bucketize(positions, self.cu_seqlens[1:], right=True)
        return (positions < (self.cu_seqlens[:-1] + self.lengths)[document]).long()[None]

    def model_inputs(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward, as the Hugging Face processor names them, on `device`.

        input_ids and attention_mask long [b, s]; with pictures also pixel_values `dtype` [n, 3 * frames * patch * patch]
        and image_grid_thw long [k, 3]; with videos pixel_values_videos and video_grid_thw in the same way. A packed row
        has cu_seqlens long [documents + 1] too; it stays on the host, where it is looped over.
        """
        inputs = {key: getattr(self, key).to(device, non_blocking=True) for key in ("input_ids", "attention_mask")}
        if self.cu_seqlens is not None:
            inputs["cu_seqlens"] = self.cu_seqlens
        if len(self.image_grid_thw):
            inputs["pixel_values"] = pixel_values(self.patches.to(device, non_blocking=True), self.rules, dtype)
            inputs["image_grid_thw"] = self.image_grid_thw.to(device, non_blocking=True)
        if len(self.video_grid_thw):
            assert self.video_rules is not None
            inputs["pixel_values_videos"] = pixel_values(self.video_patches.to(device, non_blocking=True), self.video_rules, dtype)
            inputs["video_grid_thw"] = self.video_grid_thw.to(device, non_blocking=True)
        return inputs

    @property
    def shaped(self) -> Structure:
        """The structure that `structured` has built."""
        assert self.structure is not None
        return self.structure

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that a training step reads of the batch, by name; `structured` comes first."""
        pixels = {"patches": self.patches, "video_patches": self.video_patches}
        return self.shaped.tensors() | {name: value for name, value in pixels.items() if len(value)}

    def inputs_of(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """What a training step calls the model with, made of `tensors` on a device: {"structure": …, "pixel_values": `dtype`
        [P, 3 * frames * p * p], pictures, then videos, normalised there; None without any}."""
        structure = self.shaped.with_tensors({name: tensors[name] for name in self.shaped.tensors()})
        given = ((tensors.get("patches"), self.rules), (tensors.get("video_patches"), self.video_rules))
        parts = [pixel_values(part, rules, dtype) for part, rules in given if part is not None and rules is not None]
        return {"structure": structure, "pixel_values": torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None}

    def step_inputs(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
        """`inputs_of` the batch's own tensors on `device`."""
        return self.inputs_of({name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}, dtype)

    def structured(self, rules: StructureRules) -> Batch:
        """A copy with its structure; rows are padded as `rules` say, and joined to one packed row where these have buckets."""
        batch = self._joined(rules) if rules.buckets else self
        structure = build_structure(
            rules, batch.input_ids, batch.attention_mask, batch.image_grid_thw, batch.video_grid_thw, labels=batch.labels,
            cu_seqlens=batch.cu_seqlens,
        )  # fmt: skip
        if rules.buckets:
            structure = structure if rules.all_logits else select_trained(structure)
        share = functools.partial(own_patches, size=rules.cp_size, rank=rules.cp_rank, buckets=rules.buckets)
        patches, video_patches = share(batch.patches, batch.image_grid_thw), share(batch.video_patches, batch.video_grid_thw)
        return replace(batch, patches=patches, video_patches=video_patches, structure=structure)

    def _joined(self, rules: StructureRules) -> Batch:
        """All rows, or the documents of a packed row, as documents of one row, padded to a bucket by a document of padding."""
        if self.cu_seqlens is None:
            # context parallelism splits each document into 2 x cp parts
            lengths = [round_up(tokens, 2 * rules.cp_size if rules.cp_size > 1 else 1) for tokens in self.lengths.tolist()]
            more = max(0, max(lengths) - self.input_ids.shape[1])
            padded = F.pad(self.input_ids, (0, more)), F.pad(self.labels, (0, more), value=IGNORED)
            ids, labels = (torch.cat([row[:tokens] for row, tokens in zip(rows, lengths, strict=True)]) for rows in padded)
            bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
            length = bucket(len(ids), max(LEAST_ROW, rules.length_multiple))
        else:
            ids, labels, bounds = self.input_ids[0], self.labels[0], self.cu_seqlens
            length = packed_row(len(ids), rules.seq_length, max(LEAST_ROW, rules.length_multiple), whole=rules.equal_rows)
        padding = round_up(length, rules.length_multiple) - len(ids)
        if not padding:
            return replace(self, input_ids=ids[None], labels=labels[None], cu_seqlens=bounds)
        return replace(
            self, input_ids=F.pad(ids, (0, padding))[None], labels=F.pad(labels, (0, padding), value=IGNORED)[None],
            cu_seqlens=F.pad(bounds, (0, 1), value=len(ids) + padding), lengths=F.pad(self.lengths, (0, 1)),
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        # as arrays, through the loader process's pipe: tensors would go through /dev/shm, which is small in containers
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "structure"}
        arrays = {name: value.numpy() for name, value in own.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in own.items() if name not in arrays}
        if self.structure is None:
            return _batch_of_arrays, (arrays, rest, None, {})
        of_structure = {name: value.numpy() for name, value in self.structure.tensors().items()}
        return _batch_of_arrays, (arrays, rest, self.structure.mapped(lambda value: None), of_structure)

    def pin_memory(self) -> Batch:
        """A copy in pinned memory, for asynchronous copies to the GPU; called by PyTorch's DataLoader."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in own.items() if isinstance(value, torch.Tensor)}
        return replace(self, **pinned, structure=self.structure and self.structure.mapped(torch.Tensor.pin_memory))


def _batch_of_arrays(
    arrays: dict[str, np.ndarray], rest: dict[str, Any], structure: Structure | None, of_structure: dict[str, np.ndarray]
) -> Batch:
    if structure is not None:
        structure = structure.with_tensors({name: torch.from_numpy(value) for name, value in of_structure.items()})
    tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
    return Batch(**tensors, **rest, structure=structure)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """[n, 1] on a device, copied once: a CUDA graph must not copy from pageable memory."""
    return torch.tensor(values, device=device)[:, None]


def pixel_values(patches: torch.Tensor, rules: PictureRules, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 patches -> `dtype` [n, 3 * frames * p * p], normalised as Hugging Face does, where `patches` is.

    patches: [n, 3 * p * p] of one frame, which is repeated, or [n, 3 * frames * p * p].
    The arithmetic is fp32 whatever `dtype` is: scaling 8-bit values in bf16 would round each of them twice.
    """
    mean, std = (_constant(tuple(values), patches.device) for values in (rules.mean, rules.std))
    one_frame = CHANNELS * rules.patch_size**2
    values = patches.view(len(patches), CHANNELS, -1).float().mul_(rules.rescale).sub_(mean).div_(std).to(dtype)
    if patches.shape[1] == one_frame:
        values = values[:, :, None].expand(-1, -1, rules.temporal_patch_size, -1)
    return values.reshape(len(patches), rules.temporal_patch_size * one_frame)


def collate(samples: list[Encoded], pad_token_id: int, rules: PictureRules, video_rules: PictureRules | None = None) -> Batch:
    """One micro batch, padded to its longest sample."""
    longest = max(len(sample.ids) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id)
    labels = torch.full((len(samples), longest), IGNORED)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.ids)] = torch.from_numpy(sample.ids)
        labels[row, : len(sample.ids)] = torch.from_numpy(sample.labels)
    lengths = torch.tensor([len(sample.ids) for sample in samples])
    return Batch(input_ids=input_ids, labels=labels, lengths=lengths, **_shared(samples, rules, video_rules))


def pack(
    samples: list[Encoded], pad_token_id: int, rules: PictureRules, video_rules: PictureRules | None = None, *, multiple: int = 1
) -> Batch:
    """One packed row of documents, each padded to a multiple of `multiple` tokens."""
    bounds = np.cumsum([0, *(-(-len(sample.ids) // multiple) * multiple for sample in samples)])
    input_ids = torch.full((1, int(bounds[-1])), pad_token_id)
    labels = torch.full((1, int(bounds[-1])), IGNORED)
    for begin, sample in zip(bounds[:-1].tolist(), samples, strict=True):
        input_ids[0, begin : begin + len(sample.ids)] = torch.from_numpy(sample.ids)
        labels[0, begin : begin + len(sample.ids)] = torch.from_numpy(sample.labels)
    lengths, cu_seqlens = torch.tensor([len(sample.ids) for sample in samples]), torch.from_numpy(bounds)
    return Batch(input_ids=input_ids, labels=labels, lengths=lengths, cu_seqlens=cu_seqlens, **_shared(samples, rules, video_rules))


def _shared(samples: list[Encoded], rules: PictureRules, video_rules: PictureRules | None) -> dict[str, Any]:
    """The fields that padded and packed batches have in common."""
    videos = [sample.video_patches for sample in samples if len(sample.video_grids)]
    width = 0 if video_rules is None else video_rules.patch_bytes
    return {
        "patches": torch.from_numpy(samples[0].patches if len(samples) == 1 else np.concatenate([sample.patches for sample in samples])),
        "image_grid_thw": torch.from_numpy(np.concatenate([sample.grids for sample in samples])),
        "video_patches": torch.from_numpy(np.concatenate(videos) if videos else _none(width)),
        "video_grid_thw": torch.from_numpy(np.concatenate([sample.video_grids for sample in samples])),
        "keys": [sample.key for sample in samples],
        "rules": rules,
        "video_rules": video_rules,
    }
