"""Energon's own loader over a dataset, giving each sample's files as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)


@edataclass
class StoredSample(Sample):
    """A sample's files."""

    parts: dict[str, bytes]


@stateless
def cook(raw: dict[str, Any]) -> StoredSample:
    """A crude sample (`CrudeWebdataset`) to its files."""
    return StoredSample(**basic_sample_keys(raw), parts={name: content for name, content in raw.items() if not name.startswith("__")})


class AsStored(DefaultTaskEncoder[StoredSample, StoredSample, StoredSample, StoredSample]):
    """Nothing but the cooker."""

    decoder = None
    cookers = [Cooker(cook)]  # noqa: RUF012 - Energon's declaration


def loader(path: Path, split: str = "train", *, repeat: bool = True):
    """One sample after the other. repeat: of the train split, without an end."""
    options: dict[str, Any] = {
        "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0), "batch_size": None, "task_encoder": AsStored(),
    }  # fmt: skip
    if split != "train":
        return get_loader(get_val_dataset(path, split_part=split, **options))
    return get_loader(get_train_dataset(path, shuffle_buffer_size=None, max_samples_per_sequence=None, repeat=repeat, **options))
