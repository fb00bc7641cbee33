"""Layouts that people have: what is trained is what the layout's own documentation says, and no key is lost in silence."""

from __future__ import annotations

import base64
import copy
import io
import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwen3vl_core.data import layouts, media_tags, turns
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect import command as inspect_data
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.records import Medium
from qwen3vl_core.data.sample_encoder import messages_of, tools_of
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import InspectOptions, PrepareOptions
from tests.data import samples

PNG = samples.encoded(samples.picture(1), "PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
FRAMES = ["f/1.jpg", "f/2.jpg"]


def text(words):
    return {"type": "text", "text": words}


def image(number=0, suffix="jpg"):
    return {"type": "image", "part": f"img{number}.{suffix}"}


def asked(*parts):
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def answered(words="Circles.", **more):
    return {"role": "assistant", "content": [text(words)] if words else [], **more}


def messages(record):
    return json.loads(layouts.parse(0, record).payload())["messages"]


def user(*content):
    """A turn of parts, or of text."""
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def bot(content, **more):
    return {"role": "assistant", "content": content, **more}


def chat(*turns, **more):
    return {"messages": list(turns), **more}


USER, ANSWER, ASK, MORE = user("<image>What?"), bot("Circles."), user("A"), user("C")
LLAVA = {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Circles."}]}
BARE = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Circles."}]
CALL = {"type": "function", "function": {"name": "crop", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "crop", "description": "Cuts.", "parameters": {}}}
WANTED = [asked(image(), "What?"), answered()]
READ = {
    "LLaVA": (LLAVA, WANTED),
    "messages": ({"messages": [USER, ANSWER], "images": ["a.jpg"]}, WANTED),
    "a system beside the turns": (LLAVA | {"system": "Be brief."}, [{"role": "system", "content": [text("Be brief.")]}, *WANTED]),
    "parts with a path": (chat(user({"type": "image", "image": "a.jpg"}, text("What?")), {"role": "assistant",
        "content": [text("Circles.")]}),
        WANTED,
    ),
    "parts that the images fill": ({"messages": [user({"type": "image", "text": None}, text("What?")), ANSWER], "images": ["a.jpg"]},
        WANTED),
    "a data URL in a part": (chat(user(text("What? "), {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}), ANSWER),
        [asked("What? ", image(0, "png")), answered()],
    ),
    "line breaks of a part": (chat(user({"type": "image", "image": "a.jpg"}, text("\nWhat?")), ANSWER),
        [asked(image(), "\nWhat?"), answered()],
    ),
    "base64 without a head": (LLAVA | {"image": base64.b64encode(PNG).decode()}, [asked(image(0, "png"), "What?"), answered()]),
    "bytes of a table": (LLAVA | {"image": {"bytes": PNG, "path": "a.jpg"}}, [asked(image(0, "png"), "What?"), answered()]),
    "pictures of a turn": (chat({"role": "user", "content": "What?", "images": ["a.jpg"]}, ANSWER), WANTED),
    "query, response, history": (
        {"query": "<image>What?", "response": "Circles.", "history": [["Hello", "Hi"]], "images": ["a.jpg"], "system": "S"},
        [{"role": "system", "content": [text("S")]}, asked("Hello"), answered("Hi"), *WANTED],
    ),
    "alpaca": (
        {"instruction": "<image>Translate", "input": "rond", "output": "Circles.", "images": ["a.jpg"]},
        [asked(image(), "Translate\nrond"), answered()],
    ),
    "prompt and completion": ({"prompt": "What?", "completion": "Circles."}, [asked("What?"), answered()]),
    "messages as prompt and completion": (
        {"prompt": [ASK, bot("B"), MORE], "completion": [ANSWER]},
        [asked("A"), answered("B", loss=False), asked("C"), answered()],
    ),
    "pairs": ({"conversation": [{"human": "<image>What?", "assistant": "Circles."}], "images": ["a.jpg"]}, WANTED),
    "the Cauldron": ({"images": [{"bytes": PNG}], "texts": [{"user": "What?", "assistant": "Circles.", "source": "x"}]}, [asked(image(0,
        "png"), "What?"), answered()]),
    "a caption": ({"image": "a.jpg", "caption": "Circles."}, [asked(image(), media_tags.CAPTION_PROMPT), answered()]),
    "imagefolder": ({"file_name": "a.jpg", "text": "Circles."}, [asked(image(), media_tags.CAPTION_PROMPT), answered()]),
    "a picture without its tag": ({"image": "a.jpg", "conversations": BARE}, WANTED),
    "numbered tags": (
        {"images": ["a.jpg", "b.png"], "messages": [user("<image_2> or <image_1>?"), ANSWER]},
        [asked(image(0, "png"), " or ", image(1, "jpg"), "?"), answered()],
    ),
    "Qwen-VL's own tag": ({"conversations": [{"from": "user", "value": "Picture 1: <img>a.jpg</img>\nWhat?"}, {"from": "assistant",
        "value": "Circles."}]},
                          [asked("Picture 1: ", image(), "What?"), answered()]),
    "loss: false": (chat(ASK, bot("B", loss=False), MORE, ANSWER | {"loss": True}),
        [asked("A"), answered("B", loss=False), asked("C"), answered()],
    ),
    "weight: 0": (chat(ASK, bot("B", weight=0), MORE, ANSWER | {"weight": 1}),
        [asked("A"), answered("B", loss=False), asked("C"), answered()],
    ),
    "thinking beside the answer": (chat(ASK, ANSWER | {"reasoning_content": "Round."}),
        [asked("A"), answered("<think>\nRound.\n</think>\n\nCircles.")],
    ),
    "thinking as a part": (
        chat(ASK, bot([{"type": "thinking", "thinking": "Round."}, text("Circles.")])),
        [asked("A"), answered("<think>\nRound.\n</think>\n\nCircles.")],
    ),
    "tool calls of OpenAI": (chat(ASK,
                      {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "crop",
            "arguments": '{"x": 1}'}}]},
                      {"role": "tool", "tool_call_id": "1", "content": "ok"}, ANSWER),
        [asked("A"), answered("", tool_calls=[CALL]), {"role": "tool", "content": [text("ok")]}, answered()],
    ),
    "tool calls of LLaMA-Factory": (
        {"conversations": [{"from": "human", "value": "A"}, {"from": "function_call", "value": '{"name": "crop", "arguments": {"x": 1}}'},
                           {"from": "observation", "value": "ok"}, {"from": "gpt", "value": "Circles."}]},
        [asked("A"), answered("", tool_calls=[CALL]), {"role": "tool", "content": [text("ok")]}, answered()],
    ),
    "tool calls of ms-swift": (chat(ASK, bot("I look."),
                      {"role": "tool_call", "content": '{"name": "crop", "arguments": {"x": 1}}'},
                      {"role": "tool_response", "content": {"ok": 1}}, ANSWER),
        [asked("A"), answered("I look.", tool_calls=[CALL]), {"role": "tool", "content": [text('{"ok": 1}')]}, answered()],
    ),
    "frames as a list": (
        {"videos": [FRAMES], "messages": [user("<video>What?"), ANSWER]},
        [asked({"type": "video", "part": "vid0.mp4"}, "What?"), answered()],
    ),
}  # fmt: skip


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


