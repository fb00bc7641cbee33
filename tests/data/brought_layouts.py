"""Sources by their layouts; `test_what_people_bring` says how they are written."""

from __future__ import annotations

import base64
import json

from tests.data.brought import (
    CAPTION,
    ONE,
    PUT,
    URL,
    WHERE,
    A,
    B,
    Case,
    P,
    Q,
    bot,
    gpt,
    human,
    json_list,
    lines,
    llava,
    messages,
    parquet,
    tar,
    text,
    user,
)

LAYOUTS = {
    "F01 ms-swift, absolute": Case(
        lines(
            messages({"role": "system", "content": "Help."}, user("<image>What?"), bot(), images=[f"{WHERE}/a.jpg"]),
            messages(user("<image><image>Which?"), bot("The first."), images=[f"{WHERE}/a.jpg", f"{WHERE}/p.png"]),
        ),
        ["S Help.\n" + ONE, "U {a.jpg}{p.png}Which?\nA The first."],
    ),
    "F01 content parts, absolute, some as addresses of files": Case(
        json_list(
            messages(user([{"type": "image", "image": f"{WHERE}/a.jpg"}, text("What?")]), bot()),
            messages(user([{"type": "image", "image": f"file://{WHERE}/a.jpg"}, text("What?")]), bot()),
        ),
        [ONE, ONE],
    ),
    "F01 absolute names beside relative ones, and a video": Case(
        lines(llava(image=f"{WHERE}/a.jpg"), llava(image="a.jpg"), llava(human("<video>\nWhat?"), gpt(), video=f"{WHERE}/c.mp4")),
        [ONE, ONE, "U {c.mp4}What?\nA Red."],
    ),
    "F01 absolute names of another machine": Case(
        lines(messages(user("<image>What?"), bot(), images=["/nowhere/data/a.jpg"])), "/nowhere/data/a.jpg: no such file"
    ),
    "F02 ms-swift, relative, some without pictures": Case(
        lines(messages(user("<image>What?"), bot(), images=["a.jpg"]), messages(user("Capital of France?"), bot("Paris."))),
        [ONE, "U Capital of France?\nA Paris."],
    ),
    "F02 relative to the file, in folders, with a dot in front": Case(
        {
            "train.jsonl": b"".join(
                json.dumps(messages(user("<image>What?"), bot(), images=[name])).encode() + b"\n"
                for name in ("./a.jpg", "x/../a.jpg", "./x/./a.jpg")
            ),
            "x/a.jpg": A,
        },
        [ONE] * 3,
    ),
    "F02 empty lists and null for records without pictures": Case(
        lines(
            messages(user("What?"), bot(), images=[]),
            messages(user("What?"), bot(), images=None),
            messages(user("What?"), bot(), images=[], videos=[], system=None, objects={}),
        ),
        ["U What?\nA Red."] * 3,
    ),
    "F02 relative names that leave the folder": Case(
        lines(messages(user("<image>What?"), bot(), images=["../a.jpg"])), "a higher folder as --images"
    ),
    "F03 OpenAI's parts with base64": Case(
        lines(messages(user([text("What?"), {"type": "image_url", "image_url": {"url": URL, "detail": "high"}}]), bot())),
        ["U What?{p.png}\nA Red."],
    ),
    "F03 data URLs as names": Case(lines(messages(user("<image>What?"), bot(), images=[URL])), ["U {p.png}What?\nA Red."]),
    "F03 bare base64": Case(lines(messages(user("<image>What?"), bot(), images=[base64.b64encode(A).decode()])), [ONE]),
    "F03 the responses API's parts": Case(
        lines(
            messages(
                user([{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": URL}]),
                bot([{"type": "output_text", "text": "Red."}]),
            )
        ),
        ["U What?{p.png}\nA Red."],
    ),
    "F03 Anthropic's parts": Case(
        lines(
            messages(
                user(
                    [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(P).decode()}},
                        text("What?"),
                    ]
                ),
                bot(),
                system="Help.",
            )
        ),
        ["S Help.\nU {p.png}What?\nA Red."],
    ),
    "F03 Anthropic's addresses": Case(
        lines(messages(user([{"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}, text("What?")]), bot())),
        "an address; download it, and name the file here",
    ),
    "F03 OpenAI's other keys": Case(
        lines(
            messages(
                {"role": "developer", "content": "Help.", "name": None},
                user("Hi", name="bob"),
                bot("Yo", refusal=None, function_call=None, annotations=[]),
                parallel_tool_calls=False,
            )
        ),
        ["S Help.\nU Hi\nA Yo"],
    ),
    "F04 Qwen's parts with a path": Case(
        json_list(messages(user([{"type": "image", "image": "a.jpg"}, text("What?")]), bot([text("Red.")]))), [ONE]
    ),
    "F04 a file address": Case(
        json_list(messages(user([{"type": "image", "image": f"file://{WHERE}/a.jpg"}, text("What?")]), bot())), [ONE]
    ),
    "F04 parts of a table, every key in every part": Case(
        {
            "train.parquet": parquet(
                [
                    messages(
                        user(
                            [
                                {"type": "image", "text": None, "image": "a.jpg", "video": None},
                                {"type": "text", "text": "What?", "image": None, "video": None},
                            ]
                        ),
                        bot([{"type": "text", "text": "Red.", "image": None, "video": None}]),
                    )
                ]
            )
        },
        [ONE],
    ),
    "F04 TRL's parts, which images fill": Case(
        lines(
            messages(
                user([{"index": None, **text("What?")}, {"index": 0, "text": None, "type": "image"}]),
                bot([{"index": None, **text("Red.")}]),
                images=["a.jpg"],
            )
        ),
        ["U What?{a.jpg}\nA Red."],
    ),
    "F04 sizes of one picture": Case(
        json_list(messages(user([{"type": "image", "image": "a.jpg", "resized_height": 28}, text("What?")]), bot())),
        "resized_height of one picture is not read; resize the picture",
    ),
    "F05 query, response, history": Case(
        lines(
            {"query": "<image>What?", "response": "Red.", "images": ["a.jpg"]},
            {"query": "And?", "response": "No.", "history": [["Hi", "Yo"]]},
        ),
        [ONE, "U Hi\nA Yo\nU And?\nA No."],
    ),
    "F05 without a picture": Case(lines({"query": "What?", "response": "Red."}), ["U What?\nA Red."]),
    "F05 a system beside them": Case(lines({"system": "Help.", "query": "What?", "response": "Red."}), ["S Help.\nU What?\nA Red."]),
    "F05 a history that is text": Case(
        lines({"query": "a", "response": "b", "history": "x"}), "history must be a list of [question, answer]"
    ),
    "F06 alpaca with images": Case(json_list({"instruction": "<image>What?", "input": "", "output": "Red.", "images": ["a.jpg"]}), [ONE]),
    "F06 alpaca with an input": Case(
        json_list({"instruction": "Say it in German", "input": "Red", "output": "Rot"}), ["U Say it in German\nRed\nA Rot"]
    ),
    "F06 alpaca with system and history": Case(
        json_list({"instruction": "And?", "input": "", "output": "No.", "system": "Help.", "history": [["Hi", "Yo"]]}),
        ["S Help.\nU Hi\nA Yo\nU And?\nA No."],
    ),
    "F06 alpaca, its output empty": Case(json_list({"instruction": "What?", "input": "", "output": ""}), "an empty answer"),
    "F08 LLaMA-Factory's dataset_info": Case(
        {
            "dataset_info.json": json.dumps(
                {
                    "mine": {
                        "file_name": "mine.json",
                        "formatting": "sharegpt",
                        "columns": {"messages": "talk", "images": "pics"},
                        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "you"},
                    }
                }
            ).encode(),
            "mine.json": json.dumps(
                [{"talk": [{"who": "me", "said": "<image>What?"}, {"who": "you", "said": "Red."}], "pics": ["a.jpg"]}]
            ).encode(),
        },
        [ONE],
        options={"dataset": "mine"},
    ),
    "F08 a file beside dataset_info": Case(
        {
            "mine.json": json.dumps([{"q": "<image>What?", "a": "Red.", "pics": ["a.jpg"]}]).encode(),
            "dataset_info.json": json.dumps(
                {"mine": {"file_name": "mine.json", "columns": {"prompt": "q", "response": "a", "images": "pics"}}}
            ).encode(),
        },
        [ONE],
    ),
    "F08 an entry of preferences": Case(
        {"dataset_info.json": json.dumps({"mine": {"file_name": "mine.json", "ranking": True}}).encode(), "mine.json": b"[{}]"},
        "preference",
        options={"dataset": "mine"},
    ),
    "F08 an entry that is not there": Case(
        {"dataset_info.json": json.dumps({"mine": {"file_name": "mine.json"}}).encode(), "mine.json": b"[{}]"},
        "mine",
        options={"dataset": "other"},
    ),
    "F09 Qwen-VL's finetuning, a list of images": Case(
        json_list(
            llava(human("<image>\n<image>\nWhich?"), gpt(), images=["a.jpg", "p.png"]),
            llava(human("<image>\n<image>\nWhich?"), gpt(), image=["a.jpg", "p.png"]),
            llava(human(), gpt('{\n"bbox_2d": [1, 2, 3, 4]\n}'), image="a.jpg"),
        ),
        ["U {a.jpg}{p.png}Which?\nA Red."] * 2 + ['U {a.jpg}What?\nA {\n"bbox_2d": [1, 2, 3, 4]\n}'],
    ),
    "F09 Qwen-VL's finetuning, records packed": Case(
        json_list([llava(image="a.jpg"), llava(image="b.jpg")]), "records that are packed already: write each alone (jq flatten)"
    ),
    "F09 InternVL's sizes beside the pictures": Case(
        lines(
            llava(
                human("Image-1: <image>\nImage-2: <image>\nWhich?"),
                gpt(),
                image=["a.jpg", "p.png"],
                width_list=[96, 96],
                height_list=[64, 64],
            )
        ),
        ["U Image-1: {a.jpg}Image-2: {p.png}Which?\nA Red."],
    ),
    "F09 InternVL's list of datasets": Case(
        {"meta.json": json.dumps({"mine": {"root": "pics/", "annotation": "x.jsonl", "repeat_time": 1}}).encode()},
        "InternVL's list of datasets; prepare each: x.jsonl --images pics/",
    ),
    "F09 MiniCPM's pictures by their tags": Case(
        json_list(llava(user("<image_01> or <image_00>?"), bot(), image={"<image_00>": "a.jpg", "<image_01>": "p.png"})),
        ["U {p.png} or {a.jpg}?\nA Red."],
    ),
    "F11 LLaMA-Factory's frames": Case(
        json_list(messages(user("<video>What moves?"), bot(), videos=[[f"f/{n}.jpg" for n in range(1, 5)]])),
        ["U {f/1.jpg f/2.jpg f/3.jpg f/4.jpg @2.0}What moves?\nA Red."],
    ),
    "F11 LLaVA's frames": Case(
        json_list(llava(human("<video>\nWhat moves?"), gpt(), video=[f"f/{n}.jpg" for n in range(1, 5)])),
        ["U {f/1.jpg f/2.jpg f/3.jpg f/4.jpg @2.0}What moves?\nA Red."],
    ),
    "F11 frames in a part, with their rate": Case(
        lines(messages(user([{"type": "video", "video": ["f/1.jpg", "f/2.jpg"], "sample_fps": 0.5}, text("What?")]), bot())),
        ["U {f/1.jpg f/2.jpg @0.5}What?\nA Red."],
    ),
    "F11 two videos of frames": Case(
        json_list(messages(user("<video><video>Which?"), bot(), videos=[["f/1.jpg"], ["f/2.jpg", "f/3.jpg"]])),
        ["U {f/1.jpg @2.0}{f/2.jpg f/3.jpg @2.0}Which?\nA Red."],
    ),
    "F12 a hub's parquet": Case(
        {"train-00000-of-00001.parquet": parquet([{"id": "1", "image": {"bytes": P, "path": "x.png"}, **llava()}])},
        ["U {p.png}What?\nA Red."],
    ),
    "F12 a repository": Case(
        {
            "repo/README.md": b"---\nlicense: mit\n---\n",
            "repo/data/train-00000-of-00001.parquet": parquet([{"image": {"bytes": P, "path": None}, **llava()}]),
            "repo/data/test-00000-of-00001.parquet": parquet([{"image": {"bytes": Q, "path": None}, **llava()}]),
        },
        ["U {p.png}What?\nA Red."],
        "repo",
        "the files of test are not read",
    ),
    "F12 a conversation as JSON in a column": Case(
        {"train.parquet": parquet([{"image": P, "conversations": json.dumps([human(), gpt()])}])}, ["U {p.png}What?\nA Red."]
    ),
    "F12 the Cauldron": Case(
        {
            "train.parquet": parquet(
                [{"images": [{"bytes": P, "path": None}], "texts": [{"user": "What?", "assistant": "Red.", "source": "x"}]}]
            )
        },
        ["U {p.png}What?\nA Red."],
    ),
    "F13 CSV": Case(
        {"pairs.csv": b'image,caption\na.jpg,Red.\nb.jpg,"Blue, or so"\n'}, [CAPTION, "U {b.jpg}Describe this image.\nA Blue, or so"]
    ),
    "F13 TSV without a header": Case({"pairs.tsv": b"Red.\ta.jpg\n"}, "name them by number: --columns image=2,caption=1"),
    "F13 TSV with its columns named": Case({"pairs.tsv": b"Red.\ta.jpg\n"}, [CAPTION], options={"columns": "image=2,caption=1"}),
    "F13 TSV of addresses": Case({"pairs.tsv": b"caption\turl\nRed.\thttp://a.example/a.jpg\n"}, "caption without a picture"),
    "F13 TSV with base64": Case(
        {"pairs.tsv": b"7\t" + base64.b64encode(P) + b"\tRed.\n"},
        ["U {p.png}Describe this image.\nA Red."],
        options={"columns": "image=2,caption=3"},
    ),
    "F13 semicolons": Case({"pairs.csv": b"image;caption\na.jpg;Red.\n"}, [CAPTION]),
    "F13 a spreadsheet's CSV": Case(
        {"pairs.csv": b'\xef\xbb\xbfimage,caption\r\na.jpg,"Red.\nReally."\r\n'}, ["U {a.jpg}Describe this image.\nA Red.\nReally."]
    ),
    "F13 pandas' index": Case({"pairs.csv": b",image,caption\n0,a.jpg,Red.\n"}, [CAPTION]),
    "F13 open_clip's columns": Case({"pairs.csv": b"filepath,title\na.jpg,Red.\n"}, [CAPTION]),
    "F13 Kaggle's Flickr8k": Case(
        {"captions.txt": b"image,caption\na.jpg,Red.\nb.jpg,Blue.\n"}, [CAPTION, "U {b.jpg}Describe this image.\nA Blue."]
    ),
    "F13 a spreadsheet": Case({"pairs.xlsx": b"PK\x03\x04" + bytes(100)}, "a spreadsheet or document; export it as CSV"),
    "question and answer": Case(json_list({"image": "a.jpg", "question": "What?", "answer": "Red."}), [ONE], said=PUT),
    "question and one answer in a list": Case(json_list({"image": "a.jpg", "question": "What?", "answers": ["Red.", "Red."]}), [ONE]),
    "question and different answers": Case(
        json_list({"image": "a.jpg", "question": "What?", "answers": ["Red.", "Crimson."]}), "2 answers to one question (Red., Crimson.)"
    ),
    "problem and solution": Case(json_list({"images": ["a.jpg"], "problem": "<image>What?", "solution": "Red."}), [ONE]),
    "PaliGemma's prefix and suffix": Case(lines({"image": "a.jpg", "prefix": "What?", "suffix": "Red."}), [ONE]),
    "COCO's captions": Case(
        {
            "captions.json": json.dumps(
                {"info": {}, "images": [{"id": 5, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 5, "caption": "Red. "}]}
            ).encode()
        },
        [CAPTION],
    ),
    "COCO's boxes": Case(
        {
            "instances.json": json.dumps(
                {"images": [{"id": 5, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4]}]}
            ).encode()
        },
        "COCO's annotations without captions",
    ),
    "an imagefolder": Case({"d/metadata.jsonl": b'{"file_name": "a.jpg", "text": "Red."}\n', "d/a.jpg": A}, [CAPTION], "d"),
    "an imagefolder with splits": Case(
        {
            "d/train/metadata.csv": b"file_name,text\na.jpg,Red.\n",
            "d/train/a.jpg": A,
            "d/test/metadata.csv": b"file_name,text\nb.jpg,Blue.\n",
            "d/test/b.jpg": B,
        },
        [CAPTION],
        "d",
        "the files of test are not read",
    ),
    "pictures with a text each": Case(
        {"d/a.jpg": A, "d/a.txt": b"Red.\n", "d/b.jpg": B, "d/b.txt": b"Blue."}, [CAPTION, "U {b.jpg}Describe this image.\nA Blue."], "d"
    ),
    "pictures, one without a text": Case({"d/a.jpg": A, "d/a.txt": b"Red.", "d/b.jpg": B}, "record 1: turn 1: an empty answer", "d"),
    "pictures alone": Case(
        {"d/dog/a.jpg": A, "d/cat/b.jpg": B}, "2 pictures, but no file that says what to learn from them; write metadata.csv", "d"
    ),
    "WebDataset with texts": Case(
        {"x-0.tar": tar(("1.jpg", A), ("1.txt", b"Red."), ("2.jpg", B), ("2.txt", b"Blue."))},
        [CAPTION, "U {b.jpg}Describe this image.\nA Blue."],
    ),
    "img2dataset": Case(
        {
            "d/00000.tar": tar(
                ("0.jpg", A), ("0.txt", b"Red."), ("0.json", b'{"caption": "Red.", "url": "http://x", "key": "0", "status": "success"}')
            ),
            "d/00000.parquet": parquet([{"url": "http://x", "caption": "Red.", "key": "0"}]),
            "d/00000_stats.json": b'{"count": 1}',
        },
        [CAPTION],
        "d",
    ),
    "W01 Pai's wds": Case(
        {
            "wds/pretrain-0.tar": tar(("0.jpg", A), ("0.json", json.dumps([human(), gpt()]).encode())),
            "wds/.nv-meta/dataset.yaml": b"__class__: VQAWebdataset\n",
            "wds/.nv-meta/split.yaml": b"split_parts:\n  train: [pretrain-0.tar]\n",
        },
        [ONE],
        "wds",
    ),
    "W01 an archive in the folder alone": Case(
        {
            "data_ok/train-00000.tar": tar(
                ("0.img0.jpg", A),
                (
                    "0.json",
                    json.dumps(messages(user([{"type": "image", "part": "img0.jpg"}, text("What?")]), bot([text("Red.")]))).encode(),
                ),
            )
        },
        [ONE],
        "data_ok",
    ),
    "W01 an archive that is cut off": Case({"x.tar": tar(("0.jpg", A), ("0.txt", b"Red."))[:2000]}, "not a complete tar archive"),
    "W01 a pickle in an archive": Case({"x.tar": tar(("0.pkl", b"x"), ("0.txt", b"Red."))}, "holds a Python pickle"),
}
