"""Bombs are refused by the table of limits: in one line, quickly, before their size is allocated."""

from __future__ import annotations

import io
import json
import os
import pickletools
import re
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from qwen3vl_core import limits
from qwen3vl_core.cli import main
from qwen3vl_core.data import tar
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.pictures import decode
from qwen3vl_core.data.prepare.media_check import check_file
from qwen3vl_core.data.shards import splits_of
from qwen3vl_core.data.webdataset import WebDatasetRecords
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.sizes import Architecture
from tests.readers import structures
from tests.readers.fuzz import limits as reader_limits


def member(size_field: bytes, kind: bytes = b"0", name: bytes = b"a.json") -> bytes:
    """A header with this size field and a valid checksum."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size_field.ljust(12, b"\0") + b"00000000000\0")
    block += b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(values: dict[str, str]) -> bytes:
    """A PAX header with these values, and a member of 2 bytes after it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a.json")
        entry.size, entry.pax_headers = 2, values
        archive.addfile(entry, io.BytesIO(b"{}"))
    return out.getvalue()


END = bytes(1024)
BOMBS = {
    "octal below 0": member(b"-0000001000") + END,
    "binary below 0": member(b"\xff" * 11 + b"\0") + END,
    "PAX below 0": pax({"size": "-1024"}),
    "a name of 4 GiB": member(b"\x80" + bytes(6) + b"\x01" + bytes(4), b"L") + END,
    "larger than the file": member(b"\x80" + b"\0" * 3 + b"\x7f" * 8) + END,
    "sparse": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40), "GNU.sparse.name": "b.json"}),
    "names of names": member(b"00000000001\0", b"L") + bytes(512) + (member(b"00000000000\0", b"L")) * 3000 + END,
    "no header after a member": member(b"00000000002\0") + b"{}".ljust(512, b"\0") + b"x" * 512 + END,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tar_with_impossible_sizes_ends_in_a_line(tmp_path, bomb):
    path = tmp_path / "train-00000.tar"
    path.write_bytes(BOMBS[bomb])
    with pytest.raises(RequestError, match="not a complete tar archive") as caught:
        list(WebDatasetRecords([path]).records())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError):
        tar.sample_offsets(path)
    with pytest.raises(ValueError):
        tar.sample_parts(BOMBS[bomb])


def test_archives_of_other_writers_are_still_read(tmp_path):
    path, long = tmp_path / "train-00000.tar", "folder/" * 20 + "0001.json"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=kind) as archive:
            entry = tarfile.TarInfo(long)
            entry.size = 16
            archive.addfile(entry, io.BytesIO(b'{"caption": "x"}'))
        assert list(WebDatasetRecords([path]).records()) == [{"caption": "x"}]
        assert len(tar.sample_offsets(path)) == 2
        assert tar.sample_parts(path.read_bytes())[1] == {"json": b'{"caption": "x"}'}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train-{00000..99999999}.tar", "over 1,000,000 shards"),
        ("{a,b}" * 60, "over 1,000,000 shards"),
        ("train-{0..99999999999999999999}.tar", "too many digits"),
        ("{" * 100_000, "do not match"),
        ("train-{0..", "do not match"),
    ],
)
def test_a_brace_list_is_counted_before_it_is_expanded(tmp_path, text, line):
    (tmp_path / ".nv-meta").mkdir()
    (tmp_path / ".nv-meta" / "split.yaml").write_text(json.dumps({"split_parts": {"train": [text]}, "exclude": []}))
    with pytest.raises(RequestError, match=line) as caught:
        splits_of(tmp_path)
    assert len(str(caught.value)) < 400


def test_yaml_whose_aliases_multiply_is_no_list_of_shards(tmp_path):
    (tmp_path / ".nv-meta").mkdir()
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / ".nv-meta" / "split.yaml").write_text("\n".join([*lines, "split_parts:", "  train: *a11"]))
    with pytest.raises(RequestError, match="must hold names"):
        splits_of(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9), ("text_config", "num_hidden_layers", "28"), ("text_config", "num_experts", 1 << 40),
        ("text_config", "hidden_size", 1 << 30), ("text_config", "vocab_size", -1), ("vision_config", "depth", 1 << 20),
        ("vision_config", "num_position_embeddings", 1 << 40), ("text_config", "num_attention_heads", 0),
        ("text_config", "hidden_size", True),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused(section, key, value):
    config = json.loads((BASE / "config.json").read_text())
    config[section][key] = value
    with pytest.raises(RequestError, match=rf"{section}\.{key} is .*, not a number from 1 to"):
        Architecture.from_config(config)


def test_a_picture_is_refused_by_its_area_and_by_its_area_for_its_bytes(tmp_path):
    def png(side: int) -> Path:
        path = tmp_path / f"{side}.png"
        Image.new("1", (side, side)).save(path)
        return path

    for side, line in ((9500, "9500x9500 pixels, at most"), (7000, "7000x7000 pixels in")):
        for read in (
            lambda path: check_file(path, "header"),
            lambda path: check_file(path, "decode"),
            lambda p: decode(p.read_bytes(), "p"),
        ):
            with pytest.raises(DataError, match=line) as caught:
                read(png(side))
            assert caught.value.reason == "extreme_picture"
    assert check_file(png(6000), "header").shape == (6000, 6000), "an A4 page at 600 dpi may be blank"


