"""What `prepare` writes is an Energon dataset: Energon's own loader reads it with our cooker and task encoders."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3

import pytest
import torch
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_savable_loader, get_train_dataset, get_val_dataset

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.task_encoder import PackedTaskEncoder, PaddedTaskEncoder, Stored, cook
from tests.data import samples


class AsStored(DefaultTaskEncoder[Stored, Stored, Stored, Stored]):
    """Nothing but the cooker."""

    decoder = None
    cookers = [Cooker(cook)]  # noqa: RUF012 - Energon's declaration


def same(first: Batch, second: Batch) -> bool:
    tensors = ("input_ids", "labels", "lengths", "patches", "image_grid_thw")
    return first.keys == second.keys and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


def training(path, encoder, **options):
    config = WorkerConfig(rank=0, world_size=1, num_workers=options.pop("num_workers", 0))
    return get_train_dataset(
        path, worker_config=config, shuffle_buffer_size=None, max_samples_per_sequence=None, task_encoder=encoder, **options
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_energon_gives_every_sample_as_our_loader_does(dataset, processor, split):
    encoder = PaddedTaskEncoder(processor, 256)
    if split == "train":
        made = training(dataset, encoder, batch_size=1, repeat=False)
    else:
        config = WorkerConfig(rank=0, world_size=1, num_workers=0)
        made = get_val_dataset(dataset, split_part="val", worker_config=config, batch_size=1, task_encoder=encoder)
    theirs = {given.micro.keys[0]: given.micro for given in get_loader(made)}
    assert len(theirs) == json.loads((dataset / "report.json").read_text())["splits"][split]["samples"]
    ours = build_loader(dataset, split, processor, micro_batch_size=1, global_batch_size=len(theirs), seq_length=256)
    batches = {batch.keys[0]: batch for batch in next(ours)}
    assert set(batches) == set(theirs) and all(same(batch, theirs[key]) for key, batch in batches.items())


def tables(index):
    """Everything in an SQLite file: what was declared, and the rows in their order."""
    with contextlib.closing(sqlite3.connect(index)) as database:
        declared = database.execute("SELECT name, tbl_name, sql FROM sqlite_master ORDER BY rowid").fetchall()
        rows = {name: database.execute(f"SELECT rowid, * FROM {name}").fetchall() for name in ("samples", "sample_parts")}
    return declared, rows


@pytest.mark.parametrize("shards", ["one", "many"])
def test_the_index_is_the_one_that_energon_makes_of_the_shards(tmp_path, shards):
    (tmp_path / "walk").mkdir()
    for number in range(2):
        (tmp_path / "walk" / f"{number}.png").write_bytes(samples.encoded(samples.picture(number), "PNG"))
    extra = [
        samples.record(90, ["pictures/0.jpg", "pictures/1.png"]),
        {"messages": [{"role": "user", "content": "<video>"}, {"role": "assistant", "content": "A walk."}], "videos": ["walk"]},
    ]
    size = 50_000 if shards == "many" else 500_000_000
    ours = samples.dataset(tmp_path, 30, split="8,2,0" if shards == "many" else "1,0,0", extra=extra, shard_size=size)
    names = json.loads((ours / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert (len(names) > 11) == (shards == "many")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in names:
        shutil.copy(ours / name, theirs)
    samples.energon_index(theirs, list(names))
    assert tables(ours / ".nv-meta" / "index.sqlite") == tables(theirs / ".nv-meta" / "index.sqlite")
    for file in [*(f"{name}.idx" for name in names), ".nv-meta/split.yaml"]:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    mine, made = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (ours, theirs))
    assert mine["shard_counts"] == made["shard_counts"] and list(mine) == list(made)
    assert sorted(path.name for path in (ours / ".nv-meta").iterdir()) == sorted(path.name for path in (theirs / ".nv-meta").iterdir())


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """12 good samples, one with a broken picture, one that is too long."""
    good = samples.encoded(samples.picture(0, 64, 64), "PNG")
    stored = [(f"good{i}", {"json": samples.conversation(f"answer {i} " * (1 + i)), "img0.jpg": good}) for i in range(12)]
    stored[5:5] = [
        ("bad0", {"json": samples.conversation(), "img0.jpg": good[:500]}),
        ("bad1", {"json": samples.conversation("dog " * 400), "img0.jpg": good}),
    ]
    return samples.raw_dataset(tmp_path_factory.mktemp("faulty") / "data", stored)


def test_rows_are_packed_and_what_was_left_out_comes_with_its_reason(processor, faulty):
    encoder = PackedTaskEncoder(processor, 200, multiple=4)
    given = list(get_loader(training(faulty, encoder, batch_size=1, packing_buffer_size=14, repeat=False)))
    keys = [key for each in given for key in each.micro.keys]
    assert sorted(keys) == sorted(f"good{i}" for i in range(12)) and len(given) < 8
    reasons = {skip.key: skip.reason for each in given for skip in each.skips}
    assert reasons == {"bad0": "broken_picture", "bad1": "too_long"}
    alone = build_loader(faulty, "train", processor, micro_batch_size=1, global_batch_size=1, seq_length=200)
    whole = {batch.keys[0]: batch for batch in (next(alone)[0] for _ in range(40))}
    for each in given:
        row = each.micro
        assert row.input_ids.shape[1] == row.cu_seqlens[-1] <= 200 and all(row.cu_seqlens % 4 == 0)
        for key, begin in zip(row.keys, row.cu_seqlens.tolist(), strict=False):
            ids = whole[key].input_ids[0]
            assert torch.equal(row.input_ids[0, begin : begin + len(ids)], ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_energons_own_state_goes_on_exactly(processor, faulty, workers):
    def loader():
        encoder = PackedTaskEncoder(processor, 200)
        return get_savable_loader(training(faulty, encoder, batch_size=1, packing_buffer_size=6, num_workers=workers))

    straight, iterator = loader(), None
    iterator = iter(straight)
    for _ in range(3):
        next(iterator)
    state = straight.save_state_rank()
    expected = [next(iterator).micro for _ in range(4)]
    resumed = loader()
    resumed.restore_state_rank(state)
    assert all(same(batch, next(here).micro) for here in [iter(resumed)] for batch in expected)
