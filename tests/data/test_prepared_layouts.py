"""Records of every layout through `prepare`, `inspect` and the processor: their media, boxes, tools and labels, and what is counted."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from qwen3vl_core.data import layouts
from qwen3vl_core.data.chat_template import ChatTemplate
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect import command as inspect_data
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.records import Medium
from qwen3vl_core.data.sample_encoder import messages_of, tools_of
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import InspectOptions, PrepareOptions
from tests.data import samples
from tests.data.layout_cases import ANSWER, ASK, BARE, DATA_URL, LLAVA, PNG, READ, TOOL, bot, chat, messages, user
from tests.data.test_sources import video


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