def test_what_is_not_trained_has_no_label_and_the_rest_keeps_its_own(processor):
    record = {
        "messages": [
            ASK,
            bot("a dog", loss=False),
            user("B"),
            ANSWER,
        ]
    }
    both = json.loads(json.dumps(record))
    del both["messages"][1]["loss"]
    encoded, whole = (processor.encode(messages(each), {}) for each in (record, both))
    assert (encoded.ids == whole.ids).all()
    trained = processor.tokenizer.decode(encoded.labels[encoded.labels >= 0])
    assert trained == "Circles.<|im_end|>"
    assert processor.tokenizer.decode(whole.labels[whole.labels >= 0]) == "a dog<|im_end|>Circles.<|im_end|>"


def test_tools_go_through_a_template_that_has_them_and_are_refused_by_one_that_has_not(processor):
    record = READ["tool calls of OpenAI"][0] | {"tools": json.dumps([TOOL["function"]])}
    sample = {"json": layouts.parse(0, record).payload()}
    assert tools_of(sample) == [TOOL]
    with pytest.raises(DataError, match="tools"):
        processor.encode(messages_of(sample), {}, tools=tools_of(sample))
    template = (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content[0].text }}</tool_response>"
        "{% else %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    from qwen3vl_core.data.chat_template import ChatTemplate

    chat = ChatTemplate(processor.tokenizer, template, "here")
    shown = chat.render(messages_of(sample), tools=tools_of(sample))
    assert shown.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "crop"')
    trained = [shown[begin:end] for begin, end in chat.answers(shown, messages_of(sample))]
    assert trained == ['<tool_call>{"name": "crop", "arguments": {"x": 1}}</tool_call><|im_end|>', "Circles.<|im_end|>"]


