"""Random conversations, written in each layout as its documentation says: what is trained is the conversation, whatever else is there.

The writers below know the layouts' documentation and nothing of the readers. QWEN3VL_RANDOM_RECORDS=N tries N records.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.data import plain_records, sources
from qwen3vl_core.data.byte_ranges import Spool, read_range
from qwen3vl_core.data.dataset_info import naming_of
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.prepare.check import Checker, TarSample
from qwen3vl_core.data.records import UNUSED_KEY
from qwen3vl_core.options import PrepareOptions
from tests.data import samples
from tests.data.brought import MEDIA, parquet, tar
from tests.data.test_what_people_bring import shown

RECORDS = int(os.environ.get("QWEN3VL_RANDOM_RECORDS", "500"))
AT_ONCE = 10
"""Records of one file."""
PICTURES, VIDEOS = ("a.jpg", "b.jpg", "p.png", "q.png"), ("c.mp4", "d.mp4")
# no line break or space at the ends: layouts with tags remove some there; no brackets: a cell with them may be JSON
WORDS = st.text("ab .,;:'\"\\/<>=é漢\n\t0", min_size=1, max_size=12).map(str.strip).filter(bool)


@dataclass
class Talk:
    """What one record says."""

    system: str | None
    turns: list[tuple[list[tuple[str, str]], str, bool]]
    """(question as [(text | image | video, words or name)], answer, whether it is trained)"""
    beside: dict[str, Any]
    """Keys that say nothing of the conversation."""
    unknown: int
    """How many of them are not known to be harmless."""

    def media(self, kind: str) -> list[str]:
        return [value for pieces, _, _ in self.turns for what, value in pieces if what == kind]

    def expected(self) -> str:
        rows = [] if self.system is None else [f"S {self.system}"]
        for pieces, answer, trained in self.turns:
            rows.append("U " + "".join(value if what == "text" else "{" + value + "}" for what, value in pieces))
            rows.append(f"{'A' if trained else 'a'} {answer}")
        return "\n".join(rows)


@dataclass
class Layout:
    """How a layout is written, and what it can say."""

    write: Any
    """(talks, folder) -> the source"""
    turns: int = 3
    videos: bool = True
    system: bool = True
    untrained: bool = False
    pictures: int = 3
    first: bool = False
    """Pictures stand in front of the first question."""
    question: str | None = None
    """The question is always this one."""
    beside: bool = True


def tagged(pieces: list[tuple[str, str]]) -> str:
    """A question with tags, line breaks beside them as the public datasets have them."""
    words = ""
    for number, (what, value) in enumerate(pieces):
        if what == "text":
            words += value
        else:
            words += ("\n" if number and pieces[number - 1][0] == "text" else "") + f"<{what}>" + ("\n" if number % 2 == 0 else "")
    return words


def listed(talk: Talk) -> dict[str, Any]:
    return {f"{kind}s": talk.media(kind) for kind in ("image", "video") if talk.media(kind)}


def lines(make: Any) -> Any:
    def write(talks: list[Talk], folder: Any) -> Any:
        (folder / "x.jsonl").write_text("".join(json.dumps(make(talk) | talk.beside, ensure_ascii=False) + "\n" for talk in talks))
        return folder / "x.jsonl"

    return write


def llava(talk: Talk) -> dict[str, Any]:
    turns = [] if talk.system is None else [{"from": "system", "value": talk.system}]
    for pieces, answer, _ in talk.turns:
        turns += [{"from": "human", "value": tagged(pieces)}, {"from": "gpt", "value": answer}]
    media = {kind: names if len(names) > 1 else names[0] for kind in ("image", "video") if (names := talk.media(kind))}
    return media | {"conversations": turns}


def sharegpt(talk: Talk) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [] if talk.system is None else [{"role": "system", "content": talk.system}]
    for number, (pieces, answer, trained) in enumerate(talk.turns):
        loss = {} if trained else ({"loss": False}, {"weight": 0})[number % 2]
        turns += [{"role": "user", "content": tagged(pieces)}, {"role": "assistant", "content": answer, **loss}]
    return listed(talk) | {"messages": turns}


def parts(talk: Talk) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [] if talk.system is None else [{"role": "system", "content": [{"type": "text", "text": talk.system}]}]
    for pieces, answer, trained in talk.turns:
        content: list[dict[str, Any]] = []
        for number, (what, value) in enumerate(pieces):
            if what == "image" and number % 2:
                url = f"data:image/{'png' if value.endswith('png') else 'jpeg'};base64,{base64.b64encode(MEDIA[value]).decode()}"
                content.append({"type": "image_url", "image_url": {"url": url}})
            else:
                content.append({"type": what, what: value})
        loss = {} if trained else {"loss": False}
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": answer, **loss}]
    return {"messages": turns}


def asked(question: str, answer: str) -> Any:
    def make(talk: Talk) -> dict[str, Any]:
        *before, (pieces, last, _) = talk.turns
        history = [[tagged(asked), answered] for asked, answered, _ in before]
        system = {} if talk.system is None else {"system": talk.system}
        more = {"input": ""} if question == "instruction" else {}
        return {question: tagged(pieces), answer: last, **more, **({"history": history} if history else {}), **system} | listed(talk)

    return make


def completion(talk: Talk) -> dict[str, Any]:
    made = sharegpt(talk)
    turns = [{key: value for key, value in turn.items() if key in ("role", "content")} for turn in made.pop("messages")]
    return made | {"prompt": turns[:-1], "completion": turns[-1:]}


def question_and_answer(talk: Talk) -> dict[str, Any]:
    (pieces, answer, _), names = talk.turns[0], talk.media("image")
    return ({"image": names[0]} if names else {}) | {"question": pieces[-1][1], "answer": answer}


def table(rows: list[dict[str, Any]], folder: Any) -> Any:
    # pyarrow takes the columns from the first row
    keys = dict.fromkeys(key for row in rows for key in row)
    (folder / "x.parquet").write_bytes(parquet([{key: row.get(key) for key in keys} for row in rows]))
    return folder / "x.parquet"


def cauldron(talks: list[Talk], folder: Any) -> Any:
    rows = [
        {
            "images": [{"bytes": MEDIA[name], "path": name} for name in talk.media("image")],
            "texts": [
                {"user": "".join(value for what, value in pieces if what == "text"), "assistant": answer, "source": "x"}
                for pieces, answer, _ in talk.turns
            ],
        }
        | talk.beside
        for talk in talks
    ]
    return table(rows, folder)


def table_of_bytes(talks: list[Talk], folder: Any) -> Any:
    rows = []
    for talk in talks:
        record = llava(talk)
        record.pop("image", None)
        rows.append(record | {"images": [{"bytes": MEDIA[name], "path": None} for name in talk.media("image")]} | talk.beside)
    return table(rows, folder)


def captioned(talk: Talk) -> tuple[str, str]:
    return talk.media("image")[0], talk.turns[0][1]


def comma_separated(mark: str) -> Any:
    def write(talks: list[Talk], folder: Any) -> Any:
        name = folder / ("x.csv" if mark == "," else "x.tsv")
        keys = sorted({key for talk in talks for key in talk.beside})
        with open(name, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter=mark)
            rows.writerow(["image", "caption", *keys])
            rows.writerows([*captioned(talk), *(talk.beside.get(key, "") for key in keys)] for talk in talks)
        return name

    return write


def coco(talks: list[Talk], folder: Any) -> Any:
    images = [{"id": 7 + n, "file_name": captioned(talk)[0], "width": 3} for n, talk in enumerate(talks)]
    annotations = [{"id": n, "image_id": 7 + n, "caption": captioned(talk)[1]} for n, talk in enumerate(talks)]
    (folder / "x.json").write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    return folder / "x.json"


def imagefolder(talks: list[Talk], folder: Any) -> Any:
    rows = [{"file_name": captioned(talk)[0], "text": captioned(talk)[1]} | talk.beside for talk in talks]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def llama_factory(talks: list[Talk], folder: Any) -> Any:
    names = {"messages": "talk", "images": "pics", "videos": "clips", "system": "order"}
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "you"}
    records = []
    for talk in talks:
        turns = []
        for pieces, answer, _ in talk.turns:
            turns += [{"who": "me", "said": tagged(pieces)}, {"who": "you", "said": answer}]
        record = {"talk": turns, "pics": talk.media("image"), "clips": talk.media("video")} | talk.beside
        records.append(record if talk.system is None else record | {"order": talk.system})
    (folder / "mine.json").write_text(json.dumps(records))
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": names, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    return folder / "mine.json"


def webdataset(conversation: bool) -> Any:
    def write(talks: list[Talk], folder: Any) -> Any:
        members = []
        for number, talk in enumerate(talks):
            for place, name in enumerate(talk.media("image")):
                members.append((f"{number:04d}.{f'{place}.' if conversation else ''}{name[-3:]}", MEDIA[name]))
            text = json.dumps(llava(talk)["conversations"]) if conversation else talk.turns[0][1]
            members.append((f"{number:04d}.{'json' if conversation else 'txt'}", text.encode()))
        (folder / "x.tar").write_bytes(tar(*members))
        return folder / "x.tar"

    return write


CAPTION = {"turns": 1, "videos": False, "system": False, "pictures": 1, "question": "Describe this image."}
LAYOUTS = {
    "LLaVA": Layout(lines(llava)),
    "ShareGPT": Layout(lines(sharegpt), untrained=True),
    "content parts": Layout(lines(parts), untrained=True),
    "query, response": Layout(lines(asked("query", "response"))),
    "alpaca": Layout(lines(asked("instruction", "output"))),
    "prompt, completion": Layout(lines(completion)),
    "question, answer": Layout(lines(question_and_answer), turns=1, videos=False, system=False, pictures=1, first=True),
    "captions": Layout(lines(lambda talk: dict(zip(("image", "caption"), captioned(talk), strict=True))), **CAPTION),
    "the Cauldron": Layout(cauldron, videos=False, system=False, first=True),
    "parquet of bytes": Layout(table_of_bytes, videos=False),
    "CSV": Layout(comma_separated(","), **CAPTION),
    "TSV": Layout(comma_separated("\t"), **CAPTION),
    "COCO": Layout(coco, **CAPTION, beside=False),
    "imagefolder": Layout(imagefolder, **CAPTION),
    "LLaMA-Factory": Layout(llama_factory),
    "Pai's wds": Layout(webdataset(True), videos=False, beside=False),
    "WebDataset": Layout(webdataset(False), **CAPTION, beside=False),
}


@st.composite
def talks(draw: Any, layout: Layout) -> Talk:
    kinds = ["text", "image"] + (["video"] if layout.videos else [])
    turns = []
    for number in range(draw(st.integers(1, layout.turns))):
        pieces: list[tuple[str, str]] = []
        if layout.first or layout.question is not None:
            count = draw(st.integers(1 if layout.question or layout.turns > 1 else 0, layout.pictures)) if not number else 0
            pieces = [("image", draw(st.sampled_from(PICTURES))) for _ in range(count)] + [("text", layout.question or draw(WORDS))]
        else:
            for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)):
                if kind == "text" and pieces and pieces[-1][0] == "text":
                    continue
                name = WORDS if kind == "text" else st.sampled_from(PICTURES if kind == "image" else VIDEOS)
                pieces.append((kind, draw(name)))
        turns.append((pieces, draw(WORDS), not layout.untrained or draw(st.booleans())))
    turns[-1] = (*turns[-1][:2], True)
    beside: dict[str, Any] = {}
    unknown = 0
    if layout.beside:
        beside = {key: draw(WORDS) for key in draw(st.sets(st.sampled_from(("source", "split", "license"))))}
        for key in draw(st.sets(st.sampled_from(("mood", "zz_score", "Notes!")))):
            beside[key] = draw(WORDS)
            unknown += 1
    return Talk(draw(WORDS) if layout.system and draw(st.booleans()) else None, turns, beside, unknown)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_trained_is_what_the_record_says(tmp_path_factory, name):
    layout, folder = LAYOUTS[name], tmp_path_factory.mktemp("source")

    # completions alone are trained, whatever stands in the prompt
    def trained(talk: Talk) -> str:
        turns = [(*turn[:2], name != "prompt, completion" or turn is talk.turns[-1]) for turn in talk.turns]
        return Talk(talk.system, turns, {}, 0).expected() if name == "prompt, completion" else talk.expected()

    @samples.many(max(1, RECORDS // len(LAYOUTS) // AT_ONCE + 1))
    @given(st.lists(talks(layout), min_size=AT_ONCE, max_size=AT_ONCE))
    def reads(drawn: list[Talk]) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        for file, content in MEDIA.items():
            if "/" not in file:
                (folder / file).write_bytes(content)
        source, naming, _ = naming_of(layout.write(drawn, folder), None, None)
        located = sources.locate(source)
        spool = Spool(folder / "spool")
        checker = Checker(located.root, "none", spool, naming)
        results = checker.check(list(sources.open_records(source, naming, located).records()))
        with pytest.MonkeyPatch.context() as patched:
            # most of these are read by the fast way, which makes of a record what the other one does
            patched.setattr(plain_records, "read", lambda number, record: None)
            slowly = checker.check(list(sources.open_records(source, naming, located).records()))
        assert [(result.payload, result.parts, result.notes) for result in results] == [(r.payload, r.parts, r.notes) for r in slowly]
        for talk, result in zip(drawn, results, strict=True):
            assert isinstance(result, TarSample), (result.detail, talk)
            media = {part: read_range(str(located.root / file) if "\0" not in file else file)
                     for part, file in zip(result.parts, result.files, strict=True)}  # fmt: skip
            assert shown({"json": result.payload} | media) == trained(talk)
            assert sum(note == UNUSED_KEY for note, _ in result.notes) == talk.unknown
        spool.close()

    reads()


def test_shards_do_not_tell_which_layout_they_come_from(tmp_path):
    """The same records give the same bytes: whatever holds for the shards of one layout (resume, order, speed) holds for those of all."""
    sound = [
        Talk(None, [([("image", name), ("text", f"What is {n}?")], f"It is {n}.", True)], {}, 0) for n, name in enumerate(PICTURES * 3)
    ]
    made = {}
    for name in ("LLaVA", "ShareGPT", "query, response", "prompt, completion", "parquet of bytes", "LLaMA-Factory", "Pai's wds"):
        folder = tmp_path / name
        folder.mkdir()
        for file in PICTURES:
            (folder / file).write_bytes(MEDIA[file])
        source = LAYOUTS[name].write(sound, folder)
        prepare.run(PrepareOptions(source=str(source), to=str(folder / "data"), split="3,1,0", shard_size=30_000, workers=1))
        made[name] = {file.name: file.read_bytes() for file in sorted((folder / "data").glob("*.tar*"))}
    assert len(made["LLaVA"]) > 4
    assert [name for name, files in made.items() if files != made["LLaVA"]] == []
