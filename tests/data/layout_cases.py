"""Records in the layouts that people have, and what is trained of each as the layout's own documentation says."""

from __future__ import annotations

import base64
import json

from qwen3vl_core.data import layouts, media_tags
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
