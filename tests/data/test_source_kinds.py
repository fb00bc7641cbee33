"""Files and folders of records, found out by looking: tables, shards of others, compressed and encoded text, other names."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import json_files, sources
from qwen3vl_core.data.inspect import command as inspect_data
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.data.text_files import TextFile
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import InspectOptions, PrepareOptions
from tests.data import samples

JPEG, PNG = samples.encoded(samples.picture(1)), samples.encoded(samples.picture(2), "PNG")
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
RECORD = {"image": "a.jpg", "conversations": TURNS}


def prepared(source: Path, **options) -> list[tuple[str, str, dict[str, bytes]]]:
    """(question, answer, media) of each sample in the source's order."""
    to = source.parent / "prepared"
    prepare.run(PrepareOptions(**({"source": str(source), "to": str(to), "split": "1,0,0", "overwrite": True} | options)))
    split = ShardSplit(to, "train")
    rows = []
    for _, parts in sorted(split.read(number) for number in range(len(split))):
        texts = ["".join(part.get("text", "") for part in m["content"]) for m in json.loads(parts.pop("json"))["messages"]]
        rows.append((texts[0], texts[-1], parts))
    return rows


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "b.png").write_bytes(PNG)
    return folder


def refused(source: Path, **options) -> str:
    with pytest.raises(RequestError) as error:
        prepared(source, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_with_a_header_is_captions(tmp_path, delimiter):
    source = pictures(tmp_path) / "pairs.csv"
    source.write_text(f'image{delimiter}caption\na.jpg{delimiter}A dog\nb.png{delimiter}"One{delimiter} two"\n')
    assert prepared(source) == [
        ("Describe this image.", "A dog", {"img0.jpg": JPEG}),
        ("Describe this image.", f"One{delimiter} two", {"img0.png": PNG}),
    ]


def test_a_table_without_a_header_says_how_to_name_its_columns(tmp_path):
    source = pictures(tmp_path) / "pairs.tsv"
    source.write_text("A dog\ta.jpg\n")
    assert "--columns image=2,caption=1" in refused(source)
    assert prepared(source, columns="image=2,caption=1") == [("Describe this image.", "A dog", {"img0.jpg": JPEG})]


def test_columns_of_other_names_are_one_option_away(tmp_path):
    source = pictures(tmp_path) / "all.jsonl"
    source.write_text(json.dumps({"photo_of_it": "a.jpg", "headline": "A dog"}) + "\n")
    assert prepared(source, columns="image=photo_of_it,caption=headline")[0][1:] == ("A dog", {"img0.jpg": JPEG})
    assert "no column foto in its first record; there are photo_of_it; headline" in refused(source, columns="image=foto")
    assert "must be NAME=COLUMN" in refused(source, columns="image")


def write_table(path: Path, rows: list[dict], kind: str) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        return path
    with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_tables_with_pictures_as_bytes_are_read(tmp_path, kind):
    rows = [{"image": {"bytes": data, "path": None}, "conversations": TURNS, "made": None} for data in (JPEG, PNG, JPEG)]
    source = write_table(tmp_path / f"all.{'parquet' if kind == 'parquet' else 'arrow'}", rows, kind)
    assert [media for _, _, media in prepared(source, workers=2)] == [{"img0.jpg": JPEG}, {"img0.png": PNG}, {"img0.jpg": JPEG}]
    inspect_data.run(InspectOptions(path=str(source)))


def test_a_repository_as_it_is_downloaded_gives_its_training_files(tmp_path, capsys):
    rows = [{"image": {"bytes": JPEG, "path": "a.jpg"}, "text": "A dog"}]
    for split in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_table(tmp_path / f"repo/data/{split}.parquet", rows, "parquet")
    (tmp_path / "repo/README.md").write_text("---\n")
    (tmp_path / "repo/.cache").mkdir()
    assert len(prepared(tmp_path / "repo")) == 2
    assert "the files of test are not read, those of training are" in capsys.readouterr().out
    write_table(tmp_path / "several/first/x.parquet", rows, "parquet")
    write_table(tmp_path / "several/second/x.parquet", rows, "parquet")
    assert "several subsets (first; second); give one of these folders" in refused(tmp_path / "several")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_an_imagefolder_is_read(tmp_path, name):
    folder = pictures(tmp_path / "set/train")
    rows = {"metadata.jsonl": '{"file_name": "a.jpg", "text": "A dog"}\n', "metadata.csv": "file_name,text\na.jpg,A dog\n"}
    (folder / name).write_text(rows[name])
    assert prepared(tmp_path / "set") == [("Describe this image.", "A dog", {"img0.jpg": JPEG})]


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


SHARDS = {
    "img2dataset": [("0.jpg", JPEG), ("0.txt", b"A dog."), ("0.json", json.dumps({"caption": "A dog.", "url": "http://x",
        "width": 3}).encode())],
    "Pai": [("0.jpg", JPEG), ("0.json", json.dumps(TURNS).encode())],
    "LLaVA beside its picture": [("a/0.jpg", JPEG), ("a/0.json", json.dumps(RECORD | {"image": "old/name.jpg"}).encode())],
    "a folder of samples": [("0.json", json.dumps({"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant",
        "content": "A dog."}]}).encode()), ("0.jpeg", JPEG)],
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_shards_of_others_are_read_where_they_lie(tmp_path, name):
    archive(tmp_path / "wds/part-0.tar", SHARDS[name])
    ((question, answer, media),) = prepared(tmp_path / "wds")
    assert answer == "A dog." and list(media.values()) == [JPEG] and question in ("What?", "Describe this image.")


