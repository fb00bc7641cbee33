"""Even batches: the samples of a global batch are dealt so that patches and tokens are even, and they stay the same samples."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import balance, pictures
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.shards import ShardSplit
from tests.data import samples, videos

SIZES = {"micro_batch_size": 1, "global_batch_size": 16, "seq_length": 900, "seed": 5, "balance": True}
TENSORS = ("input_ids", "labels", "lengths", "patches", "image_grid_thw", "video_patches", "video_grid_thw")


def loader(path, processor, **options):
    return build_loader(path, "train", processor, **(SIZES | options))


def same(first: Batch, second: Batch) -> bool:
    return first.keys == second.keys and all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def features(batches: list[Batch]) -> np.ndarray:
    """[patches, tokens]"""
    patches = sum(int(grid.prod(dim=1).sum()) for batch in batches for grid in (batch.image_grid_thw, batch.video_grid_thw))
    return np.array([patches, sum(int(batch.lengths.sum()) for batch in batches)])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Texts of all lengths, pictures small and large, one or several, and videos; four samples that cannot be used."""
    clip = videos.video(24, 8, 160, 96)
    random = np.random.RandomState(3)
    stored = []
    for number in range(64):
        kind = ("text", "small", "large", "several", "video")[int(random.choice(5, p=[0.3, 0.3, 0.2, 0.1, 0.1]))]
        count = {"text": 0, "several": 3, "video": 0}.get(kind, 1)
        side = 320 if kind == "large" else 96
        media = {f"img{i}.jpg": samples.encoded(samples.picture(number + i, side, side)) for i in range(count)}
        conversation = samples.conversation("dog " * int(min(random.lognormal(3, 1), 120)), count)
        if kind == "video":
            turns = json.loads(conversation)["messages"]
            turns[0]["content"].insert(0, {"type": "video", "part": "vid0.mp4"})
            conversation, media = json.dumps({"messages": turns}).encode(), {"vid0.mp4": clip}
        stored.append((f"{kind}{number}", {"json": conversation, **media}))
    stored += [("cut", {"json": samples.conversation(), "img0.jpg": samples.encoded(samples.picture(0, 320, 320))[:800]})]
    stored += [
        ("none", {"json": samples.conversation()}),
        ("odd", {"json": b"[1]"}),
        ("long", {"json": samples.conversation("dog " * 950, 0)}),
    ]
    return samples.raw_dataset(tmp_path_factory.mktemp("mixed") / "data", stored)


@samples.many(200)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 9000)), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 6))
def test_every_sample_is_dealt_once_whatever_the_sizes(sizes, micro_batch_size, ranks):
    array = np.array(sizes * micro_batch_size * ranks)
    deal = balance.even(array, micro_batch_size, ranks)
    assert np.array(deal.ranks).shape == (ranks, len(sizes), micro_batch_size)
    assert sorted(np.array(deal.ranks).flatten().tolist()) == list(range(len(array)))
    assert deal == balance.even(array.copy(), micro_batch_size, ranks)


@samples.many(100)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4, 6, 12]), st.sampled_from([1, 2, 4]))
def test_which_samples_share_a_micro_batch_does_not_depend_on_the_ranks(seed, ranks, micro_batch_size):
    sizes = np.random.RandomState(seed).randint(1, 5000, (12 * micro_batch_size, 2))
    alone, together = balance.even(sizes, micro_batch_size, 1), balance.even(sizes, micro_batch_size, ranks)
    assert sorted(alone.ranks[0]) == sorted(members for steps in together.ranks for members in steps)


@pytest.mark.parametrize(
    ("samples_", "ranks", "micro_batch_size", "most"), [(64, 8, 1, 1.1), (64, 8, 4, 1.15), (256, 8, 2, 1.03), (96, 6, 2, 1.1)]
)
def test_ranks_of_a_mixed_set_are_even(samples_, ranks, micro_batch_size, most):
    random = np.random.RandomState(1)
    seen = np.where(random.rand(20 * samples_) < 0.3, 0, random.lognormal(6.5, 1, 20 * samples_).clip(max=4000)).astype(int)
    sizes = np.stack([4 * seen, seen + random.lognormal(4.5, 0.9, 20 * samples_).astype(int)], axis=1)
    deals = [balance.even(batch, micro_batch_size, ranks) for batch in sizes.reshape(20, samples_, 2)]
    assert np.mean([deal.spread.drawn for deal in deals]) > 1.3
    assert np.mean([deal.spread.dealt for deal in deals]) < most


def test_sizes_are_those_of_the_encoded_sample_and_take_no_pixel(processor, mixed, monkeypatch):
    shards, encoder = ShardSplit(mixed, "train"), SampleEncoder(processor, 900)
    monkeypatch.setattr(pictures, "decode", None)
    for number in range(64):
        key, parts = shards.read(number)
        tokenized = encoder.tokenize(key, parts)
        seen = sum(sum(plan.counts) for plan in tokenized.media)
        patches, tokens = encoder.size(shards.open_parts(number))
        assert patches == 4 * seen
        # the demo's vocabulary spells out a video's "seconds"
        assert abs(tokens - len(tokenized.ids)) < 12 + (0.3 if key.startswith("video") else 0.1) * len(tokenized.ids)


