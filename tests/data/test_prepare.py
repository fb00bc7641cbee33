"""`qwen3vl prepare`: a whole dataset or nothing, the same bytes for the same input, and one line for each problem."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core import cli
from qwen3vl_core.data.prepare import check, copying, shard_writer
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.prepare.command import parse_split, split_counts
from qwen3vl_core.data.prepare.media_check import check_file
from qwen3vl_core.data.shards import ShardSplit, splits_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import PrepareOptions
from tests.data import samples


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepared(source: Path, to: Path, **options) -> dict:
    prepare.run(PrepareOptions(source=str(source), to=str(to), **options))
    return json.loads((to / "report.json").read_text())


shares = st.lists(st.integers(0, 100) | st.floats(0, 1), min_size=3, max_size=3).filter(sum)


@samples.many(300)
@given(st.integers(0, 5000), shares)
def test_no_split_asked_for_is_ever_empty(count, wanted):
    asked = sum(share > 0 for share in wanted)
    if count < asked:
        with pytest.raises(RequestError, match="cannot fill"):
            split_counts(count, tuple(wanted), "x")
        return
    counts = split_counts(count, tuple(wanted), "x")
    assert sum(counts) == count
    for held, share in zip(counts, wanted, strict=True):
        assert (held > 0) == (share > 0)
        # at most one sample off on either side for rounding, and one taken by each other split that would be empty
        assert abs(held - count * share / sum(wanted)) < 3


@pytest.mark.parametrize("text", ["9,1", "9,1,0,0", "a,b,c", "", "9,-1,0", "0,0,0", "nan,1,1", "inf,1,1"])
def test_a_split_that_is_none_is_refused(text):
    with pytest.raises(RequestError, match=r"three numbers.*use 9,1,0"):
        parse_split(text)


def test_the_pictures_bytes_are_kept_and_nothing_is_lost(tmp_path):
    source = samples.write_source(tmp_path, 9, text_only=2)
    report = prepared(source, tmp_path / "data", split="7,3,1")
    assert [report["splits"][name]["samples"] for name in ("train", "val", "test")] == [7, 3, 1]
    assert (report["samples"], report["pictures"], report["turns"]) == (11, 9, 22)
    stored = {}
    for archive in (tmp_path / "data").glob("*.tar"):
        with tarfile.open(archive) as opened:
            stored |= {entry.name: opened.extractfile(entry).read() for entry in opened}
    records = json.loads(source.read_text())
    for number, record in enumerate(records):
        conversation = json.loads(stored.pop(f"{number:08d}.json"))
        assert conversation["id"] == record["id"]
        assert conversation["messages"][1]["content"] == [{"type": "text", "text": record["conversations"][1]["value"]}]
        if "image" in record:
            part = conversation["messages"][0]["content"][0]["part"]
            assert stored.pop(f"{number:08d}.{part}") == (tmp_path / record["image"]).read_bytes()
    assert not stored


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = samples.write_source(tmp_path, 12)
    for name in ("a", "b"):
        prepared(source, tmp_path / name, split="2,1,1", shard_size=40_000)
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert first == second
    assert sum(name.endswith(".tar") for name in first) > 3


def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    source = samples.write_source(tmp_path, 24)
    prepared(source, tmp_path / "one", split="2,1,1", shard_size=40_000, workers=1)
    prepared(source, tmp_path / "three", split="2,1,1", shard_size=40_000, workers=3)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


@pytest.mark.parametrize("buffer", [512, 4096, 60 * 512])
def test_samples_of_any_size_are_written_as_tar_reads_them(tmp_path, monkeypatch, buffer):
    source = samples.write_source(tmp_path, 10, text_only=2)
    prepared(source, tmp_path / "whole", split="1,0,0", workers=1)
    monkeypatch.setattr(copying, "_BUFFER", buffer)
    monkeypatch.setattr(copying, "_AT_ONCE", 1024)
    prepared(source, tmp_path / "pieces", split="1,0,0", workers=1)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "pieces")
    with tarfile.open(tmp_path / "pieces" / "train-00000.tar") as opened:
        assert sum(entry.name.endswith("json") for entry in opened) == 12


@samples.many()
@given(st.binary(min_size=2048, max_size=2048), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2047), st.integers(1, 255))
def test_a_checksum_is_of_the_bytes_and_not_of_how_they_were_cut(data, cuts, at, change):
    whole = copying.checksum(data)
    edges = [0, *sorted(512 * cut for cut in cuts), 2048]
    made = 0
    for begin, end in itertools.pairwise(edges):
        made = copying.checksum(data[begin:end], made)
    assert made == whole
    other = bytearray(data)
    other[at] ^= change
    assert copying.checksum(other) != whole


class Killed(BaseException):
    """Ends the work without any of its handlers, as a signal that cannot be caught does."""


def interrupted(source: Path, target: Path, monkeypatch, error: BaseException, after: int = 3, **options) -> list[str]:
    """Prepare that ends with `error` in the middle; names of the shards finished by then."""
    real = copying.write_at
    written = []

    def until(file, buffers, offset):
        if len(written) == after:
            raise error
        written.append(offset)
        return real(file, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr(copying, "write_at", until)
        if isinstance(error, Killed):
            patched.setattr(shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(type(error)):
            prepared(source, target, **options)
    assert not target.exists()
    return sorted(path.name for path in target.with_name(target.name + ".tmp").glob("*.tar"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Killed()], ids=["interrupted", "killed"])
def test_what_was_finished_before_an_interruption_is_kept(tmp_path, monkeypatch, error):
    source, options = samples.write_source(tmp_path, 16), {"split": "1,0,0", "shard_size": 40_000}
    prepared(source, tmp_path / "whole", **options)
    finished = interrupted(source, tmp_path / "data", monkeypatch, error, **options)
    assert len(finished) == 3
    inodes = {name: (tmp_path / "data.tmp" / name).stat().st_ino for name in finished}
    prepared(source, tmp_path / "data", **options)
    assert {name: (tmp_path / "data" / name).stat().st_ino for name in finished} == inodes
    assert files_of(tmp_path / "data") == files_of(tmp_path / "whole")
    assert not (tmp_path / "data.tmp").exists()


@pytest.mark.parametrize("change", ["picture", "shard", "record", "log"])
def test_a_finished_shard_that_is_not_the_same_any_more_is_written_again(tmp_path, monkeypatch, change):
    source, options = samples.write_source(tmp_path, 16), {"split": "1,0,0", "shard_size": 40_000}
    finished = interrupted(source, tmp_path / "data", monkeypatch, KeyboardInterrupt(), **options)
    building = tmp_path / "data.tmp"
    if change == "picture":
        for path in (tmp_path / "pictures").iterdir():
            content = bytearray(path.read_bytes())
            content[-100] ^= 1
            path.write_bytes(content)
            os.utime(path, ns=(1, 10**18))
    elif change == "shard":
        for name in finished:
            content = bytearray((building / name).read_bytes())
            content[len(content) // 2] ^= 1
            (building / name).write_bytes(content)
    elif change == "record":
        source.write_text(source.read_text().replace("dog", "cat"))
    else:
        (building / "finished.tmp").write_bytes(b'{"shard": 3}\n[]\n\xff')
    prepared(source, tmp_path / "data", **options)
    prepared(source, tmp_path / "fresh", **options)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "fresh")


def test_two_prepares_do_not_share_a_place(tmp_path):
    source = samples.write_source(tmp_path, 2)
    with shard_writer.dataset_made_whole(tmp_path / "data") as building:
        (building / "x").write_text("x")
        with pytest.raises(RequestError, match="another prepare is making it"):
            prepared(source, tmp_path / "data")
        assert (building / "x").exists()


def test_shards_stay_below_the_size_asked_for(tmp_path):
    source = samples.write_source(tmp_path, 12)
    report = prepared(source, tmp_path / "data", split="1,0,0", shard_size=50_000)
    shards = report["splits"]["train"]["shards"]
    assert len(shards) > 1 and shards[0] == "train-00000.tar"
    assert all((tmp_path / "data" / shard).stat().st_size <= 50_000 for shard in shards)
    with pytest.raises(RequestError, match=r"--shard-size 10000: record \d+ alone takes .*use at least") as refused:
        prepared(source, tmp_path / "small", shard_size=10_000)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    prepared(source, tmp_path / "small", shard_size=least)


def test_few_samples_still_fill_every_split(tmp_path):
    report = prepared(samples.write_source(tmp_path, 3), tmp_path / "data", split="98,1,1")
    assert [share["samples"] for share in report["splits"].values()] == [1, 1, 1]
    assert splits_of(tmp_path / "data") == {name: [f"{name}-00000.tar"] for name in ("train", "val", "test")}
    with pytest.raises(RequestError, match="--split 9,1,0: one sample cannot fill 2 splits; use --split 1,0,0"):
        prepared(samples.write_source(tmp_path / "one", 1), tmp_path / "more")
    assert not (tmp_path / "more").exists()


def damaged_source(folder: Path) -> Path:
    """12 records, of which 3 and 5 have no picture and 8 one that is no picture."""
    source = samples.write_source(folder, 12)
    for number in (3, 5):
        (folder / f"pictures/{number}.png").unlink()
    (folder / "pictures/8.jpg").write_bytes(b"<html>404</html>")
    return source


def test_missing_and_broken_pictures_are_listed_and_nothing_is_written(tmp_path):
    source = damaged_source(tmp_path)
    with pytest.raises(RequestError) as refused:
        prepared(source, tmp_path / "data")
    line = str(refused.value)
    assert "3 of 12 records" in line and "the picture does not exist: 2" in line and "the picture cannot be read: 1" in line
    assert "record 3: " in line and "no such file" in line and "--skip-missing" in line and "\n" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.json", "pictures"]


def test_skip_missing_leaves_them_out_and_counts_them(tmp_path, capsys):
    report = prepared(damaged_source(tmp_path), tmp_path / "data", split="1,0,0", skip_missing=True)
    assert report["samples"] == 9 and report["refused"] == {"missing_picture": 2, "broken_picture": 1}
    rows = [json.loads(line) for line in (tmp_path / "data" / "refused.jsonl").read_text().splitlines()]
    assert [(row["record"], row["id"]) for row in rows] == [(3, "scene-3"), (5, "scene-5"), (8, "scene-8")]
    keys = {ShardSplit(tmp_path / "data", "train").read(i)[0] for i in range(9)}
    assert keys == {f"{number:08d}" for number in range(12) if number not in (3, 5, 8)}
    printed = capsys.readouterr().out
    assert "9 samples" in printed and "left out 3" in printed


def test_nothing_left_is_refused(tmp_path):
    source = samples.write_source(tmp_path, 2)
    for picture in (tmp_path / "pictures").iterdir():
        picture.unlink()
    with pytest.raises(RequestError, match="no sample is left of 2"):
        prepared(source, tmp_path / "data", skip_missing=True)


def test_check_none_takes_pictures_on_trust_and_decode_does_not(tmp_path):
    source = samples.write_source(tmp_path, 4)
    picture = tmp_path / "pictures/1.png"
    content = bytearray(picture.read_bytes())
    content[len(content) // 2] ^= 0xFF
    picture.write_bytes(content)
    with pytest.raises(RequestError, match="record 1: "):
        prepared(source, tmp_path / "data", check="decode")
    assert prepared(source, tmp_path / "data", check="none")["samples"] == 4


def test_the_pictures_may_lie_elsewhere(tmp_path):
    source = samples.write_source(tmp_path / "a", 3)
    moved = source.rename(tmp_path / "captions.json")
    with pytest.raises(RequestError, match="--images"):
        prepared(moved, tmp_path / "data")
    assert prepared(moved, tmp_path / "data", images=str(tmp_path / "a"))["samples"] == 3


def test_a_dataset_is_replaced_only_when_asked_for(tmp_path):
    source = samples.write_source(tmp_path, 4)
    target = tmp_path / "data"
    prepared(source, target)
    before = files_of(target)
    with pytest.raises(RequestError, match="--overwrite"):
        prepared(source, target)
    assert files_of(target) == before
    prepared(samples.write_source(tmp_path, 6), target, overwrite=True)
    assert json.loads((target / "report.json").read_text())["samples"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.json", "data", "pictures"]


def test_overwrite_never_removes_what_is_no_dataset_or_holds_the_source(tmp_path):
    source = samples.write_source(tmp_path, 4)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(RequestError, match="holds something that is no dataset"):
        prepared(source, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    prepared(source, tmp_path / "data")
    inside = samples.write_source(tmp_path / "data", 2)
    with pytest.raises(RequestError, match=r"SOURCE .* lies in it"):
        prepared(inside, tmp_path / "data", overwrite=True)
    assert inside.exists()


@pytest.mark.parametrize("wrong", ["no images", "images a file", "target a file", "target nowhere"])
def test_places_that_will_not_do_are_refused_first(tmp_path, wrong):
    source = samples.write_source(tmp_path, 2)
    target, options = tmp_path / "data", {}
    if wrong == "no images":
        options["images"] = str(tmp_path / "nowhere")
    elif wrong == "images a file":
        options["images"] = str(source)
    elif wrong == "target a file":
        target = source
    else:
        target = source / "data"
    before = files_of(tmp_path)
    with pytest.raises(RequestError):
        prepared(source, target, **options)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "overwrite"])
def test_a_full_disk_ends_in_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, there):
    source = samples.write_source(tmp_path, 8)
    if there:
        prepared(source, tmp_path / "data")
    before = files_of(tmp_path)

    def full(file, buffers, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(copying, "write_at", full)
        with pytest.raises(WorkError, match="the disk is full; nothing was left there") as failed:
            prepared(source, tmp_path / "data", split="1,1,0", overwrite=there)
    assert "\n" not in str(failed.value)
    assert files_of(tmp_path) == before and not (tmp_path / "data.tmp").exists()


def test_a_picture_that_changes_on_the_way_ends_the_work(tmp_path, monkeypatch):
    source = samples.write_source(tmp_path, 4)
    real = check_file

    def then_grows(path, how, kind):
        found = real(path, how, kind)
        with open(path, "ab") as file:
            file.write(bytes(600))
        return found

    monkeypatch.setattr(check, "check_file", then_grows)
    with pytest.raises(WorkError, match="changed while it was read"):
        prepared(source, tmp_path / "data")
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.tmp").exists()


def test_the_command_ends_with_a_table_or_one_line(tmp_path, capsys):
    source = samples.write_source(tmp_path, 5)
    assert cli.main(["prepare", str(source), "--to", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr()
    assert "5 samples" in printed.out and "train" in printed.out and "val" in printed.out
    assert "Saving info" not in printed.out
    assert cli.main(["prepare", str(source), "--to", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["prepare", str(tmp_path / "none.json"), "--to", str(tmp_path / "other")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_checking_the_request_waits_for_no_heavy_import():
    program = "import sys, qwen3vl_core.data.prepare.command; print([m for m in ('torch', 'transformers', 'megatron') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