def test_a_dataset_with_another_trainers_index_is_a_source(tmp_path, capsys):
    archive(tmp_path / "wds/part-0.tar", SHARDS["Pai"])
    (tmp_path / "wds/.nv-meta").mkdir()
    (tmp_path / "wds/.nv-meta/dataset.yaml").write_text("__module__: megatron.energon\n__class__: VQAWebdataset\n")
    inspect_data.run(InspectOptions(path=str(tmp_path / "wds")))
    assert "ShareGPT WebDataset shards, not prepared, 1 sample" in capsys.readouterr().out


def test_our_own_shards_can_be_prepared_again(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    source = samples.write_source(first, 3, text_only=1)
    once = prepared(source)
    copied = tmp_path / "shards"
    copied.mkdir()
    for file in (first / "prepared").glob("*.tar"):
        (copied / file.name).write_bytes(file.read_bytes())
    assert sorted(answer for _, answer, _ in prepared(copied)) == sorted(answer for _, answer, _ in once)


def test_a_pickle_among_the_members_is_not_opened(tmp_path):
    archive(tmp_path / "wds/0.tar", [("0.json", b"[]"), ("0.jpgs", b"\x80\x04.")])
    assert "could run code" in refused(tmp_path / "wds")


def test_cocos_captions_are_read_and_its_boxes_refused(tmp_path):
    source = pictures(tmp_path) / "captions.json"
    coco = {
        "info": {},
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A dog.\n"}, {"id": 2, "image_id": 7, "caption": "It runs."}],
    }
    source.write_text(json.dumps(coco, indent=1))
    assert [answer for _, answer, _ in prepared(source)] == ["A dog.", "It runs."]
    coco["annotations"] = [{"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4]}]
    source.write_text(json.dumps(coco))
    assert "without captions" in refused(source)


INFO = {
    "mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk", "images": "pics"},
             "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"}},
    "theirs": {"file_name": "theirs.json", "columns": {"prompt": "ask", "response": "say", "images": "pics"}},
    "pairs": {"file_name": "pairs.json", "ranking": True},
}  # fmt: skip


