"""What `prepare` writes is an Energon dataset: Energon's own loader reads it with a cooker."""

from __future__ import annotations

import json

import pytest
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)
from megatron.energon.task_encoder.base import Sample

from qwen3vl_core.data.encoder import SampleEncoder
from qwen3vl_core.data.loader import build_loader


@edataclass
class Stored(Sample):
    """A sample's files, as they are."""

    parts: dict


@stateless
def cook(raw: dict) -> Stored:
    return Stored(**basic_sample_keys(raw), parts={name: content for name, content in raw.items() if not name.startswith("__")})


class AsStored(DefaultTaskEncoder[Stored, Stored, Stored, Stored]):
    decoder = None
    cookers = [Cooker(cook)]  # noqa: RUF012 - Energon's declaration


@pytest.mark.parametrize("split", ["train", "val"])
def test_energon_reads_every_sample(dataset, processor, split):
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    if split == "train":
        made = get_train_dataset(
            dataset, worker_config=config, batch_size=None, shuffle_buffer_size=None, max_samples_per_sequence=None,
            repeat=False, task_encoder=AsStored(),
        )  # fmt: skip
    else:
        made = get_val_dataset(dataset, split_part="val", worker_config=config, batch_size=None, task_encoder=AsStored())
    stored = {sample.__key__.rpartition("/")[2]: sample.parts for sample in get_loader(made)}
    assert len(stored) == json.loads((dataset / "report.json").read_text())["splits"][split]["samples"]
    encoder = SampleEncoder(processor, 256)
    encoded = {key: encoder(key, parts) for key, parts in stored.items()}
    ours = build_loader(dataset, split, processor, micro_batch_size=1, global_batch_size=len(stored), seq_length=256)
    batches = {batch.keys[0]: batch for batch in next(ours)}
    assert set(batches) == set(encoded)
    for key, batch in batches.items():
        assert batch.input_ids[0].tolist() == encoded[key].ids.tolist()
        assert batch.patches.tolist() == encoded[key].patches.tolist()
