"""What `prepare` writes is an Energon dataset: Energon's own loader reads every sample of it, by the index it would make itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3

import pytest

from qwen3vl_core.data.shards import ShardSplit
from tests.data import energon_loader, samples


@pytest.mark.parametrize("split", ["train", "val"])
def test_energon_gives_every_samples_files_as_our_reader_does(dataset, split):
    ours = ShardSplit(dataset, split)
    mine = dict(ours.read(number) for number in range(len(ours)))
    theirs = [(each.__key__.rpartition("/")[2], each.parts) for each in energon_loader.loader(dataset, split, repeat=False)]
    assert len(theirs) == len(mine) == json.loads((dataset / "report.json").read_text())["splits"][split]["samples"]
    assert dict(theirs) == mine


def tables(index):
    """Everything in an SQLite file: what was declared, and the rows in their order."""
    with contextlib.closing(sqlite3.connect(index)) as database:
        declared = database.execute("SELECT name, tbl_name, sql FROM sqlite_master ORDER BY rowid").fetchall()
        rows = {name: database.execute(f"SELECT rowid, * FROM {name}").fetchall() for name in ("samples", "sample_parts")}
    return declared, rows


@pytest.mark.parametrize("shards", ["one", "many"])
def test_the_index_is_the_one_that_energon_makes_of_the_shards(tmp_path, shards):
    (tmp_path / "walk").mkdir()
    for number in range(2):
        (tmp_path / "walk" / f"{number}.png").write_bytes(samples.encoded(samples.picture(number), "PNG"))
    extra = [
        samples.record(90, ["pictures/0.jpg", "pictures/1.png"]),
        {"messages": [{"role": "user", "content": "<video>"}, {"role": "assistant", "content": "A walk."}], "videos": ["walk"]},
    ]
    size = 50_000 if shards == "many" else 500_000_000
    ours = samples.dataset(tmp_path, 30, split="8,2,0" if shards == "many" else "1,0,0", extra=extra, shard_size=size)
    names = json.loads((ours / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert (len(names) > 11) == (shards == "many")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in names:
        shutil.copy(ours / name, theirs)
    samples.energon_index(theirs, list(names))
    assert tables(ours / ".nv-meta" / "index.sqlite") == tables(theirs / ".nv-meta" / "index.sqlite")
    for file in [*(f"{name}.idx" for name in names), ".nv-meta/split.yaml"]:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    mine, made = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (ours, theirs))
    assert mine["shard_counts"] == made["shard_counts"] and list(mine) == list(made)
    assert sorted(path.name for path in (ours / ".nv-meta").iterdir()) == sorted(path.name for path in (theirs / ".nv-meta").iterdir())
