"""Archives written here are tar to everybody else, and stretches of anybody's archives are read back."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import tar
from qwen3vl_core.data.tar import TarWriter, members, sample_offsets, split_key
from tests.data import samples

pieces = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30).filter(lambda p: p not in (".", ".."))
CHECKSUM = range(148, 156)
names = st.lists(pieces, min_size=1, max_size=4).map("/".join)
files = st.dictionaries(names, st.binary(max_size=1200), min_size=1, max_size=6)


def write(path, content):
    with TarWriter(path) as archive:
        for name, data in content.items():
            archive.add(name, data)
    return path.read_bytes()


@samples.many(60)
@given(files)
def test_tarfile_reads_what_was_written(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "round.tar"
    written = write(path, content)
    with tarfile.open(path) as archive:
        read = {entry.name: archive.extractfile(entry).read() for entry in archive}
    assert read == content
    assert dict(members(written)) == content
    assert len(written) % tar.RECORD == 0
    assert write(path, content) == written


@samples.many()
@given(st.lists(st.tuples(st.from_regex(r"[A-Z_a-z~ -]{1,90}\.[a-z0-9]{1,8}", fullmatch=True), st.integers(0, tar.LARGEST_MEMBER))))
def test_headers_made_together_are_those_made_one_by_one(held):
    blocks = tar.header_blocks([name.encode() for name, _ in held], [size for _, size in held])
    assert blocks.tobytes() == b"".join(tar.header(name, size) for name, size in held)


@samples.many(60)
@given(files, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.integers(0, 120))
def test_what_tarfile_wrote_is_read(content, format, longer):
    content = {f"{'x' * longer}{name}": data for name, data in content.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            try:
                archive.addfile(entry, io.BytesIO(data))
            except ValueError:
                return  # a name that this format cannot hold
    assert dict(members(file.getvalue())) == content


@samples.many(50)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_samples_are_found_by_their_keys(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "samples.tar"
    starts = [0]
    with TarWriter(path) as archive:
        for number, count in enumerate(parts):
            for part in range(count):
                archive.add(f"{number:04d}.img{part}.jpg", bytes(100 * part))
            starts.append(archive.size)
    assert sample_offsets(path) == starts
    chunk = path.read_bytes()
    for number, count in enumerate(parts):
        keys = [split_key(name) for name, _ in members(chunk[starts[number] : starts[number + 1]])]
        assert keys == [(f"{number:04d}", f"img{part}.jpg") for part in range(count)]


@samples.many()
@given(st.integers(0, 3 * 512 - 1), st.integers(1, 255))
def test_a_damaged_header_is_noticed(position, change):
    whole = bytearray(tar.header("a.json", 600) + b"\1" * 600 + bytes(424))
    whole[position] ^= change
    if position < 512 and position not in CHECKSUM:
        with pytest.raises(ValueError):
            list(members(bytes(whole)))
        return
    # the checksum's own field may be written in several ways that mean the same number
    with contextlib.suppress(ValueError) if position in CHECKSUM else contextlib.nullcontext():
        assert [(name, len(content)) for name, content in members(bytes(whole))] == [("a.json", 600)]


@pytest.mark.parametrize("kept", [511, 512, 700])
def test_a_stretch_that_is_cut_off_is_noticed(kept):
    whole = tar.header("a.json", 600) + bytes(1024)
    with pytest.raises(ValueError, match=r"cut off|damaged"):
        list(members(whole[:kept]))


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "no.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        sample_offsets(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.json", "a//b.json", "", "a\0b", "x" * 101, "x" * 156 + "/a"])
def test_a_name_that_no_archive_should_hold_is_refused(name):
    with pytest.raises(ValueError):
        tar.header(name, 0)


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), TarWriter(tmp_path / "a.tar") as archive:
        archive.add("a.json", b"{}")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, *arguments, **options):
        builtins.open(path, "wb").close()
        return builtins.open("/dev/full", *arguments, **options)

    monkeypatch.setattr(tar, "open", full, raising=False)
    with pytest.raises(OSError) as failed, TarWriter(tmp_path / "a.tar") as archive:
        archive.add("a.json", b"{}")
    assert failed.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
