"""Layouts that people have: what is trained is what the layout's own documentation says, and no key is lost in silence."""

from __future__ import annotations

import copy
import json
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import layouts, plain_records, turns
from qwen3vl_core.data.errors import DataError
from tests.data import samples
from tests.data.layout_cases import ANSWER, ASK, BARE, DATA_URL, FRAMES, LLAVA, READ, USER, WANTED, bot, chat, messages, text, user


@pytest.mark.parametrize("name", READ)
def test_a_layout_is_read_as_its_documentation_says(name):
    record, expected = READ[name]
    assert messages(record) == expected


ALIASES = ["image_path", "img", "imgs", "image_file", "Image", "pictures", "photo", "image-path", "img_paths", "imageUrl", "IMAGES"]


@pytest.mark.parametrize("key", ALIASES)
def test_pictures_are_found_whatever_their_key_is_called(key):
    assert messages({key: "a.jpg", "conversations": LLAVA["conversations"]}) == WANTED


OBJECTS = {"ref": ["dog"], "bbox": [[1, 2, 30, 40]]}
REFUSED = {
    "a tag in an answer": (chat(ASK, bot("<image> it is"), images=["a.jpg"]),
        "turn 1: a picture's or video's tag in a turn of the assistant"),
    "a preference": ({"prompt": "A", "chosen": "B", "rejected": "C"}, "holds chosen: a preference between answers"),
    "an answer that lost": ({"messages": [USER, ANSWER], "images": ["a.jpg"], "rejected_response": "x"}, "holds rejected_response"),
    "a rating": ({"messages": [ASK, ANSWER], "label": False}, "a rating of the answer"),
    "audio": (LLAVA | {"audio": "a.wav"}, "holds audio; text, images and videos are read"),
    "audio under another key": (LLAVA | {"speech_file": "a.wav"}, "holds speech_file"),
    "a sound under an unknown key": (LLAVA | {"take": "a.wav"}, "take names a file of audio"),
    "a picture under an unknown key": ({"conversations": BARE, "crop": "a.jpg"},
        "crop names a file of image but is no key that is read; name it by --columns image=crop, or remove the key"),
    "half a weight": (chat(ASK, ANSWER | {"weight": 0.5}), "turn 1: weight is 0.5; must be true or false"),
    "a mask of another kind": (chat(ASK, ANSWER | {"masked": True}), "turn 1: masked is not read; write loss"),
    "nothing to train": (chat(ASK, ANSWER | {"loss": False}), "all of them have loss: false"),
    "a weight of the record": (LLAVA | {"weight": 0.1}, "weight of a record is 0.1"),
    "boxes without objects": (chat(ASK, bot("<bbox>")), "holds <bbox>, but the record has no objects"),
    "more boxes than tags": (LLAVA | {"objects": OBJECTS}, "objects has 1 ref and 1 bbox, the text 0"),
    "a placeholder of another format": (LLAVA | {"conversations": [{"from": "human", "value": "<image><ImageHere>?"}, {"from": "gpt",
        "value": "x"}]}, "holds <ImageHere>"),
    "numbers that do not fit": ({"images": ["a.jpg"], "messages": [user("<image_2>?"), ANSWER]}, "tags with the numbers 2 for 1 pictures"),
    "a picture in an answer": (chat(ASK, {"role": "assistant", "content": [{"type": "image", "image": "a.jpg"}]}),
        "in a turn of the assistant"),
    "audio among the parts": (chat(user({"type": "input_audio", "input_audio": {}}), ANSWER), "part 0: is of type input_audio"),
    "a data URL that is cut off": (LLAVA | {"image": DATA_URL[:-300] + "*"}, "cannot be decoded; it may be cut off"),
    "sizes of one picture": (chat(user({"type": "image", "image": "a.jpg", "max_pixels": 9}), ANSWER),
        "max_pixels of one picture is not read"),
    "arguments that are no JSON": (chat(ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
        "the arguments of f must be JSON"),
    "two keys of pictures": ({"image": "a.jpg", "img": "b.jpg", "conversations": BARE}, "both image and img; keep one"),
    "a start without sense": ({"video": "a.mp4", "video_start": 5, "video_end": 2, "conversations": BARE},
        "the end must be after the start"),
    "several captions": ({"image": "a.jpg", "captions": ["x", "y"]}, "2 captions for one picture; write one record for each"),
    "an address": ({"image": "http://a.example/b.jpg", "caption": "x"}, "an address; download it"),
    "frames": (LLAVA | {"frames": FRAMES}, "give the frames as videos"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(name):
    record, words = REFUSED[name]
    with pytest.raises(DataError) as refused:
        layouts.parse(0, record)
    assert words in refused.value.detail and len(str(refused.value)) < 300 and "\n" not in str(refused.value)


key_names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
scalars = (
    st.integers(2, 99) | st.text("abc d", min_size=1, max_size=8) | st.just({"a": 1}) | st.lists(st.integers(2, 9), min_size=1, max_size=2)
)


@samples.many(500)
@given(st.sampled_from([name for name in READ]), key_names, scalars, st.booleans())
def test_an_unknown_key_is_noted_or_refused_and_changes_nothing_else(name, key, value, beside_turn):
    record, expected = READ[name]
    record = copy.deepcopy(record)
    if key in record or any(isinstance(each, dict) for each in record.values()):
        return
    conversation = next((record[k] for k in ("messages", "conversations") if k in record), None)
    if beside_turn and conversation:
        if key in conversation[-1]:
            return
        conversation[-1][key] = value
    else:
        record[key] = value
    try:
        read = layouts.parse(0, record)
    except DataError as error:
        assert key in str(error) or "both" in str(error) or "keep one" in str(error) or "tags" in str(error) or "tag " in str(error)
        return
    if json.loads(read.payload())["messages"] == expected:
        assert key in layouts.HARMLESS | turns.HARMLESS or any(key in text for _, text in read.notes)
    else:
        # a key that is read, and what is trained has changed as it says
        assert key in ("system", "history", "tools", "thought", "think", "loss", "train", "fps", "start", "end") or turns.media_key(key)


plain_texts = st.text('ab é犬{}[]"\\', min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw):
    """[(role, [text or (picture,)], trained)]: what is meant, before any layout writes it down."""
    meant, picture = [], 0
    if draw(st.booleans()):
        meant.append(("system", [draw(plain_texts)], False))
    for _ in range(draw(st.integers(1, 3))):
        question: list = []
        for _ in range(draw(st.integers(0, 2))):
            question.append((f"{picture}.jpg",))
            picture += 1
            if draw(st.booleans()):
                question.append(draw(plain_texts))
        if not question or not isinstance(question[-1], str):
            question.append(draw(plain_texts))
        meant.append(("user", question, False))
        meant.append(("assistant", [draw(plain_texts)], draw(st.booleans())))
    meant[-1] = ("assistant", meant[-1][1], True)
    return meant


def written(meant, layout):
    """The conversation in a layout, as that layout's own documentation has it; None where it has no form for it."""
    names = [piece[0] for _, pieces, _ in meant for piece in pieces if isinstance(piece, tuple)]
    tagged = [
        (role, "".join(piece if isinstance(piece, str) else "<image>" for piece in pieces), trained) for role, pieces, trained in meant
    ]
    all_trained = all(trained for role, _, trained in meant if role == "assistant")
    if layout == "LLaVA":
        speakers = {"user": "human", "assistant": "gpt", "system": "system"}
        turns = [{"from": speakers[role], "value": text} for role, text, _ in tagged]
        return {"conversations": turns, **({"image": names} if names else {})} if all_trained else None
    if layout == "ms-swift":
        turns = [{"role": role, "content": text, **({"loss": trained} if role == "assistant" else {})} for role, text, trained in tagged]
        return {"messages": turns, "images": names}
    if layout == "OpenAI":
        parts = lambda pieces: [text(p) if isinstance(p, str) else {"type": "image_url", "image_url": {"url": p[0]}} for p in pieces]  # noqa: E731
        turns = [
            {
                "role": role,
                "content": parts(pieces) if role == "user" else pieces[0],
                **({} if trained or role != "assistant" else {"weight": 0}),
            }
            for role, pieces, trained in meant
        ]
        return {"messages": turns}
    system = {"system": tagged[0][1]} if tagged[0][0] == "system" else {}
    pairs = [text for role, text, _ in tagged if role != "system"]
    if layout == "query":
        history = [[pairs[i], pairs[i + 1]] for i in range(0, len(pairs) - 2, 2)]
        return {"query": pairs[-2], "response": pairs[-1], "history": history, "images": names, **system} if all_trained else None
    if layout == "alpaca":
        return {"instruction": pairs[0], "input": "", "output": pairs[1], "images": names, **system} if len(pairs) == 2 else None
    if layout == "TRL":
        turns = [{"role": role, "content": text} for role, text, _ in tagged]
        only_last = not any(trained for _, _, trained in meant[:-1])
        return {"prompt": turns[:-1], "completion": turns[-1:], "images": names} if only_last else None
    turns = [{"human": pairs[i], "assistant": pairs[i + 1]} for i in range(0, len(pairs), 2)]
    return {"conversation": turns, "images": names, **system} if all_trained else None


@samples.many(500)
@given(conversations(), st.sampled_from(["LLaVA", "ms-swift", "OpenAI", "query", "alpaca", "TRL", "pairs"]))
def test_every_layout_gives_the_conversation_that_was_meant(meant, layout):
    record = written(meant, layout)
    if record is None:
        return
    read = layouts.parse(0, record)
    found = iter(read.pictures)
    shown = []
    for message in json.loads(read.payload())["messages"]:
        pieces = [part["text"] if part["type"] == "text" else (next(found),) for part in message["content"]]
        shown.append((message["role"], pieces, message["role"] == "assistant" and message.get("loss", True)))
    assert shown == meant and not read.notes
    # the short way for plain records and the whole one agree
    with patch.object(plain_records, "read", return_value=None):
        assert layouts.parse(0, record) == read
