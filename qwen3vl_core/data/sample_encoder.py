"""Encodes one sample's files to tokens and patches; any problem with it is raised as DataError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from qwen3vl_core.data.batch import Encoded
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.processor import ChatProcessor, TokenizedSample

CONVERSATION = "json"
"""Part of a sample that holds {"messages": [...]}."""


class SampleEncoder:
    """`encoder(key, parts)` -> Encoded, or in two steps; stateless, so any process may hold one."""

    def __init__(self, processor: ChatProcessor, seq_length: int) -> None:
        self.processor, self.seq_length = processor, seq_length

    def __call__(self, key: str, parts: dict[str, bytes]) -> Encoded:
        """parts: `json`, pictures and videos, as stored. Raises DataError with a reason that can be counted."""
        return self.decode_media(self.tokenize(key, parts), parts)

    def tokenize(self, key: str, parts: dict[str, bytes]) -> TokenizedSample:
        """Tokens and labels without a pixel. Raises DataError."""
        return self.processor.tokenize(messages_of(parts), parts, key=key, limit=self.seq_length, tools=tools_of(parts))

    def size(self, parts: Mapping[str, BinaryIO]) -> tuple[int, int]:
        """(patches, tokens) of a sample from the headers of its media, its text estimated: a twentieth of the work. Raises DataError."""
        read = {CONVERSATION: parts[CONVERSATION].read()} if CONVERSATION in parts else {}
        return self.processor.size(messages_of(read), parts)

    def decode_media(self, tokenized: TokenizedSample, parts: dict[str, bytes]) -> Encoded:
        """Decode the media of a tokenized sample. Raises DataError."""
        return self.processor.decode_media(tokenized, parts)


def messages_of(parts: dict[str, bytes]) -> list[dict[str, Any]]:
    """The conversation of a sample. Raises DataError when there is none."""
    if CONVERSATION not in parts:
        raise DataError("no-json-part", part=CONVERSATION, parts=sorted(parts) or "nothing")
    try:
        loaded = json.loads(parts[CONVERSATION])
    except (ValueError, RecursionError) as error:
        raise DataError("json-unreadable", reason=str(error) or type(error).__name__) from error
    if not isinstance(loaded, dict) or "messages" not in loaded:
        raise DataError("no-messages")
    return loaded["messages"]


def tools_of(parts: dict[str, bytes]) -> list[Any] | None:
    """The functions that a sample declares, None in most. Raises DataError when they are not a list. Call `messages_of` first."""
    if b'"tools"' not in parts[CONVERSATION]:
        return None
    tools = json.loads(parts[CONVERSATION]).get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError("sample-tools")
    return tools