def test_a_dataset_info_names_columns_and_tags(tmp_path):
    pictures(tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO, indent=2))
    (tmp_path / "mine.json").write_text(
        json.dumps([{"talk": [{"who": "Q", "says": "<image>What?"}, {"who": "A", "says": "A dog."}], "pics": ["a.jpg"]}])
    )
    (tmp_path / "theirs.json").write_text(json.dumps([{"ask": "<image>What?", "say": "A dog.", "pics": ["a.jpg"]}]))
    wanted = [("What?", "A dog.", {"img0.jpg": JPEG})]
    info = tmp_path / "dataset_info.json"
    assert prepared(info, dataset="mine") == prepared(info, dataset="theirs") == prepared(tmp_path / "mine.json") == wanted
    assert "names 3 datasets; choose one by --dataset: mine; theirs; pairs" in refused(info)
    for name in ("a\0b", "\ud800.json"):
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        (bad / "dataset_info.json").write_text(json.dumps({"one": {"file_name": name}}))
        refused(bad / "dataset_info.json")
    assert "preferences" in refused(info, dataset="pairs") and "no such dataset" in refused(info, dataset="x")


TEXT = (json.dumps(RECORD, ensure_ascii=False) + "\n").replace("A dog.", "犬 é")
ENCODED = {
    "gzip": ("a.jsonl.gz", gzip.compress(TEXT.encode())), "bzip2": ("a.jsonl.bz2", bz2.compress(TEXT.encode())), "xz": ("a.jsonl.xz",
        lzma.compress(TEXT.encode())),
    "UTF-16 with a mark": ("a.jsonl", b"\xff\xfe" + TEXT.encode("utf-16-le")), "UTF-16 big-endian": ("a.jsonl",
        b"\xfe\xff" + TEXT.encode("utf-16-be")),
    "UTF-16 without one": ("a.json", json.dumps([json.loads(TEXT)], ensure_ascii=False, indent=1).encode("utf-16-le")),
    "over several lines": ("a.json", json.dumps(json.loads(TEXT), indent=2).encode()),
    "one after another": ("a.json", (json.dumps(json.loads(TEXT), indent=2) * 2).encode()),
    "a name that says nothing": ("a.txt", TEXT.encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
def test_text_is_read_whatever_its_compression_and_encoding(tmp_path, name):
    file, content = ENCODED[name]
    source = pictures(tmp_path) / file
    source.write_bytes(content)
    assert {row[:2] for row in prepared(source)} == {("What?", "犬 é")}


NAMED = {
    "nothing": (b"", "an empty file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "of Git LFS, not the file itself; fetch it: git lfs pull"),
    "zstd": (b"\x28\xb5\x2f\xfd1234", "zstd -d a.json"), "zip": (b"PK\x03\x04", "a zip archive; unpack it"),
        "pickle": (b"\x80\x04\x95abc", "could run code"),
    "GBK": (TEXT.replace("犬 é", "一个圆。这是什么？").encode("gbk"), "it may be GB18030: iconv -f GB18030 -t UTF-8"),
    "UTF-32": (TEXT.encode("utf-32"), "UTF-32 text; convert it"),
    "a list that is cut off": (json.dumps([RECORD] * 3).encode()[:-40], "not JSON"),
    "gzip that is cut off": (gzip.compress(TEXT.encode() * 50)[:-12], "damaged or cut off"),
    "parquet that is cut off": (b"PAR1abcdef", "not a whole parquet file"),
    "a list of wrapped records": (json.dumps({"data": [RECORD]}).encode(), "jq .data a.json"),
    "a web page": (b"<html>404</html>", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path, name):
    content, words = NAMED[name]
    (tmp_path / "a.json").write_bytes(content)
    assert words in refused(tmp_path / "a.json")


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                      max_leaves=8)  # fmt: skip


@samples.many(200)
@given(st.lists(values, min_size=1, max_size=6), st.sampled_from([None, 1]), st.integers(1, 40), st.booleans())
def test_a_list_is_streamed_as_it_is_loaded(tmp_path_factory, loaded, indent, block, ascii_only):
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_text(json.dumps(loaded, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    file = TextFile(path)
    blocks = file.blocks
    file.blocks = lambda: blocks(block)
    records = json_files.JsonRecords(file)
    assert list(records._streamed()) == loaded


def test_a_long_list_takes_the_memory_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "LOADED_AT_ONCE", 1000)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([RECORD | {"id": str(number)} for number in range(60_000)]))
    tracemalloc.start()
    records = sources.open_records(path)
    assert sum(1 for _ in records.records()) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size
