"""Records in JSON: a list, one a line, one after another, COCO's captions. Lists are streamed: memory does not grow with them.

Imports no torch.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.data.errors import kind_of
from qwen3vl_core.data.media_values import looks_like_media
from qwen3vl_core.data.records import cut
from qwen3vl_core.data.text_files import TextFile
from qwen3vl_core.errors import RequestError

LOADED_AT_ONCE = 64 << 20
"""Bytes of a list that is read at once, which is faster than streaming it."""
_SPACE = re.compile(r"[ \t\r\n]*")
SHAPE = "a list [...] or one record a line; docs/data.md lists the layouts"


def loads(data: bytes | str) -> Any:
    """JSON in UTF-8, without NaN and infinities. Raises ValueError, RecursionError."""
    # the codec without a mark is built in, that with one is Python's
    text = data if isinstance(data, str) else data.decode("utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8")
    return _DECODER.decode(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def reason_of(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class JsonRecords:
    """The records of a text file in JSON. Raises RequestError for anything else."""

    _loaded: list[Any] | None = None

    def __init__(self, file: TextFile) -> None:
        self.path, self.file = file.path, file
        self.count: int | None = None
        """Number of records, where it is known without reading the file."""
        start = file.head.lstrip(" \t\r\n")[:1]
        self.lines = False
        """One record a line: `records` gives (line from 1, its bytes), for another process to parse."""
        if start != "{":
            self._open_list()
        elif self._first_line_is_whole():
            self.lines = True
        else:
            self._open_objects()
        if self._loaded is not None:
            self.count = len(self._loaded)
            if not self.count:
                raise RequestError(f"{self.path}: an empty list; {SHAPE}")

    def first(self) -> Any:
        """The first record, for finding out the layout. Raises RequestError when it is no JSON."""
        if self._loaded is not None:
            return self._loaded[0]
        if not self.lines:
            return next(iter(self._streamed()))
        number, line = next((number, line) for number, line in self.file.lines() if line.strip())
        try:
            return loads(line)
        except UnicodeDecodeError as error:
            raise self.file.not_utf8(error.start, line, number) from None
        except json.JSONDecodeError as error:
            raise RequestError(f"{self.path}: not JSON (line {number}, column {error.colno}: {error.msg}); {SHAPE}") from None
        except (RecursionError, ValueError) as error:
            raise RequestError(f"{self.path}: not JSON that is read here ({reason_of(error)}); {SHAPE}") from None

    def records(self) -> Iterator[Any]:
        """Each record: an object, or (line from 1, its bytes) of JSON Lines. A list that was loaded can be iterated once only."""
        if self.lines:
            yield from ((number, line) for number, line in self.file.lines() if line.strip())
        elif self._loaded is not None:
            loaded = self._loaded
            for number in range(len(loaded)):
                # released as it is used: the list is the largest object in memory
                record, loaded[number] = loaded[number], None
                yield record
        else:
            yield from self._streamed()

    def _first_line_is_whole(self) -> bool:
        line = self.file.head.lstrip(" \t\r\n").partition("\n")
        if not line[1]:
            # longer than the first block: one record, or an object around all of them
            text = next((line for _, line in self.file.lines() if line.strip()), b"")
        else:
            text = line[0].encode("utf-8", "surrogatepass")
        try:
            first = loads(text)
        except (ValueError, RecursionError):
            # a record that is broken, or an object over many lines: one that ends on { or , goes on
            return not text.rstrip().endswith((b"{", b",", b"["))
        # one of several lines is a record, whatever its keys; so is the only one where the name says lines
        named_lines = re.search(r"\.(?:jsonl|ndjson)\b", self.path.name.lower()) is not None
        return named_lines or bool(line[2].strip()) or not self._wrapped(first)

    def _open_objects(self) -> None:
        """One object over many lines, or several one after another."""
        if self.path.stat().st_size > LOADED_AT_ONCE and not re.match(r'\s*\{\s*"(info|images|annotations|licenses)"', self.file.head):
            return
        self._loaded = list(self._streamed())
        if len(self._loaded) == 1:
            self._wrapped(self._loaded[0])

    def _open_list(self) -> None:
        """The JSON list in the file, loaded at once where it is small."""
        if self.path.stat().st_size > LOADED_AT_ONCE or self.file.compression != "text":
            if not self.file.head.lstrip(" \t\r\n").startswith("["):
                raise RequestError(f"{self.path}: not JSON (it begins with {self.file.head.strip()[:20]!r}); {SHAPE}")
            return
        try:
            text = "".join(self.file.blocks())
            loaded = loads(text)
        except json.JSONDecodeError as error:
            raise RequestError(f"{self.path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); {SHAPE}") from None
        except (RecursionError, ValueError) as error:
            raise RequestError(f"{self.path}: not JSON that is read here ({reason_of(error)}); {SHAPE}") from None
        if not isinstance(loaded, list):
            raise RequestError(f"{self.path}: not a list but {kind_of(loaded)}; {SHAPE}")
        self._loaded = loaded

    def _wrapped(self, first: Any) -> bool:
        """Whether an object is COCO's, whose captions then are the records. Raises RequestError for another one around records."""
        if not isinstance(first, dict) or any(key in first for key in ("conversations", "messages")):
            return False
        self._refuse_table(first)
        annotations, images = first.get("annotations"), first.get("images")
        if isinstance(annotations, list) and isinstance(images, list) and all(isinstance(image, dict) for image in images):
            self._loaded = _coco(first, self.path.name)
            return True
        if any(key in first for key in _QUESTIONS):
            return False
        for key, value in first.items():
            if isinstance(value, list) and value and isinstance(value[0], dict) and len(value[0]) > 1 and key not in _RECORD_KEYS:
                raise RequestError(
                    f"{self.path}: one object that holds the records as {key!r}; write that list alone: jq .{key} {self.path.name}"
                )
        if first and all(
            isinstance(value, dict) and ({"file_name", "hf_hub_url", "ms_hub_url"} & value.keys()) for value in first.values()
        ):
            raise RequestError(
                f"{self.path}: LLaMA-Factory's list of datasets; rename it to dataset_info.json, or give a file that it names"
            )
        return False

    def _refuse_table(self, first: dict[str, Any]) -> None:
        """Raises RequestError for an object that holds records by their names, or columns, with the way to write them as a list."""
        values, name = list(first.values()), self.path.name
        lists = [value for value in values if isinstance(value, list)]
        same = len(values) > 1 and len(lists) == len(values) and len({len(value) for value in lists}) == 1
        if same and len(lists[0]) > 1 and not any(isinstance(value[0], (dict, list)) for value in lists):
            raise RequestError(f"{self.path}: an object of columns, not records; write rows: {_ROWS_OF_PANDAS}")
        if not values or not all(isinstance(value, dict) for value in values):
            if len(values) > 1 and all(isinstance(value, str) for value in values) and all(map(looks_like_media, first)):
                way = f"jq 'to_entries | map({{image: .key, caption: .value}})' {name}"
                raise RequestError(f"{self.path}: an object of names and captions, not records; write records: {way}")
            return
        keys = {key for value in values for key in value}
        if len(values) > 1 and all(key.isdigit() for key in keys) and not all(key.isdigit() for key in first):
            raise RequestError(f"{self.path}: an object of columns, as pandas writes it by default; write rows: {_ROWS_OF_PANDAS}")
        if "annotation" in keys:
            given = next(value for value in values if "annotation" in value)
            way = f"prepare each: {cut(given['annotation'])} --images {cut(given.get('root', ''))}"
            raise RequestError(f"{self.path}: InternVL's list of datasets; {way}")
        if not keys & {"file_name", "hf_hub_url", "ms_hub_url"} and keys & {*_QUESTIONS, "conversations", "messages", "caption", "image"}:
            raise RequestError(f"{self.path}: an object that holds the records by their names; write a list: jq '[.[]]' {name}")

    def _streamed(self) -> Iterator[Any]:
        """The values of a list, or values one after another. Raises RequestError with the line of what is not JSON."""
        decoder = json.JSONDecoder(parse_constant=_no_constant)
        blocks = self.file.blocks()
        text, at, line, ended = "", 0, 1, False
        in_list: bool | None = None
        expects_value = True
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if at >= len(text) and not ended:
                line += text.count("\n")
                text, at = next(blocks, ""), 0
                ended = not text
                continue
            if at >= len(text):
                if in_list:
                    raise RequestError(f"{self.path}: cut off, the list does not end (line {line}); copy or download it again")
                return
            mark = text[at]
            if in_list is None:
                in_list = mark == "["
                at += in_list
                continue
            if in_list and mark in ",]":
                at += 1
                if mark == "]":
                    return
                expects_value = True
                continue
            if in_list and not expects_value:
                line_number = line + text.count("\n", 0, at)
                raise RequestError(f"{self.path}: not JSON (line {line_number}: a comma is missing before {text[at : at + 20]!r}); {SHAPE}")
            value, end = None, at
            try:
                value, end = decoder.raw_decode(text, at)
                after = _SPACE.match(text, end).end()  # type: ignore[union-attr]
                follows = text[after : after + 1]
                # a number may go on in the next block
                complete = ended or (bool(follows) and (follows in ",]" or not isinstance(value, (int, float)))) or not in_list
            except (ValueError, RecursionError) as error:
                broken = not isinstance(error, json.JSONDecodeError) or len(text) - at > limits.JSON_VALUE
                if ended or broken:
                    line_number = line + text.count("\n", 0, error.pos if isinstance(error, json.JSONDecodeError) else at)
                    raise RequestError(
                        f"{self.path}: not JSON (line {line_number}: {getattr(error, 'msg', reason_of(error))}); {SHAPE}"
                    ) from None
                complete = False
            if not complete:
                # it may go on in the next block; a block as long as what waits keeps this linear
                line += text.count("\n", 0, at)
                waiting = text[at:]
                more = next(blocks, "")
                while more and len(more) < len(waiting):
                    another = next(blocks, "")
                    if not another:
                        break
                    more += another
                ended = not more
                text, at = waiting + more, 0
                continue
            yield value
            at, expects_value = end, False


_QUESTIONS = ("query", "question", "instruction", "input", "prompt", "problem", "prefix")
_ROWS_OF_PANDAS = 'df.to_json("records.jsonl", orient="records", lines=True)'
_RECORD_KEYS = {"history", "images", "videos", "tools", "texts", "prompt", "completion", "functions", "conversation"}


def _coco(loaded: dict[str, Any], name: str) -> list[Any]:
    """One record for each caption of COCO's annotations. Raises RequestError for annotations without captions."""
    files = {image.get("id"): image.get("file_name") for image in loaded["images"]}
    records = []
    for annotation in loaded["annotations"]:
        if not isinstance(annotation, dict) or "caption" not in annotation:
            raise RequestError(
                f"{name}: COCO's annotations without captions, which say nothing to learn as text; write what the model shall answer"
            )
        record = {"id": annotation.get("id"), "image": files.get(annotation.get("image_id")), "caption": annotation["caption"]}
        with contextlib.suppress(AttributeError):
            # COCO's captions have a space or a line break at their ends here and there
            record["caption"] = record["caption"].strip()
        records.append(record)
    return records
