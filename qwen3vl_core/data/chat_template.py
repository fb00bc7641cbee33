"""Renders conversations with the checkpoint's own chat template, and finds the text to train on.

The text is always the template's, so that training and inference see the same; only the ChatML tokens around a turn are known
here. Text that contains one of the format's tokens is refused: it could end a turn, or stand for a picture that does not
exist.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from qwen3vl_core import limits
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.records import CONTROL
from qwen3vl_core.data.template_trial import try_template
from qwen3vl_core.errors import RequestError

TURN, TURN_END = "<|im_start|>", "<|im_end|>"
PICTURE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
ROLES = ("system", "user", "assistant", "tool")

SAMPLING = ("fps", "nframes", "min_frames", "max_frames", "start", "end", "max_pixels")

Message = dict[str, Any]
_ANSWER = re.compile(re.escape(TURN) + r"assistant\n(.*?)" + re.escape(TURN_END), re.DOTALL)


class ChatTemplate:
    """The checkpoint's template, checked when it is created; `where` names the checkpoint in errors."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, where: str) -> None:
        self._tokenizer, self._template = tokenizer, template
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]}]
        answer = [*question, {"role": "assistant", "content": [{"type": "text", "text": "answer"}]}]
        if (excess := try_template(template, [question, answer])) is not None:
            raise RequestError(f"{where}: the chat template {excess}; take it from the original checkpoint")
        try:
            with _time_limit(limits.TEMPLATE_SECONDS):
                asked, opened, answered = self._apply(question), self._apply(question, add_generation_prompt=True), self._apply(answer)
        except DataError as error:
            raise RequestError(f"{where}: the chat template fails ({error.detail}); take it from the original checkpoint") from None
        answers = _ANSWER.findall(answered)
        if len(answers) != 1 or not answers[0].endswith("answer") or asked.count(PICTURE) != 1 or not opened.startswith(asked):
            raise RequestError(f"{where}: the chat template is not Qwen's ({TURN}role …{TURN_END}); take it from the original checkpoint")
        # the part of an answer that the inference prompt already contains (thinking models open a tag): not trained
        self._opening = opened[len(asked) :].removeprefix(f"{TURN}assistant\n")

    def _apply(self, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self._template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            return str(text)
        except Exception as error:
            # templates raise jinja's errors and anything that their expressions raise
            raise DataError("chat-template-fails", type(error).__name__, reason=str(error)) from error

    def render(self, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None) -> str:
        """The conversation's text, a PICTURE for each picture, a VIDEO for each video. Raises DataError for invalid messages.

        tools: declarations of functions; DataError when the template does not show them, or the calls of an answer.
        """
        checked = plain(messages)
        if tools or any("tool_calls" in message for message in checked):
            if not self._shows_tools:
                raise DataError("tools-not-shown")
            _text(json.dumps(tools, ensure_ascii=False), "tools")
        return self._apply(checked, add_generation_prompt, tools)

    @functools.cached_property
    def _shows_tools(self) -> bool:
        """Whether tools, calls and their results all reach the text: a template without them drops them in silence."""
        function = {"name": "probe_declared", "description": "", "parameters": {"type": "object", "properties": {}}}
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "question"}]},
            {
                "role": "assistant",
                "content": [],
                "tool_calls": [{"type": "function", "function": {"name": "probe_called", "arguments": {}}}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "probe_result"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "answer"}]},
        ]
        try:
            text = self._apply(messages, tools=[{"type": "function", "function": function}])
        except DataError:
            return False
        return all(word in text for word in ("probe_declared", "probe_called", "probe_result"))

    def answers(self, text: str, messages: list[Message] | None = None) -> list[tuple[int, int]]:
        """(begin, end) in `text` of the trained spans: each assistant's text and the token that ends the turn.

        messages: of which `text` is the rendering; answers with "loss": false are left out. Raises DataError when the template
        does not show each answer once.
        """
        spans = self._spans(text)
        if messages is None or not any(message.get("loss") is False for message in messages):
            return spans
        trained = [message.get("loss") is not False for message in messages if message["role"] == "assistant"]
        if len(trained) != len(spans):
            raise DataError("answers-differ", answers=len(trained), shown=len(spans))
        return [span for span, is_trained in zip(spans, trained, strict=True) if is_trained]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        spans = []
        for match in _ANSWER.finditer(text):
            begin = match.start(1)
            spans.append((begin + len(self._opening) * text.startswith(self._opening, begin), match.end()))
        return spans


