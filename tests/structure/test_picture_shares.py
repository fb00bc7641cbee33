"""Context parallel ranks encode disjoint shares of the frames, whose features are gathered to the tokens they belong to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.micro_batch import vision_structure
from qwen3vl_core.structure.picture_shares import frame_lengths, own_patches, picture_shares
from qwen3vl_core.structure.positions import vision_coordinates
from tests import tiny

A = Architecture.from_config(tiny.hf_config().to_dict())
MERGE = A.vision.spatial_merge_size
grids = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), max_size=7)


def grid_of(sizes):
    return torch.tensor([[frames, rows * MERGE, columns * MERGE] for frames, rows, columns in sizes]).reshape(-1, 3)


@given(grids.filter(len), st.integers(1, 5), st.booleans())
def test_every_frame_is_in_one_share_and_all_shares_have_the_same_size(sizes, size, buckets):
    lengths = frame_lengths(grid_of(sizes))
    shares = picture_shares(lengths, size, buckets=buckets)
    own = [length for share in shares for length in cut(share)]
    assert own == lengths
    assert [share.first for share in shares] == [0, *(share.end for share in shares[:-1])] and shares[-1].end == sum(lengths)
    assert len({sum(share.frames) for share in shares}) == 1
    assert max(length for share in shares for length in share.frames) == max(lengths)
    # no share is larger than an equal one by more than the longest frame
    assert max(share.end - share.first for share in shares) <= sum(lengths) / size + max(lengths)


def cut(share):
    """Patches of the frames of a share without its padding."""
    lengths, total = [], share.end - share.first
    for length in share.frames:
        if total:
            lengths.append(length)
            total -= length
    return lengths


@given(grids, grids, st.integers(1, 4), st.booleans())
def test_gathered_features_are_inserted_where_those_of_one_rank_are(pictures, videos, size, buckets):
    given_grids = [grid_of(pictures), grid_of(videos)]
    counts = [int(grid.prod(-1).sum()) for grid in given_grids]
    tokens = [A.image_token_id] * (counts[0] // MERGE**2) + [7] * 3 + [A.video_token_id] * (counts[1] // MERGE**2)
    ids = torch.tensor([tokens])
    inserted, rows_columns = torch.full((ids.numel() + 1,), -1), []
    expected = torch.full_like(inserted, -1)
    if not sum(counts):
        assert vision_structure(A, ids, *given_grids, cp_size=size) is None
        return
    # a feature is the number of its first patch, plus one so that padding differs
    numbers = torch.arange(sum(counts)) + 1
    patches = numbers[:, None].split(counts)
    expected[:-1][ids[0] == A.image_token_id] = patches[0][:: MERGE**2, 0]
    expected[:-1][ids[0] == A.video_token_id] = patches[1][:: MERGE**2, 0]
    gathered, shapes = [], set()
    for rank in range(size):
        structure = vision_structure(A, ids, *given_grids, buckets=buckets, cp_size=size, cp_rank=rank)
        own = torch.cat([own_patches(p, g, size, rank, buckets=buckets) for p, g in zip(patches, given_grids, strict=True)])
        assert len(own) == len(structure.coordinates) == len(structure.sizes) == int(structure.cu_seqlens[-1]) == sum(structure.frames)
        assert max(structure.frames) <= structure.max_seqlen
        rows_columns.append((own[:, 0], structure.coordinates))
        gathered.append(own[:: MERGE**2, 0])
        shapes.add((len(structure.cu_seqlens) if buckets else 0, structure.max_seqlen, len(own)))
    # graphs of all ranks are captured for the same micro batches
    assert len(shapes) == 1
    inserted[structure.token_indices] = torch.cat(gathered)
    assert torch.equal(inserted[:-1], expected[:-1])
    every = torch.cat([vision_coordinates(grid, MERGE) for grid in given_grids if len(grid)])
    for own, coordinates in rows_columns:
        assert torch.equal(coordinates[own > 0].long(), every[own[own > 0] - 1])


def test_patches_that_do_not_match_their_grid_are_refused():
    with pytest.raises(ValueError, match="grid_thw counts 16 patches, but 12 are given"):
        own_patches(torch.zeros(12, 3), torch.tensor([[1, 4, 4]]), 2, 0, buckets=False)
