"""ShareGPT and JSON Lines, videos as files and as folders of frames: found by looking, stored as the loader reads them."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwen3vl_core import limits
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.picture_formats import FORMATS
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.prepare import media_check
from qwen3vl_core.data.sample_encoder import messages_of
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import PrepareOptions
from tests.data import samples


def video(frames: int = 8, size: int = 64) -> bytes:
    """An MP4 of so many frames at 4 a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((size, size, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def frames(folder: Path, count: int, fps: str | None = None, suffix: str = "jpg") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"frame{number + 1}.{suffix}").write_bytes(samples.encoded(samples.picture(number, 64, 64)))
    if fps is not None:
        (folder / "fps").write_text(fps)
    return folder


def prepared(source: Path, **options) -> dict:
    to = source.parent / "data"
    prepare.run(PrepareOptions(source=str(source), to=str(to), **({"split": "1,0,0"} | options)))
    return json.loads((to / "report.json").read_text())


def stored(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> part -> content, read by tarfile."""
    made: dict[str, dict[str, bytes]] = {}
    for archive in folder.glob("*.tar"):
        with tarfile.open(archive) as opened:
            for entry in opened:
                key, _, part = entry.name.partition(".")
                made.setdefault(key, {})[part] = opened.extractfile(entry).read()
    return made


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
TURNS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "<image>\nand <video>, then <image>?"},
    {"from": "gpt", "value": "Yes."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Sure. <image> is a tag."},
]
ROLE = {"system": "system", "human": "user", "gpt": "assistant"}


def shared(style: str) -> dict:
    media = {"images": ["a.jpg", "b.png"], "videos": ["clip.mp4"]}
    if style == "conversations":
        return {"conversations": TURNS, **media}
    turns = [{"role": ROLE[turn["from"]], "content": turn["value"]} for turn in TURNS]
    if style == "system":
        return {"system": turns[0]["content"], "messages": turns[1:], **media}
    return {"messages": turns, **media}


@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
@pytest.mark.parametrize("style", ["conversations", "messages", "system"])
def test_sharegpt_is_found_out_and_its_media_stand_where_their_tags_were(tmp_path, style, lines):
    (tmp_path / "a.jpg").write_bytes(samples.encoded(samples.picture(1)))
    (tmp_path / "b.png").write_bytes(samples.encoded(samples.picture(2), "PNG"))
    (tmp_path / "clip.mp4").write_bytes(video())
    source = tmp_path / "any.data"
    record = shared(style)
    source.write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n" if lines else json.dumps([record, record]))
    report = prepared(source)
    assert report["kind"] == ("ShareGPT JSON Lines" if lines else "ShareGPT JSON")
    assert [report[what] for what in ("samples", "pictures", "videos", "turns")] == [2, 4, 2, 10]
    parts = stored(tmp_path / "data")["00000001"]
    assert json.loads(parts["json"])["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "part": "img0.jpg"},
                {"type": "text", "text": "and "},
                {"type": "video", "part": "vid0.mp4"},
                {"type": "text", "text": ", then "},
                {"type": "image", "part": "img1.png"},
                {"type": "text", "text": "?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Sure. <image> is a tag."}]},
    ]
    assert parts["vid0.mp4"] == (tmp_path / "clip.mp4").read_bytes()
    assert parts["img1.png"] == (tmp_path / "b.png").read_bytes()


def test_a_folder_of_frames_is_stored_in_the_order_of_time(tmp_path):
    frames(tmp_path / "walk", 11, "1.5\n")
    frames(tmp_path / "run", 2)
    source = tmp_path / "all.jsonl"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A walk."}]
    rows = [{"id": name, "video": name, "conversations": turns} for name in ("walk", "run")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepared(source)["kind"] == "LLaVA JSON Lines"
    walk, run = (stored(tmp_path / "data")[key] for key in ("00000000", "00000001"))
    part = json.loads(walk["json"])["messages"][0]["content"][0]
    assert part == {"type": "video", "part": "vid0", "frames": [f"vid0.{n:05d}.jpg" for n in range(11)], "fps": 1.5}
    # frame2 comes before frame10
    assert [walk[name] for name in part["frames"]] == [(tmp_path / f"walk/frame{n}.jpg").read_bytes() for n in range(1, 12)]
    assert json.loads(run["json"])["messages"][0]["content"][0]["fps"] == 2.0


def test_the_loaders_processor_reads_both_kinds_of_videos(tmp_path, processor):
    (tmp_path / "clip.mp4").write_bytes(video())
    frames(tmp_path / "walk", 4, "2")
    turns = [{"role": "user", "content": "<video><video>"}, {"role": "assistant", "content": "Two videos."}]
    source = tmp_path / "all.json"
    source.write_text(json.dumps([{"messages": turns, "videos": ["clip.mp4", "walk"]}]))
    report = prepared(source, model=str(samples.CHECKPOINT))
    _, parts = ShardSplit(tmp_path / "data", "train").read(0)
    encoded = processor.encode(messages_of(parts), parts)
    assert report["tokens"]["total"] == report["tokens"]["longest"] == len(encoded.ids)
    assert report["tokens"]["trained"] == int((encoded.labels >= 0).sum()) > 0
    assert report["tokens"]["unusable"] == {}


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_the_list_is_said_with_its_key(tmp_path, indent):
    source = tmp_path / "all.json"
    source.write_text(json.dumps({"version": 1, "data": [samples.record(0)]}, indent=indent))
    with pytest.raises(RequestError, match=r"one object that holds the records as 'data'; write that list alone: jq \.data all\.json"):
        prepared(source)


def test_a_bad_line_is_one_refused_record(tmp_path):
    source = tmp_path / "all.jsonl"
    good = json.dumps(samples.record(0)).encode()
    source.write_bytes(good + b"\n{\n\xff\n" + good + b"\n[1]\n" + good)
    with pytest.raises(RequestError, match=r"3 of 6 records .*record 1: line 2: not JSON .*record 2: line 3: not UTF-8.*record 4"):
        prepared(source)
    report = prepared(source, skip_missing=True)
    assert report["samples"] == 3 and report["refused"] == {"bad_record": 3}


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    source = tmp_path / "all.jsonl"
    source.write_text(json.dumps(samples.record(0)) + "\n" + json.dumps(samples.record(1, answer="long " * 1000)))
    monkeypatch.setattr(limits, "JSON_LINE", 4000)
    with pytest.raises(RequestError, match="line 2 is over"):
        prepared(source)


def _cut(folder: Path) -> str:
    (folder / "clip.mp4").write_bytes(video()[:-20])
    return "clip.mp4"


def _text(folder: Path) -> str:
    (folder / "clip.mp4").write_text("no video")
    return "clip.mp4"


def _playlist(folder: Path) -> str:
    (folder / "clip.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    return "clip.mp4"


def _uneven(folder: Path) -> str:
    frames(folder / "walk", 3)
    (folder / "walk/frame2.jpg").write_bytes(samples.encoded(samples.picture(0, 96, 64)))
    return "walk"


def _empty(folder: Path) -> str:
    (folder / "walk").mkdir()
    return "walk"


def _wrong_rate(folder: Path) -> str:
    frames(folder / "walk", 2, "fast")
    return "walk"


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (lambda folder: "none.mp4", "missing_video", "no such file"),
        (_cut, "broken_video", ""),
        (_text, "broken_video", ""),
        (_playlist, "broken_video", ""),
        (_uneven, "broken_video", "frame2.jpg is of another size than frame1.jpg"),
        (_empty, "broken_video", "no frame"),
        (_wrong_rate, "broken_video", "frames of a second"),
    ],
    ids=["missing", "cut off", "text", "playlist", "uneven frames", "no frames", "no rate"],
)
def test_a_video_that_cannot_be_read_is_refused_by_name(tmp_path, make, reason, words):
    name = make(tmp_path)
    turns = [{"role": "user", "content": "<video>"}, {"role": "assistant", "content": "A video."}]
    source = tmp_path / "all.json"
    source.write_text(json.dumps([{"messages": turns, "videos": [name]}, samples.record(1)]))
    report = prepared(source, skip_missing=True)
    assert report["samples"] == 1 and report["refused"] == {reason: 1}
    row = json.loads((tmp_path / "data" / "refused.jsonl").read_text())
    assert words in row["detail"] and name.split(".")[0] in row["detail"]


def test_a_pipe_among_the_pictures_is_no_file_and_nobody_waits(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="not a file"):
        media_check.check_file(tmp_path / "a.jpg", "header")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"dpi": (72, 72)}, {"exif": EXIF}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_pictures_need_no_closer_look(format, options, mode):
    data = samples.encoded(samples.picture(3, 80, 48, mode), format, **options)
    assert media_check.plain_picture(data[:65536], data[-64:]) == (48, 80)


@samples.many(300)
@given(
    st.sampled_from(["JPEG", "PNG"]),
    st.sampled_from(["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"]),
    st.sampled_from([{}, {"progressive": True}, {"optimize": True}, {"exif": EXIF}, {"comment": b"x" * 40}, {"qtables": "web_low"}]),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.lists(st.tuples(st.integers(0, 700), st.integers(1, 255)), max_size=3),
)
def test_pillow_says_the_same_of_what_needs_no_closer_look(format, mode, options, size, changes):
    try:
        data = bytearray(samples.encoded(samples.picture(3, *size).convert(mode), format, **options))
    except (OSError, ValueError):
        return  # a mode that this format does not have
    for at, change in changes:
        data[at % len(data)] ^= change
    data = bytes(data)
    for head in (data[:400], data):
        found = media_check.plain_picture(head, data[-64:])
        if found is not None:
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
                assert found == (image.height, image.width) and image.format in (format, "MPO")
