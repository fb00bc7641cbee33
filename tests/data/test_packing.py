"""Packing: rows that are nearly full, the same ones for every layout, resumed exactly, every sample once in each epoch."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import packing, pictures
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import PREFETCHED, build_loader
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.structure.micro_batch import IGNORED
from tests.data import samples

SIZES = {"micro_batch_size": 1, "global_batch_size": 4, "seq_length": 200, "seed": 5, "packing": True}
BROKEN, LONG = 3, 2


def loader(path, processor, **options):
    return build_loader(path, "train", processor, **(SIZES | options))


def same(first: Batch, second: Batch) -> bool:
    tensors = ("input_ids", "labels", "cu_seqlens", "patches", "image_grid_thw")
    return first.keys == second.keys and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """60 samples of all lengths, text only and with one or two pictures, three whose pixels are damaged, two too long."""
    stored = []
    for number in range(60):
        count = number % 3
        media = {f"img{i}.jpg": samples.encoded(samples.picture(number + i, 64 + 32 * (number % 3), 64), "PNG") for i in range(count)}
        stored.append((f"good{number}", {"json": samples.conversation("dog " * (1 + number % 40), count), **media}))
    whole = samples.encoded(samples.picture(0, 64, 64), "PNG")
    stored += [(f"broken{i}", {"json": samples.conversation(), "img0.jpg": whole[:300]}) for i in range(BROKEN)]
    stored += [(f"long{i}", {"json": samples.conversation("dog " * 300, 0)}) for i in range(LONG)]
    return samples.raw_dataset(tmp_path_factory.mktemp("packed") / "data", stored)


@samples.many(100)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 90))
def test_best_fit_takes_everything_once_and_overfills_nothing(lengths, room):
    groups = packing.best_fit(lengths, room)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    sums = [sum(lengths[place] for place in group) for group in groups]
    assert all(0 < total <= room for total in sums)
    # any two groups could not have been one
    assert all(a + b > room for i, a in enumerate(sums) for b in sums[i + 1 :])


@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_hold_their_samples_as_they_are_alone(processor, mixed, multiple):
    split = ShardSplit(mixed, "train")
    encoder = SampleEncoder(processor, SIZES["seq_length"])
    alone = {}
    for number in range(60):
        key, parts = split.read(number)
        alone[key] = encoder(key, parts)
    seen = Counter()
    source = loader(mixed, processor, document_multiple=multiple)
    for _ in range(5):
        for batch in next(source):
            seen.update(batch.keys)
            bounds = batch.cu_seqlens.tolist()
            assert batch.input_ids.shape == batch.labels.shape == (1, bounds[-1]) and bounds[-1] <= SIZES["seq_length"]
            assert len(bounds) == len(batch.keys) + 1
            for key, begin, end in zip(batch.keys, bounds[:-1], bounds[1:], strict=True):
                one = alone[key]
                length = len(one.ids)
                assert end - begin == -(-length // multiple) * multiple
                assert batch.input_ids[0, begin:end].tolist() == one.ids.tolist() + [processor.pad_token_id] * (end - begin - length)
                assert batch.labels[0, begin:end].tolist() == one.labels.tolist() + [IGNORED] * (end - begin - length)
            patches = np.concatenate([alone[key].patches for key in batch.keys])
            assert np.array_equal(batch.patches.numpy(), patches)
            assert batch.image_grid_thw.tolist() == [grid for key in batch.keys for grid in alone[key].grids.tolist()]
            inputs = batch.model_inputs("cpu", torch.float32)
            assert torch.equal(inputs["cu_seqlens"], batch.cu_seqlens) and torch.equal(inputs["attention_mask"], batch.attention_mask)
            assert ("pixel_values" in inputs) == bool(len(batch.image_grid_thw))
    assert len(seen) > 20


def test_each_epoch_holds_each_sample_once(processor, mixed):
    source = loader(mixed, processor, global_batch_size=1)
    keys = []
    while source.used < 120:
        keys += [key for batch in next(source) for key in batch.keys]
    assert Counter(keys[:60]) == Counter(keys[60:120]) == Counter(f"good{i}" for i in range(60))
    assert keys[:60] != keys[60:120]
    assert source.skipped == {"broken_picture": 2 * BROKEN, "too_long": 2 * LONG}
    assert 1 <= source.epoch <= 2
    assert 0.9 < source.efficiency <= 1


@pytest.mark.parametrize("world", [2, 4])
def test_rows_are_the_same_for_every_world_size(processor, mixed, world):
    whole = loader(mixed, processor)
    ranks = [loader(mixed, processor, rank=rank, world_size=world) for rank in range(world)]
    for _ in range(8):
        expected, parts = next(whole), [next(rank) for rank in ranks]
        assert all(same(expected[m], parts[m % world][m // world]) for m in range(4))
        assert all(rank.batch_samples == whole.batch_samples for rank in ranks)
    assert sum(rank.used for rank in ranks) == whole.used
    assert sum((rank.skipped for rank in ranks), Counter()) == whole.skipped
    assert all(rank.skipped for rank in ranks)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_across_epochs(processor, mixed, workers):
    straight = loader(mixed, processor)
    batches, states, figures = [], [straight.state_dict()], []
    for _ in range(12):
        batches.append(next(straight))
        states.append(json.loads(json.dumps(straight.state_dict())))
        figures.append((straight.used, Counter(straight.skipped), straight.efficiency))
    assert straight.epoch > 2
    for done in (0, 1, 4, 5, 9) if workers == 0 else (4,):
        resumed = loader(mixed, processor, num_workers=workers)
        next(resumed)
        resumed.load_state_dict(states[done])
        for number in range(done, 12 if workers == 0 else done + 4):
            assert all(same(a, b) for a, b in zip(batches[number], next(resumed), strict=True))
            assert (resumed.used, resumed.skipped, resumed.efficiency) == figures[number]
        resumed.close()


def test_a_state_may_be_taken_up_by_another_number_of_ranks(processor, mixed):
    alone = loader(mixed, processor)
    halves = [loader(mixed, processor, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        next(alone)
        for half in halves:
            next(half)
    for half in halves:
        again = loader(mixed, processor)
        again.load_state_dict(half.state_dict())
        expected = loader(mixed, processor)
        expected.load_state_dict(alone.state_dict())
        assert all(same(a, b) for _ in range(3) for a, b in zip(next(again), next(expected), strict=True))


def test_the_next_window_is_planned_while_this_one_is_given_out(processor, mixed, monkeypatch):
    """All loader processes wait for the same window: planned at the end of the one before, it would stop all of them meanwhile."""
    monkeypatch.setattr(packing, "ROWS", 8)
    at_once = loader(mixed, processor, global_batch_size=1)
    monkeypatch.setattr(packing.PackedRows, "_plan_ahead", lambda self: None)
    expected = [next(at_once)[0] for _ in range(40)]
    monkeypatch.undo()
    monkeypatch.setattr(packing, "ROWS", 8)
    ahead = loader(mixed, processor, global_batch_size=1)
    rows, windows = ahead._batches, 0
    for batch in expected:
        before = rows._window, rows._next and rows._next._window
        assert same(next(ahead)[0], batch)
        if before[0] is not None and rows._window is not before[0]:
            windows += 1
            assert rows._window is before[1], "nothing was left to plan"
    assert windows >= 3


def test_processes_of_a_machine_measure_each_sample_once(processor, mixed, monkeypatch):
    """Two ranks of one launcher with two loader processes each: with a plan of its own, each would tokenize every sample."""
    monkeypatch.setattr(packing, "ROWS", 8)
    whole = loader(mixed, processor)
    expected = [next(whole) for _ in range(16)]
    assert whole.epoch > 2
    calls, real = multiprocessing.Value("q", 0), SampleEncoder.tokenize

    def tokenize(self, key, parts):
        with calls.get_lock():
            calls.value += 1
        return real(self, key, parts)

    monkeypatch.setattr(SampleEncoder, "tokenize", tokenize)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ranks = [loader(mixed, processor, rank=rank, world_size=2, num_workers=2) for rank in range(2)]
    assert len({rank._batches.lengths._file for rank in ranks}) == 1 and ranks[0]._batches.lengths._file.exists()
    file = ranks[0]._batches.lengths._file
    for whole_batch in expected:
        parts = [next(rank) for rank in ranks]
        assert all(same(whole_batch[m], parts[m % 2][m // 2]) for m in range(4))
    for rank in ranks:
        rank.close()
    assert not file.exists(), "left in memory after the run"
    everything = 60 + BROKEN + LONG
    used, tried = whole.used, whole.used + sum(whole.skipped.values())
    # measured once, by whichever process, and once more where another one gives it out; batches are prefetched
    prefetched = 4 * PREFETCHED * 4 + 64
    assert everything < calls.value <= everything + tried + prefetched < 3 * used


def test_a_process_that_ends_while_it_measures_holds_up_nobody(processor, mixed):
    source, expected = loader(mixed, processor), loader(mixed, processor)
    for number in range(0, 60, 2):
        assert source._batches.lengths.claim(number)
    assert all(same(a, b) for _ in range(6) for a, b in zip(next(source), next(expected), strict=True))


def test_only_what_a_rank_gives_out_is_decoded(processor, mixed, monkeypatch):
    decoded = []
    real = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda data, what: decoded.append(what) or real(data, what))
    source = loader(mixed, processor, rank=1, world_size=4)
    given = [batch for _ in range(2) for batch in next(source)]
    shown = sum(len(batch.image_grid_thw) for batch in given)
    assert shown <= len(decoded) <= shown + BROKEN


def test_a_split_without_a_usable_sample_ends_the_work(processor, tmp_path):
    long = samples.raw_dataset(tmp_path / "long", [(f"a{i}", {"json": samples.conversation("dog " * 300, 0)}) for i in range(5)])
    with pytest.raises(WorkError, match=r"none of 5 samples .* or raise --seq-length"):
        next(loader(long, processor))
    damaged = samples.encoded(samples.picture(0, 64, 64), "PNG")[:300]
    broken = samples.raw_dataset(tmp_path / "broken", [(f"a{i}", {"json": samples.conversation(), "img0.jpg": damaged}) for i in range(5)])
    with pytest.raises(WorkError, match="none of 5 samples"):
        next(loader(broken, processor))


def test_settings_that_contradict_packing_are_refused(processor, mixed):
    with pytest.raises(RequestError, match=r"--micro-batch-size 2: with --packing .* use --micro-batch-size 1 and --seq-length 400"):
        loader(mixed, processor, micro_batch_size=2)
    with pytest.raises(RequestError, match="--micro-batch-size 2: with --packing"):
        FinetuneOptions(load="a", train_data="b", packing=True, micro_batch_size=2).check()
    packed, plain = loader(mixed, processor), loader(mixed, processor, packing=False)
    with pytest.raises(RequestError, match="--packing: the run started with it"):
        plain.load_state_dict(packed.state_dict())
    with pytest.raises(RequestError, match="--packing: the run started without it"):
        packed.load_state_dict(plain.state_dict())
    with pytest.raises(RequestError, match="pads documents to multiples of 4, the run's to multiples of 1"):
        loader(mixed, processor, document_multiple=4).load_state_dict(packed.state_dict())


def test_a_sample_that_fits_only_without_its_padding_is_too_long(processor, tmp_path):
    length = len(processor.encode(json.loads(samples.conversation("dog", 0))["messages"], {}).ids)
    path = samples.raw_dataset(tmp_path / "data", [("a", {"json": samples.conversation("dog", 0)})])
    assert length % 8
    assert next(loader(path, processor, seq_length=length))[0].keys == ["a"]
    with pytest.raises(WorkError, match="longer than --seq-length"):
        next(loader(path, processor, seq_length=length, document_multiple=8))