class _TooSlow(Exception):
    def __str__(self) -> str:
        return f"it takes over {limits.TEMPLATE_SECONDS} s for a short conversation"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises _TooSlow in the block after so many seconds; without effect outside the main thread, the only one that gets signals."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def late(number: int, frame: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class MediaItem:
    """A picture or a video of a conversation, by the names of its files in the sample."""

    kind: str
    """image or video"""
    parts: tuple[str, ...]
    """One name; for a video of frames, the names of the frames."""
    fps: float | None = None
    """Frames per second, for a video of frames."""
    sampling: tuple[tuple[str, float], ...] = ()
    """Which frames of this video are taken, as `video.Sampling` has it: fps, nframes, min_frames, max_frames, start, end, max_pixels."""


def media_of(messages: list[Message]) -> list[MediaItem]:
    """Pictures and videos of a conversation that `plain` accepts, in order. Raises DataError for one without a name."""
    parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"] if part["type"] in ("image", "video")]
    return [_medium(part) for part in parts]


def _medium(part: dict[str, Any]) -> MediaItem:
    kind, frames = part["type"], part.get("frames")
    if kind == "video" and frames is not None:
        fps = part.get("fps")
        if not isinstance(frames, list) or not frames or not all(isinstance(name, str) for name in frames):
            raise DataError("frames-not-names")
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 1e-3 <= fps <= 1e5:
            raise DataError("frames-without-fps", fps=repr(fps))
        return MediaItem(kind, tuple(frames), float(fps), _sampling(part))
    if not isinstance(part.get("part"), str):
        raise DataError("medium-without-part", medium="an image" if kind == "image" else "a video")
    return MediaItem(kind, (part["part"],), None, _sampling(part) if kind == "video" else ())


def _sampling(part: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    options = part.get("sampling")
    if options is None:
        return ()
    usable = isinstance(options, dict) and all(
        name in SAMPLING and type(value) in (int, float) and 0 <= value < 1e12 and (value > 0 or name == "start")
        for name, value in options.items()
    )
    if not usable:
        raise DataError("video-sampling", names=SAMPLING)
    return tuple(options.items())


def plain(messages: Any) -> list[Message]:
    """Messages reduced to roles, texts and placeholders of media. Raises DataError for anything else.

    Data on disk is not trusted: a template renders any key that it looks for.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError("not-messages")
    checked = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError("message-role", f"message {place}", roles=ROLES)
        content = message.get("content")
        if isinstance(content, str):
            checked.append({"role": message["role"], "content": _text(content, f"message {place}")})
        elif isinstance(content, list):
            checked.append({"role": message["role"], "content": [_part(part, place) for part in content]})
        else:
            raise DataError("message-content", f"message {place}")
        if message.get("tool_calls"):
            checked[-1]["tool_calls"] = _calls(message["tool_calls"], place)
    return checked


def _part(part: Any, place: int) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), f"message {place}")}
    if kind in ("image", "video") and isinstance(part.get("part", ""), str):
        return {"type": kind}
    raise DataError("message-part", f"message {place}")


def _calls(calls: Any, place: int) -> list[dict[str, Any]]:
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls] if isinstance(calls, list) else [None]
    if not all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        raise DataError("message-tool-calls", f"message {place}")
    _text(json.dumps(functions, ensure_ascii=False), f"message {place}")
    return [{"type": "function", "function": function} for function in functions]


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise DataError("message-without-text", where)
    token = CONTROL.search(text)
    if token:
        raise DataError("control-token", where, token=token.group())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("message-lone-surrogate", where) from None
    return text
