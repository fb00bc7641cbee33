"""Sources whose text, keys, markup or files are unusual; `test_what_people_bring` says how they are written."""

from __future__ import annotations

import gzip
import json

from tests.data.brought import FRAMES, ONE, PUT, A, C, Case, bot, gpt, human, json_list, lines, llava, messages, picture_as, text, user

SHAPES = {
    "F33 blank lines": Case({"x.jsonl": b"\n\n" + lines(llava(image="a.jpg"))["train.jsonl"] + b"\n\n"}, [ONE]),
    "F33 a mark of UTF-8": Case({"x.json": b"\xef\xbb\xbf" + json_list(llava(image="a.jpg"))["train.json"]}, [ONE]),
    "F33 a mark of UTF-8 before lines": Case({"x.jsonl": b"\xef\xbb\xbf" + lines(llava(image="a.jpg"))["train.jsonl"]}, [ONE]),
    "F33 line ends of Windows": Case(
        {"x.jsonl": lines(llava(image="a.jpg"), llava(image="b.jpg"))["train.jsonl"].replace(b"\n", b"\r\n")},
        [ONE, ONE.replace("a.", "b.")],
    ),
    "F33 UTF-16": Case({"x.jsonl": lines(llava(image="a.jpg"))["train.jsonl"].decode().encode("utf-16")}, [ONE]),
    "F33 UTF-16 without a mark": Case({"x.json": json_list(llava(image="a.jpg"))["train.json"].decode().encode("utf-16-le")}, [ONE]),
    "F33 gzip": Case({"x.jsonl.gz": gzip.compress(lines(llava(image="a.jpg"))["train.jsonl"])}, [ONE]),
    "F33 ndjson": Case({"x.ndjson": lines(llava(image="a.jpg"))["train.jsonl"]}, [ONE]),
    "F33 GBK": Case(
        {"gbk.jsonl": json.dumps(llava(human("<image>\n这是什么"), gpt("一个圆。"), image="a.jpg"), ensure_ascii=False).encode("gbk")},
        "not UTF-8 text (line 1, byte 56); it may be GB18030: iconv -f GB18030 -t UTF-8 gbk.jsonl > utf8-gbk.jsonl",
    ),
    "F33 half a character": Case(
        {"x.jsonl": json.dumps(llava(human("<image> \ud83d"), gpt(), image="a.jpg")).encode()}, "half a character (a lone surrogate)"
    ),
    "F33 a line separator within a text": Case(
        {"x.jsonl": json.dumps(llava(human("<image>\na\u2028b"), gpt("x\u2029y"), image="a.jpg"), ensure_ascii=False).encode()},
        ["U {a.jpg}a\u2028b\nA x\u2029y"],
    ),
    "F33 an empty file": Case({"x.json": b""}, "an empty file"),
    "F33 a pointer of Git LFS": Case(
        {"x.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"}, "fetch it: git lfs pull"
    ),
    "F33 NaN": Case({"x.json": b'[{"score": NaN}]'}, "NaN is no JSON"),
    "F33 Python's form": Case({"x.json": str([llava(image="a.jpg")]).encode()}, "not JSON (line 1, column 3"),
    "F33 records by their names": Case(
        {"x.json": json.dumps({"1": llava(image="a.jpg"), "2": llava(image="b.jpg")}).encode()}, "jq '[.[]]' x.json"
    ),
    "F33 columns of pandas": Case(
        {"x.json": json.dumps({"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "x", "1": "y"}}).encode()},
        'orient="records", lines=True',
    ),
    "F33 columns as lists": Case(
        {"x.json": json.dumps({"image": ["a.jpg", "b.jpg"], "caption": ["x", "y"]}).encode()}, "an object of columns, not records"
    ),
    "F33 captions by names": Case(
        {"x.json": json.dumps({"a.jpg": "Red.", "b.jpg": "Blue."}).encode()}, "map({image: .key, caption: .value})"
    ),
    "F33 records within an object": Case(
        {"x.json": json.dumps({"data": [llava(image="a.jpg")]}).encode()}, "write that list alone: jq .data x.json"
    ),
    "F33 one line with a list of objects": Case(
        lines(messages(user("<image>What?"), bot(), images=["a.jpg"], notes=[{"a": 1, "b": 2}])),
        [ONE],
        said="keys that are not used, with the number of records: notes (1)",
    ),
    "F33 lines that look like objects around records": Case(
        lines({"contents": [{"role": "user", "parts": []}]}, {"contents": []}), "no conversations, messages"
    ),
}

MARKUP_AND_KEYS = {
    "F17 LLaVA without a tag": Case(json_list(llava(human("What?"), gpt(), image="a.jpg")), [ONE], said=PUT),
    "F17 ms-swift without a tag": Case(lines(messages(user("What?"), bot(), images=["a.jpg"])), [ONE], said=PUT),
    "F17 no tag in two questions": Case(
        lines(messages(user("What?"), bot(), user("And?"), bot("No."), images=["a.jpg"])), [ONE + "\nU And?\nA No."], said=PUT
    ),
    "F17 a tag and no picture": Case(
        json_list(llava()), "1 <image> tag but 0 pictures; give one name for each tag under images, or remove <image>"
    ),
    "F18 other keys of a picture": Case(
        json_list(
            *(llava(**{key: "a.jpg"}) for key in ("image_path", "img", "image_file", "Image", "photo", "picture_url")),
            llava(imgs=["a.jpg"]),
            llava(pictures=["a.jpg"]),
        ),
        [ONE] * 8,
    ),
    "F18 another key of a video": Case(json_list(llava(human("<video>\nWhat?"), gpt(), video_path="c.mp4")), ["U {c.mp4}What?\nA Red."]),
    "F18 a name under no key of a picture": Case(
        json_list(llava(human("What?"), gpt(), scan="a.jpg")), "scan names a file of image but is no key that is read"
    ),
    "F18 two keys, one picture": Case(json_list(llava(image="a.jpg", image_path="a.jpg")), [ONE]),
    "F32 a picture shown twice": Case(
        lines(messages(user("<image>What?"), bot(), user("<image>And?"), bot("No."), images=["a.jpg"])), "2 <image> tags but 1 picture"
    ),
    "F32 a picture named twice": Case(
        lines(messages(user("<image>What?"), bot(), user("<image>And?"), bot("No."), images=["a.jpg", "a.jpg"])),
        [ONE + "\nU {a.jpg}And?\nA No."],
    ),
    "F32 tags with numbers": Case(
        lines(messages(user("<image_2> or <image_1>?"), bot(), images=["a.jpg", "p.png"])), ["U {p.png} or {a.jpg}?\nA Red."]
    ),
    "F32 a tag in an answer": Case(
        lines(messages(user("<image>What?"), bot("<image> it is"), images=["a.jpg"])),
        "it is",
        said="<image> stays text in a turn of the assistant",
    ),
    "F32 other placeholders": Case(
        lines(messages(user("<IMAGE>What?"), bot(), images=["a.jpg"])), "holds <IMAGE>, a placeholder that is not read; write <image>"
    ),
    "F32 Qwen's own placeholder": Case(
        lines(messages(user("<|vision_start|><|image_pad|><|vision_end|>What?"), bot(), images=["a.jpg"])),
        "holds <|image_pad|>, a placeholder",
    ),
    "F32 a turn's end in a text": Case(lines(messages(user("What?"), bot("Red.<|im_end|>"))), "the text holds <|im_end|>"),
    "F32 HTML": Case(lines(messages(user('Explain <img src="x.png">'), bot("A tag."))), ['U Explain <img src="x.png">\nA A tag.']),
    "F38 a system beside turns": Case(
        json_list(llava(human("Hi"), gpt("Yo"), system="Help."), llava(image="a.jpg", system="Help.")),
        ["S Help.\nU Hi\nA Yo", "S Help.\n" + ONE],
    ),
    "F38 a system twice": Case(
        json_list(messages({"role": "system", "content": "x"}, user("a"), bot(), system="y")), "both system and a system turn; keep one"
    ),
    "F38 audio beside turns": Case(
        json_list(llava(human("Hi"), gpt("Yo"), audio="a.wav")), "holds audio; text, images and videos are read"
    ),
    "F38 empty lists of media": Case(
        json_list(messages(user("Hi"), bot("Yo"), images=[], videos=None, audios=[], objects={}, tools="")), ["U Hi\nA Yo"]
    ),
    "F38 an empty name of a picture": Case(json_list(llava(human("Hi"), gpt("Yo"), image="")), ["U Hi\nA Yo"]),
    "F38 unknown keys": Case(
        json_list(llava(image="a.jpg", mood="x"), llava(image="a.jpg", mood="y", id=3)),
        [ONE] * 2,
        said="keys that are not used, with the number of records: mood (2)",
    ),
    "F24 OpenAI's weight": Case(
        lines(messages(user("One?"), bot("Bad.", weight=0), user("Two?"), bot("Good.", weight=1))), ["U One?\na Bad.\nU Two?\nA Good."]
    ),
    "F24 ms-swift's loss": Case(
        lines(messages(user("<image>One?"), bot("Bad.", loss=False), user("Two?"), bot("Good.", loss=True), images=["a.jpg"])),
        ["U {a.jpg}One?\na Bad.\nU Two?\nA Good."],
    ),
    "F24 loss as text": Case(
        lines(messages(user("One?"), bot("Bad.", loss="false"), user("Two?"), bot("Good."))), ["U One?\na Bad.\nU Two?\nA Good."]
    ),
    "F24 half a weight": Case(lines(messages(user("One?"), bot("Bad.", weight=0.5))), "weight is 0.5; must be true or false"),
    "F24 nothing left to train": Case(lines(messages(user("One?"), bot("Bad.", loss=False))), "no answer to train on"),
    "F24 a history that is masked": Case(
        lines(messages(user("One?"), bot(), mask_history=True)), "holds mask_history; write loss: false in the turns"
    ),
    "F26 objects of ms-swift": Case(
        lines(
            messages(
                user("<image>Find <ref-object>"),
                bot('[{"bbox_2d": <bbox>, "label": "<ref-object>"}]'),
                images=["a.jpg"],
                objects={"ref": ["dot", "dot"], "bbox": [[24, 16, 48, 64]]},
            )
        ),
        ['U {a.jpg}Find dot\nA [{"bbox_2d": [250, 250, 500, 1000], "label": "dot"}]'],
    ),
    "F26 points, of a second picture": Case(
        lines(
            messages(
                user("<image><image>Point"),
                bot("<bbox>"),
                images=["a.jpg", "p.png"],
                objects={"ref": [], "bbox": [[48, 16]], "image_id": [1]},
            )
        ),
        ["U {a.jpg}{p.png}Point\nA [500, 250]"],
    ),
    "F26 objects as JSON": Case(
        lines(messages(user("<image>Find"), bot("<bbox>"), images=["a.jpg"], objects='{"bbox": [[24, 16, 48, 64]]}')),
        ["U {a.jpg}Find\nA [250, 250, 500, 1000]"],
    ),
    "F26 a box outside its picture": Case(
        lines(messages(user("<image>Find"), bot("<bbox>"), images=["a.jpg"], objects={"bbox": [[0, 0, 97, 64]]})),
        "leaves its picture of 96x64",
    ),
    "F26 boxes without tags": Case(
        lines(messages(user("<image>Find"), bot(), images=["a.jpg"], objects={"bbox": [[0, 0, 9, 9]]})),
        "objects has 0 ref and 1 bbox, the text 0",
    ),
    "F27 Qwen2-VL's tokens of boxes": Case(
        lines(
            messages(
                user("<image>Find the <|object_ref_start|>dot<|object_ref_end|>"),
                bot("<|box_start|>(101,201),(150,266)<|box_end|>"),
                images=["a.jpg"],
            )
        ),
        ["U {a.jpg}Find the <|object_ref_start|>dot<|object_ref_end|>\nA <|box_start|>(101,201),(150,266)<|box_end|>"],
    ),
    "F27 Qwen-VL's tags of boxes": Case(
        lines(messages(user("<image>Find <ref>dot</ref>"), bot("<box>(1,2),(3,4)</box>"), images=["a.jpg"])),
        ["U {a.jpg}Find <ref>dot</ref>\nA <box>(1,2),(3,4)</box>"],
    ),
    "F27 Qwen-VL's pictures in the text": Case(
        lines(messages(user("Picture 1: <img>a.jpg</img>\nWhat?"), bot())), ["U Picture 1: {a.jpg}What?\nA Red."]
    ),
    "F28 thinking in the answers": Case(
        lines(
            messages(
                user("<image>What?"),
                bot("<think>\nHm.\n</think>\n\nRed."),
                user("Sure?"),
                bot("<think>\n\n</think>\n\nYes."),
                images=["a.jpg"],
            )
        ),
        ["U {a.jpg}What?\nA <think>\nHm.\n</think>\n\nRed.\nU Sure?\nA <think>\n\n</think>\n\nYes."],
    ),
    "F28 thinking beside an answer": Case(
        lines(messages(user("What?"), bot(reasoning_content="Hm."))), ["U What?\nA <think>\nHm.\n</think>\n\nRed."]
    ),
    "F28 thinking beside question and answer": Case(
        lines({"question": "What?", "reasoning": "Hm.", "answer": "Red."}), ["U What?\nA <think>\nHm.\n</think>\n\nRed."]
    ),
    "F28 thinking beside two answers": Case(
        lines(messages(user("a"), bot(), user("b"), bot(), reasoning="Hm.")), "reasoning beside 2 answers"
    ),
    "F28 a switch of thinking": Case(lines(messages(user("a"), bot(), enable_thinking=True)), "holds enable_thinking"),
    "preferences": Case(lines(llava(human("Hi"), chosen=gpt("a"), rejected=gpt("b"))), "holds chosen: a preference between answers"),
    "preferences of ms-swift": Case(lines(messages(user("Hi"), bot("a"), rejected_response="b")), "holds rejected_response: a preference"),
    "ratings": Case(lines(messages(user("Hi"), bot("a"), kto_tag=True)), "holds kto_tag"),
    "ratings as label": Case(lines(messages(user("Hi"), bot("a"), label=False)), "a rating of the answer"),
    "questions for a reward": Case(
        lines(messages(user("<image>What?"), images=["a.jpg"], solution="Red.")), "no answer (a turn from gpt or assistant) to train on"
    ),
    "tool calls": Case(
        lines(
            messages(
                user("Weather?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                {"role": "tool", "content": "Sun."},
                bot("Sunny."),
            )
        ),
        ['U Weather?\nA  [{"arguments":{"x":1},"name":"f"}]\nT Sun.\nA Sunny.'],
    ),
    "tool calls of LLaMA-Factory": Case(
        json_list(
            llava(
                human("Weather?"),
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "Sun."},
                gpt("Sunny."),
            )
        ),
        ['U Weather?\nA  [{"arguments":{"x":1},"name":"f"}]\nT Sun.\nA Sunny.'],
    ),
    "a tool call that is no JSON": Case(json_list(llava(human("x"), {"from": "function_call", "value": "f(1)"}, gpt("y"))), "must be JSON"),
    "tools that are no list": Case(json_list(llava(human("x"), gpt("y"), tools="f")), "tools must be JSON"),
    "an unknown speaker": Case(lines(messages(user("x"), {"role": "critic", "content": "y"})), "role is 'critic'; must be one of"),
    "a system turn in the middle": Case(
        lines(messages(user("x"), {"role": "system", "content": "y"}, bot())), "a system turn can only be the first"
    ),
}

MEDIA_FILES = {
    "P05 pictures that Pillow reads": Case(
        {
            **json_list(
                *(llava(human("<image>\n" + name), gpt(), image=name) for name in ("x.jp2", "x.ppm", "x.jfif", "x.avif", "avif.jpg"))
            ),
            "x.jp2": picture_as("JPEG2000"),
            "x.ppm": picture_as("PPM"),
            "x.jfif": A,
            "x.avif": picture_as("AVIF"),
            "avif.jpg": picture_as("AVIF"),
        },
        ["U {?}x.jp2\nA Red.", "U {?}x.ppm\nA Red.", "U {a.jpg}x.jfif\nA Red.", "U {?}x.avif\nA Red.", "U {?}avif.jpg\nA Red."],
    ),
    "P05 an icon": Case({**json_list(llava(image="x.ico")), "x.ico": picture_as("ICO")}, "an ICO; convert it to JPEG or PNG"),
    "P05 a PDF": Case({**json_list(llava(image="x.pdf")), "x.pdf": b"%PDF-1.4\n"}, "a PDF; convert its pages to JPEG or PNG"),
    "P05 SVG": Case({**json_list(llava(image="x.svg")), "x.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>'}, "SVG"),
    "P05 HEIC under another name": Case(
        {**json_list(llava(image="iphone.jpg")), "iphone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)}, "HEI"
    ),
    "P05 a web page": Case({**json_list(llava(image="x.jpg")), "x.jpg": b"<!DOCTYPE html><html>Not found</html>"}, "web page"),
    "P05 a pointer of Git LFS": Case(
        {**json_list(llava(image="x.jpg")), "x.jpg": b"version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"
    ),
    "P05 a picture that is cut off": Case({**json_list(llava(image="x.jpg")), "x.jpg": A[:-200]}, "x.jpg"),
    "L01 photographs that are not there": Case(json_list(llava(image="IMG_0.jpg"), llava(image="a.jpg")), "IMG_0.jpg: no such file"),
    "L01 other letters": Case(json_list(llava(image="A.JPG")), "no such file; 'a.jpg' is there: its letters differ in case"),
    "L01 an address's way of writing": Case(
        {**json_list(llava(image="my%20pic.jpg")), "my pic.jpg": A}, "'my pic.jpg' is there: it is written with %"
    ),
    "L01 no ending": Case(json_list(llava(image="a")), "'a.jpg' is there: an ending is missing"),
    "L01 paths of Windows": Case({**json_list(llava(image="x\\y\\a.jpg"), llava(image=".\\a.jpg")), "x/y/a.jpg": A}, [ONE] * 2),
    "L01 a drive of Windows": Case(json_list(llava(image="C:\\x\\a.jpg")), "a drive of Windows; write the path relative"),
    "L01 several names in one": Case(
        json_list(llava(human("<image><image>What?"), gpt(), image="a.jpg,b.jpg")), "2 <image> tags but 1 picture"
    ),
    "V04 pictures and videos": Case(
        json_list(
            messages(
                user("<video> against <video>, and <image> and <image>. <video>?"),
                bot(),
                user("and <image>"),
                bot("No."),
                images=["p.png", "q.png", "p.png"],
                videos=["c.mp4", "d.mp4", "c.mp4"],
            ),
            llava(human("<image>\n<video>\nWhat?"), gpt(), video="c.mp4", image="p.png"),
        ),
        ["U {c.mp4} against {d.mp4}, and {p.png} and {q.png}. {c.mp4}?\nA Red.\nU and {p.png}\nA No.", "U {p.png}{c.mp4}What?\nA Red."],
    ),
    "V04 LLaVA-Video's tag": Case(
        json_list(llava(video="c.mp4"), llava(human("<image>\n<image>\nWhich?"), gpt(), video=["c.mp4", "d.mp4"])),
        ["U {c.mp4}What?\nA Red.", "U {c.mp4}{d.mp4}Which?\nA Red."],
    ),
    "V04 two tags, one video": Case(json_list(llava(human("<image>\n<image>\nWhich?"), gpt(), video="c.mp4")), "but 1 video"),
    "V04 an address": Case(
        json_list(llava(human("<video>\nWhat?"), gpt(), video="https://a.example/watch?v=x")), "an address; download it"
    ),
    "V04 a video's options": Case(
        json_list(
            messages(user([{"type": "video", "video": "c.mp4", "fps": 1.0, "video_start": 0.5, "video_end": 1.5}, text("What?")]), bot()),
            llava(human("<video>\nWhat?"), gpt(), video="c.mp4", nframes=4),
        ),
        ['U {c.mp4 {"end":1.5,"fps":1.0,"start":0.5}}What?\nA Red.', 'U {c.mp4 {"nframes":4}}What?\nA Red.'],
    ),
    "V04 a frame's area": Case(
        json_list(messages(user([{"type": "video", "video": "c.mp4", "max_pixels": 1000}, text("What?")]), bot())),
        "give total_pixels, the area of all its frames",
    ),
    "V04 a video that is cut off": Case(
        {**json_list(llava(human("<video>\nWhat?"), gpt(), video="x.mp4")), "x.mp4": C[: len(C) // 2]}, "x.mp4"
    ),
    "F37 Pai's frames with their rate": Case(
        {
            **json_list(messages(user("<video><video>Which?"), bot(), images=[], videos=["v/one.mp4", "v/two"])),
            "v/one/00001.jpg": FRAMES[0],
            "v/one/00002.jpg": FRAMES[1],
            "v/one.json": b'{"fps": "0.5"}',
            "v/two/00001.jpg": FRAMES[2],
            "v/two.json": b'{"fps": "4.0"}',
        },
        ["U {f/1.jpg f/2.jpg @0.5}{f/3.jpg @4.0}Which?\nA Red."],
    ),
    "F37 frames without a rate": Case(
        {**json_list(llava(human("<video>\nWhat?"), gpt(), video="v")), "v/2.jpg": FRAMES[1], "v/10.jpg": FRAMES[2], "v/1.jpg": FRAMES[0]},
        ["U {f/1.jpg f/2.jpg f/3.jpg @2.0}What?\nA Red."],
    ),
    "F37 a rate that is none": Case(
        {**json_list(llava(human("<video>\nWhat?"), gpt(), video="v")), "v/1.jpg": FRAMES[0], "v.json": b'{"fps": "fast"}'}, "v.json"
    ),
    "F37 a folder without frames": Case({**json_list(llava(human("<video>\nWhat?"), gpt(), video="v")), "v/x.txt": b"x"}, "jpg"),
}