def prepared(folder, records, **options):
    source = folder / "source.json"
    source.write_text(json.dumps(records))
    prepare.run(PrepareOptions(**({"source": str(source), "to": str(folder / "data"), "split": "1,0,0"} | options)))
    split = ShardSplit(folder / "data", "train")
    return dict(split.read(number) for number in range(len(split)))


def test_boxes_are_filled_in_from_0_to_1000_and_drawn(tmp_path):
    turned = Image.new("RGB", (200, 100), "white").getexif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 100), "white").save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGB", (200, 100), "white").save(tmp_path / "plain.jpg")
    turns = [
        user("<image>Find the <ref-object>"),
        {"role": "assistant", "content": '{"bbox_2d": <bbox>, "label": "<ref-object>"}'},
    ]
    objects = {"ref": ["dog", "dog"], "bbox": [[50, 50, 100, 100]]}
    kinds = [{}, {"bbox_type": "norm1", "bbox": [[0.5, 0.5, 1, 1]]}]
    rows = [{"messages": turns, "images": [name], "objects": objects | kind} for name in ("plain.jpg", "turned.jpg") for kind in kinds]
    parts = prepared(tmp_path, rows)
    boxes = [json.loads(parts[f"{n:08d}"]["json"])["messages"][1]["content"][0]["text"] for n in range(4)]
    # 200 wide and 100 high; as it is seen, the turned one is 100 wide and 200 high
    numbers = [[250, 500, 500, 1000], [500, 500, 1000, 1000], [500, 250, 1000, 500], [500, 500, 1000, 1000]]
    assert boxes == [f'{{"bbox_2d": {each}, "label": "dog"}}' for each in numbers]
    page = tmp_path / "page.html"
    inspect_data.run(InspectOptions(path=str(tmp_path / "data"), html=str(page)))
    first = page.read_text().split("base64,")[1].split('"')[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))).convert("RGB")).astype(int)
    assert (pixels[..., 0] - pixels[..., 1] > 100).any()


def test_media_within_records_are_stored_with_their_own_bytes_and_leave_nothing_behind(tmp_path):
    rows = [LLAVA | {"image": DATA_URL} for _ in range(3)]
    parts = prepared(tmp_path, rows, workers=2)
    assert [sample["img0.png"] for sample in parts.values()] == [PNG] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source.json"]


def test_absolute_names_and_file_addresses_are_read(tmp_path):
    folder = tmp_path / "my pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    parts = prepared(tmp_path, [LLAVA | {"image": str(folder / "a.png")}, LLAVA | {"image": (folder / "a.png").as_uri()}])
    assert [sample["img0.png"] for sample in parts.values()] == [PNG] * 2