def test_of_a_large_file_only_the_header_is_read(processor, tmp_path, monkeypatch):
    picture = samples.encoded(samples.picture(0, 1200, 1200), "PNG")
    path = samples.raw_dataset(tmp_path / "data", [("a", {"json": samples.conversation(), "img0.jpg": picture})])
    import os

    read, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(given[1]) or real(*given))
    assert SampleEncoder(processor, 900).size(ShardSplit(path, "train").open_parts(0))[0] > 0
    assert sum(read) < 40_000 < len(picture) / 20


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_a_global_batch_has_the_same_samples_and_even_ranks(processor, mixed, world, packing):
    size = 8 if packing else 16
    drawn = loader(mixed, processor, balance=False, packing=packing, global_batch_size=size)
    alone = loader(mixed, processor, packing=packing, global_batch_size=size)
    ranks = [loader(mixed, processor, rank=rank, world_size=world, packing=packing, global_batch_size=size) for rank in range(world)]
    largest = []
    for _ in range(9):
        expected, own, parts = next(drawn), next(alone), [next(rank) for rank in ranks]
        given_out = sorted((batch for part in parts for batch in part), key=lambda batch: batch.keys)
        assert all(same(a, b) for a, b in zip(sorted(expected, key=lambda batch: batch.keys), given_out, strict=True))
        assert all(same(a, b) for a, b in zip(expected, own, strict=True))
        assert len({batch.dealt for part in parts for batch in part}) == 1
        assert all(rank.batch_samples == drawn.batch_samples for rank in ranks)
        natural = np.array([features(expected[rank::world]) for rank in range(world)])
        dealt = np.array([features(part) for part in parts])
        largest.append([(sums.max(0) / sums.mean(0)) for sums in (natural, dealt)])
        # what stands in for a sample that cannot be used has another size than was reckoned with
        if not packing and not any(rank.skipped for rank in ranks):
            assert ranks[0].spread.drawn == pytest.approx(largest[-1][0], rel=0.1)
            assert ranks[0].spread.dealt == pytest.approx(largest[-1][1], rel=0.1)
    before, after = np.mean(largest, axis=0)
    assert (after - 1 < 0.6 * (before - 1))[0], (before, after)
    assert after.max() < before.max()
    assert sum((rank.skipped for rank in ranks), Counter()) == drawn.skipped
    assert (
        len({rank.state_dict()["global_batch"] for rank in ranks}) == len({str(rank.state_dict().get("following")) for rank in ranks}) == 1
    )


@pytest.mark.parametrize("world", [1, 2, 4])
def test_micro_batches_of_several_samples_are_even_and_the_same_for_every_world_size(processor, mixed, world):
    alone = loader(mixed, processor, micro_batch_size=4)
    ranks = [loader(mixed, processor, micro_batch_size=4, rank=rank, world_size=world) for rank in range(world)]
    for _ in range(4):
        expected, parts = next(alone), [next(rank) for rank in ranks]
        together = {tuple(batch.keys): batch for part in parts for batch in part}
        assert all(same(batch, together[tuple(batch.keys)]) for batch in expected) and len(together) == 4
        # each rank has its largest first
        if not any(rank.skipped for rank in ranks):
            assert all(features([part[0]])[1] * 1.1 >= features([batch])[1] for part in parts for batch in part[1:])


def resumable(packing: bool) -> dict[str, Any]:
    return {"packing": packing, "rank": 1, "world_size": 2, "global_batch_size": 8, "micro_batch_size": 1 if packing else 2}


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "packed"])
def straight(request, processor, mixed):
    """(whether packed, eight batches, the state before each)."""
    source, batches, states = loader(mixed, processor, **resumable(request.param)), [], []
    for _ in range(8):
        states.append(json.loads(json.dumps(source.state_dict())))
        batches.append(next(source))
    return request.param, batches, states


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resume_is_exact_with_any_number_of_loader_processes(processor, mixed, straight, workers):
    packing, batches, states = straight
    for done in (0, 1, 3, 6) if not workers else (0, 3) if workers == 3 else (3,):
        resumed = loader(mixed, processor, num_workers=workers, **resumable(packing))
        resumed.load_state_dict(states[done])
        for number in range(done, min(done + 3, 8)):
            assert all(same(a, b) for a, b in zip(batches[number], next(resumed), strict=True))
        resumed.close()


def test_a_run_goes_on_evenly_from_where_it_was_in_order_and_back(processor, mixed):
    drawn, even = loader(mixed, processor, balance=False), loader(mixed, processor, world_size=2)
    for _ in range(2):
        next(drawn), next(even)
    onwards = [loader(mixed, processor, world_size=2, rank=rank) for rank in range(2)]
    for rank in onwards:
        rank.load_state_dict(drawn.state_dict())
    expected = sorted(key for batch in next(drawn) for key in batch.keys)
    assert sorted(key for rank in onwards for batch in next(rank) for key in batch.keys) == expected
    back = loader(mixed, processor, balance=False)
    back.load_state_dict(even.state_dict())
    assert sorted(key for batch in next(back) for key in batch.keys) == expected


def test_one_sample_a_step_of_one_rank_needs_no_sizes(processor, mixed, monkeypatch):
    monkeypatch.setattr(SampleEncoder, "size", None)
    drawn, alone = loader(mixed, processor, balance=False), loader(mixed, processor)
    assert all(same(a, b) for a, b in zip(next(drawn), next(alone), strict=True))
