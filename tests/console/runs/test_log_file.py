"""A whole log: random access and search for any content."""

from __future__ import annotations

import os

import pytest

from console.runs import log_file
from console.runs.log_file import WholeLog


def test_every_line_is_read_even_the_unterminated_last_one(tmp_path):
    path = tmp_path / "log"
    lines = [f"line {i}" for i in range(1000)]
    path.write_text("\n".join(lines))
    whole = WholeLog(path)
    assert len(whole) == 1000 and list(whole) == lines
    path.write_text("\n".join(lines) + "\n")
    assert list(WholeLog(path)) == lines
    path.write_text("")
    assert list(WholeLog(path)) == []
    path.write_text("\n\n")
    assert list(WholeLog(path)) == ["", ""]
    with pytest.raises(IndexError):
        whole[1000]
    with pytest.raises(OSError):
        WholeLog(tmp_path / "none")


def test_a_search_finds_each_line_once_ignoring_case(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "CHUNK", 64)
    path = tmp_path / "log"
    lines = [f"{'x' * (i % 50)} {'Needle needle' if i % 7 == 0 else ''} {i}" for i in range(300)]
    path.write_text("\n".join(lines) + "\n")
    whole = WholeLog(path)
    assert list(whole) == lines
    assert whole.find("nEEdle") == [i for i in range(300) if i % 7 == 0]
    assert whole.find("nowhere") == [] and whole.find("") == []


def test_tags_of_our_own_lines_are_neither_shown_nor_found(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "CHUNK", 7)
    path = tmp_path / "log"
    path.write_text("step 1 work\nqwen3vl[work]: the disk is full\n50%\rqwen3vl[stop]: asked to stop\nqwen3vl[")
    whole = WholeLog(path)
    assert list(whole) == ["step 1 work", "qwen3vl: the disk is full", "qwen3vl: asked to stop", "qwen3vl["]
    assert whole.find("work") == [0] and whole.find("qwen3vl: ") == [1, 2] and whole.find("qwen3vl[") == [3]


def test_controls_bad_utf8_progress_bars_and_endless_lines_are_shown_safely(tmp_path):
    path = tmp_path / "log"
    bar = b"\r".join(b"%d%%" % i for i in range(101))
    long_bar = b"\r".join(b"%07d of many" % i for i in range(20_000))
    path.write_bytes(b"\x1b[31mred\x1b[0m\x07\n" + b"\xff\xfe ok\n" + bar + b"\n" + b"z" * 200_000 + b"\n" + long_bar + b"\nlast\n")
    whole = WholeLog(path)
    assert whole[0] == "red" and whole[1] == "\ufffd\ufffd ok" and whole[2] == "100%"
    assert len(whole[3]) == log_file.WIDTH and whole[3].endswith("z…") and whole[4] == "0019999 of many" and whole[5] == "last"


def test_a_truncated_or_replaced_file_is_detected_and_its_lines_are_empty(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    whole = WholeLog(path)
    assert not whole.replaced and whole[0] == "one"
    with open(path, "a") as file:
        file.write("three\n")
    assert not whole.replaced and len(whole) == 2
    os.truncate(path, 2)
    assert whole.replaced
    path.unlink()
    assert whole.replaced and WholeLog.__getitem__(whole, 1) == "two"  # kept from before
    whole._blocks.clear()
    assert whole[1] == ""