def test_unknown_keys_and_what_was_put_right_are_counted_in_the_table(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(samples.encoded(samples.picture(1)))
    rows = [LLAVA | {"mood": "x"}, LLAVA | {"mood": "y", "id": 7, "width": 3}, {"image": "a.jpg", "conversations": BARE}]
    prepared(tmp_path, rows)
    shown = capsys.readouterr().out
    assert "keys that are not used, with the number of records: mood (2)" in shown
    assert "1 record: pictures or videos without a tag, put in front of the first question" in shown and "width" not in shown


def test_a_video_is_sampled_as_its_record_says(tmp_path, processor):
    from tests.data.test_sources import video

    (tmp_path / "a.mp4").write_bytes(video(frames=12))
    turns = [user("<video>"), ANSWER]
    rows = [
        {"messages": turns, "videos": ["a.mp4"]} | more
        for more in ({}, {"nframes": 2}, {"video_start": 1, "video_end": 2, "fps": 4}, {"start": 9})
    ]
    parts = prepared(tmp_path, rows)
    plans = []
    for number in range(3):
        sample = parts[f"{number:08d}"]
        plans.append(processor.tokenize(messages_of(sample), sample).media[0].video.frames.tolist())
    # 12 frames at 4 a second, 2 a second taken
    assert plans == [[0, 2, 4, 7, 9, 11], [0, 11], [4, 5, 6, 7, 8, 8]]
    with pytest.raises(DataError, match="no frame from 9 seconds on"):
        processor.tokenize(messages_of(parts["00000003"]), parts["00000003"])


def test_a_folder_of_frames_stands_for_a_video_that_is_not_there(tmp_path):
    (tmp_path / "clips/a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"clips/a/{number}.jpg").write_bytes(samples.encoded(samples.picture(number)))
    (tmp_path / "clips/a.json").write_text('{"fps": "0.5"}')
    parts = prepared(tmp_path, [{"messages": [user("<video>"), ANSWER], "videos": ["clips/a.mp4"]}])
    part = json.loads(parts["00000000"]["json"])["messages"][0]["content"][0]
    assert part["fps"] == 0.5 and len(part["frames"]) == 3


def test_a_missing_picture_with_a_long_name_is_told_in_one_short_line(tmp_path):
    with pytest.raises(RequestError) as refused:
        prepared(tmp_path, [LLAVA | {"image": "x" * 5000 + ".jpg"}])
    assert len(str(refused.value)) < 1000
    assert isinstance(layouts.parse(0, LLAVA | {"image": DATA_URL}).pictures[0], Medium)


def test_refusals_are_counted_by_rule_with_three_examples_each(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(samples.encoded(samples.picture(1)))
    rows = [LLAVA, *[LLAVA | {"audio": "a.wav"}] * 5, *[{"conversations": []}] * 2]
    prepared(tmp_path, rows, skip_missing=True)
    shown = capsys.readouterr().out
    assert "5 × record 1: holds audio; text, images and videos are read; record 2: holds audio" in shown and shown.count("holds audio") == 3
    assert "2 × record 6: no conversations; record 7: no conversations" in shown
    with pytest.raises(RequestError, match=r"record 1: holds audio.*; record 6: no conversations; record 2: holds audio.*and 4 more"):
        prepared(tmp_path, rows, overwrite=True)


def test_inspect_cuts_a_text_of_300_kilobytes(tmp_path, capsys):
    source = tmp_path / "long.jsonl"
    source.write_text(json.dumps(chat(ASK, bot("word " * 60_000))) + "\n")
    inspect_data.run(InspectOptions(path=str(source)))
    shown = capsys.readouterr().out
    assert len(shown) < 8000 and "300,000 characters" in shown


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
    with patch.object(layouts, "_plain", return_value=None):
        assert layouts.parse(0, record) == read
