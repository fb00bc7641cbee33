"""The archive of a tensor, and regions read from a checkpoint with any sharding."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3vl_core.checkpoint import positional_io, stream, torch_dist
from qwen3vl_core.checkpoint.name_map import Region
from qwen3vl_core.checkpoint.torch_dist_writer import RegionWriter
from qwen3vl_core.checkpoint.torch_save import STORAGES, locate, record
from qwen3vl_core.errors import RequestError

# QWEN3VL_EXAMPLES=500 for a long search
EXAMPLES = int(os.environ.get("QWEN3VL_EXAMPLES", 12))
SHAPES = [(), (1,), (7,), (3, 5), (1, 4, 6), (2, 1, 3, 4), (8, 3, 2, 4, 4)]


def reader_of(blob: bytes):
    return lambda offset, count: blob[offset : offset + count]


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_loads_the_archive_and_finds_the_numbers_aligned(dtype, shape):
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    made = record(dtype, shape)
    blob = made.head + stream.raw_bytes(tensor.reshape(-1)) + made.tail
    assert len(blob) == made.bytes and len(made.head) % 64 == 0
    loaded = torch.load(io.BytesIO(blob), weights_only=True)
    assert loaded.dtype == dtype and loaded.shape == shape and torch.equal(loaded, tensor)
    place = locate(reader_of(blob), len(blob))
    assert (place.offset, place.dtype, place.shape) == (len(made.head), dtype, shape)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_data_is_found_in_archives_written_by_torch(dtype, shape):
    tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
    stored = io.BytesIO()
    torch.save(tensor, stored)
    blob = stored.getvalue()
    place = locate(reader_of(blob), len(blob))
    found = torch.frombuffer(bytearray(blob[place.offset :][: tensor.nbytes]), dtype=dtype).view(place.shape)
    assert torch.equal(found, tensor)


@pytest.mark.parametrize(
    "value",
    [torch.arange(6.0).view(2, 3).t(), torch.arange(6.0)[2:4], [torch.zeros(2)], torch.arange(3), None, {"a": 1}],
    ids=["transposed", "view", "list", "whole numbers", "none", "dictionary"],
)
def test_other_records_than_one_contiguous_tensor_are_left_to_torch(value):
    stored = io.BytesIO()
    torch.save(value, stored)
    assert locate(reader_of(stored.getvalue()), len(stored.getvalue())) is None


@pytest.mark.parametrize("cut", [0, 10, 100, 900])
def test_other_files_are_left_to_torch(cut):
    blob = bytes(range(256)) * 8
    assert locate(reader_of(blob[:cut]), cut) is None


def test_a_record_larger_than_four_gigabytes_is_loaded(tmp_path):
    """A sparse file."""
    made = record(torch.float16, ((1 << 31) // 4096 + 2, 4096))
    assert made.data_bytes > 1 << 32
    with (tmp_path / "large").open("wb") as file:
        file.write(made.head)
        file.seek(len(made.head) + made.data_bytes - 2)
        file.write(torch.tensor([1.5], dtype=torch.float16).numpy().tobytes())
        file.write(made.tail)
    loaded = torch.load(tmp_path / "large", mmap=True, weights_only=True)
    assert loaded.nbytes == made.data_bytes and loaded[-1, -1] == 1.5 and loaded[0, 0] == 0
    files, size = positional_io.FileReader(), (tmp_path / "large").stat().st_size

    def read(offset: int, count: int) -> bytes:
        out = bytearray(count)
        files.read(tmp_path / "large", offset, memoryview(out))
        return bytes(out)

    assert locate(read, size).offset == len(made.head)


def cuts(random, extent: int) -> list[int]:
    inner = sorted(random.draw(st.sets(st.integers(1, extent - 1), max_size=2))) if extent > 1 else []
    return [0, *inner, extent]


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_region_is_read_from_any_split(tmp_path, data):
    """Split as by tensor, pipeline and expert parallel ranks: along any axis."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    tensor = torch.randn(shape).bfloat16()
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    edges = [cuts(data, extent) for extent in shape]
    with RegionWriter(folder) as writer:
        for spans in itertools.product(*(list(itertools.pairwise(edge)) for edge in edges)):
            box = tensor[tuple(slice(a, b) for a, b in spans)].contiguous()
            place = writer.add("t", shape, tuple(a for a, _ in spans), tuple(box.shape), tensor.dtype)
            writer.write(place, 0, stream.raw_bytes(box.view(-1)))
        writer.add_empty("state", (1, 2), (3, 4))
        writer.finish({"iteration": 3})
    reader = torch_dist.RegionReader(folder)
    low = [data.draw(st.integers(0, extent - 1)) for extent in shape]
    high = [data.draw(st.integers(a + 1, extent)) for a, extent in zip(low, shape, strict=True)]
    size = tuple(b - a for a, b in zip(low, high, strict=True))
    assert torch.equal(reader.read("t", tuple(low), size), tensor[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    assert torch.equal(reader.read("t"), tensor)
    out = torch.empty(math.prod(size), dtype=torch.bfloat16).view(size)
    assert reader.read("t", tuple(low), size, out) is out
    assert reader.read_object("state/shard_1.2_3.4") is None
    assert torch_dist.read_common(folder) == {"iteration": 3}


def test_a_region_with_a_missing_piece_is_refused(tmp_path):
    with RegionWriter(tmp_path / "data") as writer:
        writer.write(writer.add("t", (4, 2), (0, 0), (2, 2), torch.float32), 0, stream.raw_bytes(torch.zeros(4)))
        writer.finish({})
    with pytest.raises(RequestError, match=r"t is incomplete .4 of 8 elements"):
        torch_dist.RegionReader(tmp_path / "data").read("t")


@settings(deadline=None, max_examples=EXAMPLES)
@given(data=st.data(), block=st.integers(1, 40))
def test_blocks_in_either_direction_equal_the_transforms(data, block):
    """For any block size, the joined blocks of a region equal the transform of the whole."""
    from qwen3vl_core.checkpoint import transforms

    groups, heads, dim, hidden = (data.draw(st.integers(1, 4)) for _ in range(4))
    transform = data.draw(st.sampled_from(["copy", "rows", "transposed", "groups", "heads"]))
    shapes = {
        "copy": [(dim * groups, hidden)], "rows": [(dim, hidden), (heads, hidden)], "transposed": [(hidden, dim)],
        "groups": [(groups * heads * dim, hidden), (groups * dim, hidden), (groups * dim, hidden)], "heads": [(3 * groups * dim, hidden)],
    }[transform]  # fmt: skip
    rows = dim if transform == "transposed" else sum(s[0] for s in shapes)
    region = Region("k", (2, rows, hidden), (1, 0, 0), (1, rows, hidden), tuple("abc"[: len(shapes)]), tuple(shapes), transform, groups)
    given_tensors = [torch.randn(shape) for shape in shapes]
    box = transforms.to_megatron(region, given_tensors)

    class Memory:
        """A source in memory with one region, in either format."""

        def __init__(self, hf: bool) -> None:
            self.hf = hf

        def dtype_of(self, region, tensor=0):
            return torch.float32

        def rows(self, region, tensor, row, at, rows, out):
            whole = given_tensors[tensor] if self.hf else box[0]
            first = row if self.hf else at
            out.copy_(whole[first : first + rows].reshape(-1))

    before = stream.BLOCK
    stream.BLOCK = block
    try:
        for source in (Memory(True), Memory(False)):
            joined = torch.cat([values.clone() for values, _ in stream.box_blocks(source, region, stream.Buffers())])
            assert torch.equal(joined, box.reshape(-1))
            for i, expected in enumerate(given_tensors):
                joined = torch.cat([values.clone() for values, _ in stream.hf_blocks(source, region, i, stream.Buffers())])
                assert torch.equal(joined, expected.reshape(-1))
    finally:
        stream.BLOCK = before


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_non_finite_value_is_found(dtype, bad):
    values, buffers = torch.randn(5000).to(dtype), stream.Buffers()
    values[::7] = torch.finfo(dtype).max
    values[::11] = torch.finfo(dtype).min
    assert not stream.any_not_finite(values, buffers)
    values[4321] = bad
    assert stream.any_not_finite(values, buffers)
    assert stream.not_finite(values, [("a", 4000), ("b", 1000)]) == {"b": 1}


def test_unpickling_metadata_runs_no_code(tmp_path):
    """Not even that of allowed classes: stand-ins replace all of them."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for value in (Evil(), {"state_dict_metadata": Evil()}):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
        with pytest.raises(RequestError, match="not readable"):
            torch_dist.RegionReader(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_backend_is_named_as_megatron_reads_it(tmp_path):
    with RegionWriter(tmp_path / "data") as writer:
        writer.finish({})
    assert json.loads((tmp_path / "data" / "metadata.json").read_text())["sharded_backend"] == "torch_dist"


def test_the_tables_are_those_that_torchs_own_classes_make(tmp_path):
    """Read by torch they are its classes, with the same fields as when torch made them."""
    from torch.distributed.checkpoint import metadata
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    from qwen3vl_core.checkpoint.dcp_tables import tables

    boxes = [((0, 0), (1, 3)), ((1, 0), (1, 3))]
    stored = [("t", (0, 0), 0, "a", 0, 9), ("t", (1, 0), 1, "b", 9, 9), ("an object", None, None, "a", 9, 4)]
    read = pickle.loads(tables({"t": (torch.bfloat16, (2, 3), boxes)}, stored))
    assert type(read) is metadata.Metadata
    size, chunks = torch.Size, [metadata.ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
    properties = metadata.TensorProperties(dtype=torch.bfloat16)
    expected = {
        "t": metadata.TensorStorageMetadata(properties, size((2, 3)), chunks), "an object": metadata.BytesStorageMetadata(),
    }  # fmt: skip
    assert read.state_dict_metadata == expected
    places = {
        metadata.MetadataIndex("t", size((0, 0)), 0): _StorageInfo("a", 0, 9),
        metadata.MetadataIndex("t", size((1, 0)), 1): _StorageInfo("b", 9, 9),
        metadata.MetadataIndex("an object"): _StorageInfo("a", 9, 4),
    }
    assert read.storage_data == places
