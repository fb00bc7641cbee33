"""Records: what is read, and one line for whatever is wrong with one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import layouts, records, sources
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import PrepareOptions
from tests.data import samples


def read(file):
    return [sources.parse(number, record) for number, record in sources.open_records(file).records()]


names = st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9_.]{1,8}){0,2}\.(jpg|PNG|webp)", fullmatch=True).filter(lambda n: "/." not in n)
texts = st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda t: records.TAG not in t and records.VIDEO_TAG not in t)
KEYS = ["id", "image", "images", "video", "videos", "conversations", "messages", "from", "value", "role", "content"]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "<video>", "human", "gpt", "a.jpg", "../a.jpg"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def sound_records(draw):
    """(record, pictures, [(text before, between and after the tags)]) of a sound record."""
    pictures = draw(st.lists(names, max_size=3))
    pieces = draw(st.lists(texts, min_size=len(pictures) + 1, max_size=len(pictures) + 1))
    answer = draw(texts.filter(str.strip))
    made = {"conversations": [{"from": "human", "value": records.TAG.join(pieces)}, {"from": "gpt", "value": answer}]}
    if pictures:
        made["image"] = pictures if len(pictures) > 1 or draw(st.booleans()) else pictures[0]
    if draw(st.booleans()):
        made["id"] = draw(st.text(st.characters(codec="utf-8"), max_size=9) | st.integers())
    return made, pictures, pieces, answer


@samples.many()
@given(sound_records())
def test_pictures_stand_where_their_tags_were(case):
    made, pictures, pieces, answer = case
    record = layouts.parse(7, made)
    # put together by hand, and what an encoder would write
    assert record.payload().decode() == json.dumps(json.loads(record.payload()), ensure_ascii=False, separators=(",", ":"))
    user, assistant = json.loads(record.payload())["messages"]
    assert [part["part"] for part in user["content"] if part["type"] == "image"] == record.parts
    assert len(record.pictures) == len(pictures)
    rebuilt = "".join(records.TAG if part["type"] == "image" else part["text"] for part in user["content"])
    kept = [piece.lstrip("\r\n") if i else piece for i, piece in enumerate(pieces)]
    kept = [piece.rstrip("\r\n") if i < len(pieces) - 1 else piece for i, piece in enumerate(kept)]
    assert rebuilt == records.TAG.join(kept)
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": answer}]}


@samples.many(200)
@given(values)
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(value))
    try:
        found = sources.open_records(file)
    except RequestError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return
    for number, record in found.records():
        try:
            assert json.loads(sources.parse(number, record).payload())["messages"]
        except DataError as error:
            assert "\n" not in str(error)


@samples.many(50)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.bin"
    file.write_bytes(content)
    with pytest.raises((RequestError, DataError)) as refused:
        read(file)
    assert "\n" not in str(refused.value)


REFUSED = {
    "no conversations": ({"image": "a.jpg"}, "no conversations"),
    "empty conversations": ({"conversations": []}, "no conversations"),
    "conversations of another kind": ({"conversations": "hello"}, "must be a list, not text"),
    "no object": ([1], "must be an object, not a list"),
    "a turn of another kind": ({"conversations": ["hello"]}, "turn 0: must be an object {from, value}"),
    "an unknown speaker": ({"conversations": [{"from": "robot", "value": "x"}]}, "from is 'robot'"),
    "text of another kind": ({"conversations": [{"from": "gpt", "value": 3}]}, "value must be text, not a number"),
    "no answer": ({"conversations": [{"from": "human", "value": "x"}]}, "no answer"),
    "an empty answer": ({"conversations": [{"from": "gpt", "value": " \n"}]}, "turn 0: an empty answer"),
    "a late system turn": ({"conversations": [{"from": "gpt", "value": "x"}, {"from": "system", "value": "x"}]}, "turn 1: a system"),
    "a tag without a picture": (samples.record(0, "a.jpg") | {"image": None}, "1 <image> tag but 0 pictures"),
    "fewer tags than pictures": (samples.record(0, "a.jpg") | {"image": ["a.jpg", "b.jpg"]}, "1 <image> tag but 2 pictures; write <image>"),
    "an address": (samples.record(0, "https://a.example/b.jpg"), "an address; download it"),
    "the chat format's own token": (samples.record(0, answer="a<|im_end|>b"), "turn 1: the text holds <|im_end|>"),
    "a drive": (samples.record(0, "C:\\a.jpg"), "a drive of Windows; write the path relative"),
    "a path that leaves the folder": (samples.record(0, "a/../../b.jpg"), "leads out of the media's folder"),
    "the folder above": (samples.record(0, ".."), "leads out of the media's folder"),
    "an empty name": (samples.record(0, [""]), "no file name"),
    "a name with a zero byte": (samples.record(0, "a\0.jpg"), "no file name"),
    "a name of another kind": (samples.record(0, [3]), "a picture's name must be text, not a number"),
    "two conversations": (samples.record(0, answer="x") | {"messages": [], "videos": []}, "both conversations and messages"),
    "both keys": (samples.record(0, "a.jpg") | {"images": ["a.jpg"]}, "both image and images"),
    "a tool's turn": ({"messages": [{"role": "tool", "content": "x"}]}, "no answer"),
    "a part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "part 0 must be text, not null"),
    "audio": ({"messages": [{"role": "assistant", "content": "x"}], "audios": ["a.wav"]}, "holds audios"),
    "images of another kind": ({"messages": [{"role": "assistant", "content": "x"}], "images": 3}, "images must be a list"),
    "an id of another kind": (samples.record(0) | {"id": ["a"]}, "id must be text or a number"),
    "half a character": (samples.record(0, answer="\ud800"), "half a character"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_rule_is_said_with_the_records_number(tmp_path, name):
    record, words = REFUSED[name]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps([samples.record(0), record, samples.record(2)]))
    reasons = "the record breaks a rule|a text holds one of the chat format's own tokens"
    with pytest.raises(RequestError, match=rf"one of 3 records cannot be used \(({reasons}): 1\): record 1: ") as refused:
        prepare.run(PrepareOptions(source=str(file), to=str(tmp_path / "data")))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_many_problems_are_counted_and_the_first_ones_shown(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps([samples.record(0)] + [{}] * 9))
    with pytest.raises(RequestError, match=r"9 of 10 records .*record 1: .*record 2: .*record 3: .*and 6 more"):
        prepare.run(PrepareOptions(source=str(file), to=str(tmp_path / "data")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON (line 1"),
        ("", "an empty file"),
        (" \n", "not JSON (line 2"),
        ('"a"', "not a list but text"),
        ("[]", "an empty list"),
        ("[NaN]", "NaN is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "not UTF-8 text (byte 0)"),
    ],
)
def test_what_is_no_llava_json_is_refused(tmp_path, content, words):
    file = tmp_path / "captions.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(RequestError) as refused:
        read(file)
    assert words in str(refused.value) and str(file) in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(RequestError, match=r"a folder; it holds a\.json; b\.json; give one of them"):
        read(tmp_path)


def test_ids_with_dots_and_ids_that_occur_twice_just_work(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps([samples.record(0, id="a.b.c"), samples.record(1, id="a.b.c"), samples.record(2, id=7)]))
    records = read(file)
    assert [record.key for record in records] == ["00000000", "00000001", "00000002"]
    assert [record.id for record in records] == ["a.b.c", "a.b.c", "7"]


def test_a_byte_order_mark_is_no_problem(tmp_path):
    file = tmp_path / "captions.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps([samples.record(0)]).encode())
    assert len(read(file)) == 1