def test_a_file_is_not_read_beyond_its_limit(tmp_path):
    file = tmp_path / "config.json"
    with open(file, "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(RequestError, match=r"config.json: 1.1 TB; such a file has at most 16.8 MB"):
        Architecture.read(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RequestError, match="cannot be read"):
        Architecture.read(tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        read_small(file, limits.CONFIG)
    file.unlink()
    file.write_text("[" * 100_000)
    with pytest.raises(RequestError, match="not JSON"):
        Architecture.read(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000, b"[]", b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 4000]}}',
        json.dumps({"a": {"dtype": "F32", "shape": [1 << 62] * 10**5, "data_offsets": [0, 0]}}).encode(),
    ],
    ids=["nested", "list", "negative", "float", "dimensions"],
)  # fmt: skip
def test_a_hostile_safetensors_header_ends_in_a_line(tmp_path, header):
    from qwen3vl_core.checkpoint.hf import read_header

    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(RequestError, match="not a safetensors file") as caught:
        read_header(file)
    assert "\n" not in str(caught.value)


def test_a_huge_safetensors_header_or_table_is_not_read(tmp_path):
    from qwen3vl_core.checkpoint.dcp_metadata import read_tables
    from qwen3vl_core.checkpoint.hf import read_header

    file = tmp_path / "model.safetensors"
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", limits.SAFETENSORS_HEADER + 1))
        stream.truncate(1 << 40)
    with pytest.raises(RequestError, match="not a safetensors file"):
        read_header(file)
    with open(tmp_path / ".metadata", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(RequestError, match="not readable"):
        read_tables(tmp_path / ".metadata")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from qwen3vl_core.checkpoint import convert
    from qwen3vl_core.options import ConvertOptions

    folder = tmp_path_factory.mktemp("checkpoint") / "megatron"
    convert.run(ConvertOptions(source=str(BASE), target=str(folder)))
    (folder / "release" / "digests.json").unlink()
    return folder


def in_an_archive(table: bytes, compression: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in (("data.pkl", table), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"common/{name}", content)
    return out.getvalue()


@pytest.mark.parametrize("bomb", [*structures.PICKLE_BOMBS, b"X" + struct.pack("<I", 1 << 26) + bytes(1 << 26)], ids=lambda _: "bomb")
def test_a_pickle_that_multiplies_is_refused_before_it_is_read(tmp_path, checkpoint, capsys, bomb):
    from qwen3vl_core.checkpoint.dcp_metadata import read_tables
    from qwen3vl_core.checkpoint.torch_dist import read_common

    # as tables and, compressed, as common values
    shutil.copytree(checkpoint, tmp_path / "copy")
    table = b"\x80\x04" + bomb + b"."
    for file, content in (("common.pt", in_an_archive(table, zipfile.ZIP_DEFLATED)), (".metadata", table)):
        (tmp_path / "copy" / "release" / file).write_bytes(content)
        for command in (["inspect", tmp_path / "copy"], ["convert", tmp_path / "copy", tmp_path / "target"]):
            with reader_limits():
                code = main([str(word) for word in command])
            printed = capsys.readouterr()
            lines = [line for line in (printed.out + printed.err).splitlines() if str(tmp_path / "copy" / "release" / file) in line]
            # convert needs none of the common values, and inspect only the saved arguments
            assert code in (1, 2) if file == ".metadata" else code in (0, 1)
            assert len(lines) == (code > 0) and all(len(line) < 600 for line in lines) and "Traceback" not in printed.err, printed
            shutil.rmtree(tmp_path / "target", ignore_errors=True)
        with reader_limits(), pytest.raises(RequestError, match=re.escape(f"release/{file}: ")):
            read_common(tmp_path / "copy" / "release") if file == "common.pt" else read_tables(tmp_path / "copy" / "release" / file)


def test_tables_that_state_2_to_the_40_rows_are_refused(tmp_path, checkpoint, capsys):
    shutil.copytree(checkpoint, tmp_path / "copy")
    file = tmp_path / "copy" / "release" / ".metadata"
    operations = list(pickletools.genops(file.read_bytes()))
    data, row = file.read_bytes(), next(place for code, value, place in operations if code.name == "BININT2")
    file.write_bytes(data[:2] + data[11:row] + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + data[row + 3 :])
    with reader_limits():
        assert main(["convert", str(tmp_path / "copy"), str(tmp_path / "target")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(tmp_path / "copy") in line and not (tmp_path / "target").exists()


TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 'x'.center(10**11) }}",
    "{{ 10 ** (10 ** 9) }}",
    "x" * (1 << 21),
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_that_never_ends_is_refused(tmp_path, template, monkeypatch):
    from qwen3vl_core.data.processor import ChatProcessor

    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 1)
    folder = tmp_path / "model"
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(RequestError, match=r"takes over 1 s|takes over 1.1 GB of memory|2\.1 MB; such a file has at most 1.0 MB"):
        ChatProcessor.from_pretrained(folder)
