"""Every reader survives kills and full disks: in the end there are the bytes of an uninterrupted prepare, and nothing else is left."""

from __future__ import annotations

import csv
import errno
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import tarfile

import pytest

from qwen3vl_core.data import byte_ranges
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.prepare import copying
from qwen3vl_core.errors import WorkError
from qwen3vl_core.options import PrepareOptions
from tests.data import samples
from tests.data.test_prepare import files_of

COUNT, KILLS = 24, 8
CONVERSATION = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]


def written_parquet(folder, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return folder / "train.parquet"


def written_arrow(folder, rows):
    """As `Dataset.save_to_disk` leaves it."""
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def written_csv(folder, names):
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((name, f"Red, number {n}.") for n, name in enumerate(names))])
    return folder / "captions.csv"


def written_coco(folder, names):
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": f"Red {n}."} for n in range(len(names))]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "captions.json"


def written_imagefolder(folder, names):
    rows = [{"file_name": name, "text": f"Red {n}."} for n, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def written_tar(folder, contents, *, conversation):
    (folder / "wds").mkdir()
    with tarfile.open(folder / "wds" / "pretrain-0.tar", "w") as archive:
        for n, content in enumerate(contents):
            text = ("json", json.dumps(CONVERSATION).encode()) if conversation else ("txt", f"Red {n}.".encode())
            for ending, member in (("jpg", content), text):
                entry = tarfile.TarInfo(f"{n:04d}.{ending}")
                entry.size = len(member)
                archive.addfile(entry, io.BytesIO(member))
    return folder / "wds"


KINDS = ("parquet", "dataset on disk", "CSV", "COCO", "imagefolder", "WebDataset", "Pai's wds", "texts beside pictures")


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    contents = [samples.encoded(samples.picture(n)) for n in range(COUNT)]
    if request.param in ("parquet", "dataset on disk"):
        rows = [{"image": {"bytes": content, "path": None}, "conversations": CONVERSATION} for content in contents]
        return (written_parquet if request.param == "parquet" else written_arrow)(folder, rows)
    if request.param in ("WebDataset", "Pai's wds"):
        return written_tar(folder, contents, conversation=request.param == "Pai's wds")
    names = [f"{n:03d}.jpg" for n in range(COUNT)]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    if request.param == "texts beside pictures":
        for n, name in enumerate(names):
            (folder / name).with_suffix(".txt").write_text(f"Red {n}.")
        return folder
    return {"CSV": written_csv, "COCO": written_coco, "imagefolder": written_imagefolder}[request.param](folder, names)


def options(source, target) -> PrepareOptions:
    return PrepareOptions(source=str(source), to=str(target), split="3,1,0", shard_size=30_000, workers=1)


def content(folder):
    """Without the report, which names the folder."""
    return {name: data for name, data in files_of(folder).items() if not name.endswith("report.json")}


def killed_at(moment, source, target):
    """Prepare in a process of its own, killed when it opens, renames or removes something of the target for the `moment`-th time."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.truncate") and str(arguments[0]).startswith(str(target)):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    prepare.run(options(source, target))
    os._exit(0)


def test_a_prepare_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(source, tmp_path):
    prepare.run(options(source, tmp_path / "whole"))
    context, chosen, kills = multiprocessing.get_context("fork"), random.Random(str(source.name)), 0
    while kills < KILLS:
        process = context.Process(target=killed_at, args=(chosen.randint(1, 12), source, tmp_path / "data"))
        process.start()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "data").exists()
        kills += 1
    assert kills
    if not (tmp_path / "data").exists():
        prepare.run(options(source, tmp_path / "data"))
    assert content(tmp_path / "data") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "whole"]


@pytest.mark.parametrize("where", ["shard", "spool"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(source, tmp_path, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        if where == "shard":
            disk.setattr(copying, "write_at", full)
        else:
            disk.setattr(byte_ranges.Spool, "add", full)
        try:
            with pytest.raises(WorkError, match="the disk is full") as failed:
                prepare.run(options(source, tmp_path / "data"))
        except pytest.fail.Exception:
            # only records that hold their pictures need the spool
            assert where == "spool" and source.suffix not in (".parquet", ".arrow")
            return
    assert "\n" not in str(failed.value)
    assert not list(tmp_path.iterdir())
    prepare.run(options(source, tmp_path / "data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
