"""The loader: one order for every layout, exact resume, and every sample that cannot be used counted and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.sample_order import SampleOrder
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.structure.micro_batch import IGNORED
from tests.console.runs.jobs import ROOT, is_running, until
from tests.data import samples

SIZES = {"micro_batch_size": 1, "global_batch_size": 4, "seq_length": 256, "seed": 5}


def loader(path, processor, split="train", **options):
    return build_loader(path, split, processor, **(SIZES | options))


def same(first: Batch, second: Batch) -> bool:
    tensors = ("input_ids", "labels", "lengths", "patches", "image_grid_thw")
    return first.keys == second.keys and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


def take(source, count):
    return [batch for _ in range(count) for batch in next(source)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """12 good samples and one for each reason that a sample cannot be used."""
    good = samples.encoded(samples.picture(0, 64, 64), "PNG")
    thread = samples.encoded(samples.picture(0, 3000, 10), "PNG")
    silent = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    token = json.dumps({"messages": [{"role": "assistant", "content": "<|im_end|>"}]}).encode()
    video = json.dumps({"messages": [{"role": "user", "content": [{"type": "video", "part": "vid0.mp4"}]}]}).encode()
    stored = [(f"good{i}", {"json": samples.conversation(f"answer {i}"), "img0.jpg": good}) for i in range(12)]
    stored += [
        ("bad0", {"json": samples.conversation(), "img0.jpg": good[:500]}),
        ("bad1", {"json": samples.conversation()}),
        ("bad2", {"json": samples.conversation(), "img0.jpg": thread}),
        ("bad3", {"json": b"{", "img0.jpg": good}),
        ("bad4", {"json": b"[1]", "img0.jpg": good}),
        ("bad5", {"json": token}),
        ("bad6", {"json": video}),
        ("bad7", {"json": samples.conversation("dog " * 400), "img0.jpg": good}),
        ("bad8", {"json": silent}),
        ("bad9", {"img0.jpg": good}),
    ]
    return samples.raw_dataset(tmp_path_factory.mktemp("mixed") / "data", stored)


REASONS = {
    "bad0": "broken_picture", "bad1": "missing_picture", "bad2": "extreme_picture", "bad3": "bad_json", "bad4": "bad_messages",
    "bad5": "control_token", "bad6": "missing_video", "bad7": "too_long", "bad8": "no_trained_token", "bad9": "bad_json",
}  # fmt: skip


@samples.many(100)
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 900))
def test_every_epoch_holds_each_sample_once_and_stand_ins_cover_the_rest(size, seed, place):
    order = SampleOrder(size, seed)
    epoch = place // size
    assert sorted(order.sample(epoch * size + i) for i in range(size)) == list(range(size))
    assert sorted([order.sample(place), *order.stand_ins(place)]) == list(range(size))
    assert list(order.stand_ins(place)) == list(SampleOrder(size, seed).stand_ins(place))


def test_epochs_and_seeds_give_other_orders():
    orders = [[SampleOrder(50, seed).sample(epoch * 50 + i) for i in range(50)] for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("data", ["dataset", "mixed"])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_global_batch_is_the_same_for_every_world_size(request, processor, data, micro):
    path = request.getfixturevalue(data)
    whole = loader(path, processor, micro_batch_size=micro, global_batch_size=8)
    expected = [next(whole) for _ in range(8)]
    for world in (2, 4):
        ranks = [loader(path, processor, micro_batch_size=micro, global_batch_size=8, rank=rank, world_size=world) for rank in range(world)]
        for one in expected:
            parts = [next(rank) for rank in ranks]
            assert all(len(part) == 8 // (micro * world) for part in parts)
            together = [parts[m % world][m // world] for m in range(8 // micro)]
            assert all(same(a, b) for a, b in zip(one, together, strict=True))
        assert sum(rank.used for rank in ranks) == whole.used == 64
        assert sum((rank.skipped for rank in ranks), Counter()) == whole.skipped


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data", ["dataset", "mixed"])
def test_resume_is_exact_across_an_epoch(request, processor, data, workers):
    path = request.getfixturevalue(data)
    straight = loader(path, processor)
    states, batches, counts = [straight.state_dict()], [], []
    for _ in range(14):
        batches.append(next(straight))
        states.append(json.loads(json.dumps(straight.state_dict())))
        counts.append((straight.used, Counter(straight.skipped)))
    assert straight.epoch > 2
    for done in (1, 3, 7):
        resumed = loader(path, processor, num_workers=workers)
        next(resumed)
        resumed.load_state_dict(states[done])
        for number in range(done, 14 if workers == 0 else done + 3):
            assert all(same(a, b) for a, b in zip(batches[number], next(resumed), strict=True))
            assert (resumed.used, resumed.skipped) == counts[number]
        resumed.close()


def test_loader_processes_keep_the_order_and_leave_torchs_generator_alone(processor, mixed):
    here = take(loader(mixed, processor), 8)
    before = torch.get_rng_state()
    source = loader(mixed, processor, num_workers=2)
    there = take(source, 8)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    # what is prepared ahead is not counted: the state fits the batches that were given out
    assert source.state_dict()["used"] == 32
    source.close()
    assert next(source)[0].keys


def test_a_state_may_be_taken_up_by_another_number_of_ranks(processor, dataset):
    alone = loader(dataset, processor)
    take(alone, 3)
    state = alone.state_dict()
    expected = [key for batch in next(alone) for key in batch.keys]
    found = []
    for rank in range(2):
        half = loader(dataset, processor, rank=rank, world_size=2)
        half.load_state_dict(state)
        found.append([key for batch in next(half) for key in batch.keys])
    assert [found[m % 2][m // 2] for m in range(4)] == expected


def test_what_cannot_be_used_is_counted_and_named_once(processor, mixed, tmp_path):
    file = tmp_path / "run" / "skipped.jsonl"
    source = loader(mixed, processor, skipped_file=file)
    used = Counter(key for batch in take(source, 11) for key in batch.keys)
    assert set(used) == {f"good{i}" for i in range(12)} and source.used == 44
    assert set(source.skipped) == set(REASONS.values())
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == REASONS
    assert len(rows) == len(REASONS) and all(row["detail"] for row in rows)
    # 44 places are two epochs: each bad sample came up twice as itself, and maybe as a stand-in
    assert sum(source.skipped.values()) >= 20
    again = loader(mixed, processor, skipped_file=file)
    take(again, 11)
    assert len(file.read_text().splitlines()) == len(REASONS)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_without_a_usable_sample_ends_the_work(processor, tmp_path, workers):
    path = samples.raw_dataset(tmp_path / "data", [(f"bad{i}", {"json": samples.conversation("dog " * 400)}) for i in range(5)])
    source = loader(path, processor, num_workers=workers)
    with pytest.raises(WorkError, match="none of 5 samples of split train can be used") as failed:
        next(source)
    assert "the picture does not exist: 5" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert sum(source.skipped.values()) == 5
    source.close()


def test_the_option_that_would_help_is_named(processor, dataset):
    with pytest.raises(WorkError, match="raise --seq-length"):
        next(loader(dataset, processor, seq_length=16))


def test_a_damaged_shard_costs_its_samples_only(processor, dataset, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(dataset, path)
    (shard,) = path.glob("train-*.tar")
    content = bytearray(shard.read_bytes())
    content[0:100] = b"x" * 100
    shard.write_bytes(content)
    source = loader(path, processor)
    take(source, 6)
    assert source.skipped["broken_shard"] >= 1 and set(source.skipped) == {"broken_shard"}


def test_a_shard_that_is_cut_off_or_another_one_is_refused(processor, dataset, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(dataset, path)
    shard, index = path / "train-00000.tar", path / "train-00000.tar.idx"
    whole = shard.read_bytes()
    for size in (0, 100, 5000, len(whole) // 2):
        shard.write_bytes(whole[:size])
        with pytest.raises(RequestError, match=r"train-00000\.tar: cannot be read"):
            loader(path, processor)
    shutil.copy(path / "val-00000.tar", shard)
    shutil.copy(path / "val-00000.tar.idx", index)
    with pytest.raises(RequestError, match=r"train-00000\.tar holds 3 samples, the index says 23"):
        loader(path, processor)
    shard.unlink()
    with pytest.raises(RequestError, match=r"train-00000\.tar is missing"):
        loader(path, processor)


def test_without_the_offsets_beside_it_a_shard_is_walked(processor, dataset, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(dataset, path)
    expected = take(loader(dataset, processor), 3)
    for file in path.glob("*.idx"):
        file.unlink()
    assert all(same(a, b) for a, b in zip(expected, take(loader(path, processor), 3), strict=True))
    for shard in path.glob("*.tar"):
        shard.with_suffix(".tar.idx").write_bytes(bytes(64))
    assert all(same(a, b) for a, b in zip(expected, take(loader(path, processor), 3), strict=True))


def test_splits_are_named_when_one_is_not_there(processor, dataset, tmp_path):
    assert loader(dataset, processor, split="val").samples == 3
    for split in ("test", "testing"):
        with pytest.raises(RequestError, match=f"no split {split}; there are: train, val"):
            loader(dataset, processor, split=split)
    with pytest.raises(RequestError, match="no such folder"):
        loader(tmp_path / "none", processor)
    with pytest.raises(RequestError, match="no Energon index"):
        loader(tmp_path, processor)
    with pytest.raises(RequestError, match="not a folder"):
        loader(dataset / "report.json", processor)


def test_an_index_that_names_other_files_is_refused(processor, dataset, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(dataset, path)
    split = path / ".nv-meta" / "split.yaml"
    for content, words in (
        ("split_parts: {train: [../train-00000.tar]}", "lies outside"),
        ("split_parts: {train: ['/etc/passwd']}", "lies outside"),
        ("split_parts: {train: ['train-0000{0..3}.tar']}", "train-00001.tar is missing"),
        ("split_parts: {train: [train-00000.tar]}\nexclude: [train-00000.tar]", "no split train"),
        ("split_parts: {train: [train-00000.tar]}\nexclude: [train-00000.tar/3]", "leaves out single samples"),
        ("- a", "names no splits"),
        ("{", "cannot be read"),
    ):
        split.write_text(content)
        with pytest.raises(RequestError) as refused:
            loader(path, processor)
        assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("size", "nearest"), [(6, 8), (3, 4), (0, 4)])
def test_batch_sizes_that_do_not_divide_are_refused(processor, dataset, size, nearest):
    with pytest.raises(RequestError, match=rf"--global-batch-size {size}: .*2 x 2 = 4; use {nearest}"):
        loader(dataset, processor, micro_batch_size=2, global_batch_size=size, world_size=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 6}, "--seed 6: the run started with 5"),
        ({"global_batch_size": 8}, "--global-batch-size 8: the run started with 4"),
        ({"micro_batch_size": 2}, "--micro-batch-size 2: the run started with 1"),
        ({"seq_length": 300}, "--seq-length 300: the run started with 256"),
        ({"split": "val"}, "not the dataset"),
    ],
)
def test_a_state_of_other_settings_is_refused(processor, dataset, change, words):
    state = loader(dataset, processor).state_dict()
    with pytest.raises(RequestError) as refused:
        loader(dataset, processor, **change).load_state_dict(state)
    assert words in str(refused.value)


def test_a_state_of_other_data_is_refused_and_a_moved_dataset_is_not(processor, dataset, mixed, tmp_path):
    state = loader(dataset, processor).state_dict()
    with pytest.raises(RequestError, match="not the dataset that the run started with"):
        loader(mixed, processor).load_state_dict(state)
    shutil.copytree(dataset, tmp_path / "moved")
    loader(tmp_path / "moved", processor).load_state_dict(state)
    with pytest.raises(RequestError, match="another version"):
        loader(dataset, processor).load_state_dict({})


def test_a_batch_is_padded_right_and_shifted(processor, dataset):
    (batch,) = next(loader(dataset, processor, micro_batch_size=8, global_batch_size=8))
    assert batch.input_ids.shape == batch.labels.shape == (8, int(batch.lengths.max()))
    for ids, labels, mask, length in zip(batch.input_ids, batch.labels, batch.attention_mask, batch.lengths, strict=True):
        assert mask.tolist() == [1] * int(length) + [0] * (len(ids) - int(length))
        assert (ids[length:] == processor.pad_token_id).all() and (labels[length - 1 :] == IGNORED).all()
        trained = (labels != IGNORED).nonzero().flatten()
        assert (labels[trained] == ids[trained + 1]).all()
    assert batch.tokens == (batch.labels != IGNORED).sum() > 0
    assert batch.patches.dtype == torch.uint8
    assert batch.patches.shape == (int(batch.image_grid_thw.prod(dim=1).sum()), 768)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_inputs_are_what_the_model_is_called_with(processor, dataset, dtype):
    batches = take(loader(dataset, processor), 6)
    with_picture = [batch for batch in batches if len(batch.image_grid_thw)]
    without = [batch for batch in batches if not len(batch.image_grid_thw)]
    assert with_picture and without
    for batch in with_picture:
        inputs = batch.model_inputs("cpu", dtype)
        assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
        assert inputs["pixel_values"].dtype == dtype and inputs["pixel_values"].shape == (len(batch.patches), 1536)
    for batch in without:
        assert set(batch.model_inputs("cpu", dtype)) == {"input_ids", "attention_mask"}


def test_a_sample_takes_less_than_ten_milliseconds(processor, tmp_path):
    picture = samples.encoded(samples.picture(0, 128, 128), "PNG")
    path = samples.raw_dataset(tmp_path / "data", [(f"k{i}", {"json": samples.conversation(), "img0.jpg": picture}) for i in range(64)])
    source = loader(path, processor, micro_batch_size=8, global_batch_size=8)
    next(source)
    begin = time.process_time()
    take(source, 20)
    assert (time.process_time() - begin) / 160 < 0.010


HOLDS = """
import multiprocessing, sys
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.processor import ChatProcessor
from tests.data import samples
sizes = dict(micro_batch_size=2, global_batch_size=4, seq_length=1400, seed=5, num_workers=2)
loader = build_loader(sys.argv[1], "train", ChatProcessor.from_pretrained(samples.CHECKPOINT), **sizes)
next(loader)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


def test_loader_processes_end_with_a_rank_that_is_killed(tmp_path):
    """They would wait without end to hand over their last batches, and keep their memory."""
    parts = [(f"{n}", {"json": samples.conversation(), "img0.jpg": samples.encoded(samples.picture(n, 224, 224))}) for n in range(32)]
    data = samples.raw_dataset(tmp_path / "data", parts)
    words = [sys.executable, "-c", HOLDS, str(data)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as rank:
        assert rank.stdout is not None
        processes = [int(word) for word in rank.stdout.readline().split()]
        rank.kill()
    assert len(processes) == 2
    until(lambda: not any(is_running(process) for process in processes), 60)
