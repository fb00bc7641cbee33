"""A checkpoint's tokenizer, chat template and picture rules: encodes conversations to tokens and patches.

Equal to `Qwen3VLProcessor` token for token and, after normalisation, pixel for pixel; needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen3vl_core import limits
from qwen3vl_core.data import chat_template, pictures, video_decode
from qwen3vl_core.data import video as videos
from qwen3vl_core.data.batch import Encoded, pixel_values
from qwen3vl_core.data.chat_template import ChatTemplate, MediaItem, Message
from qwen3vl_core.data.errors import DataError, picture_errors
from qwen3vl_core.data.media_limits import MediaLimits
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.data.video import VideoPlan, VideoRules
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_object, read_small
from qwen3vl_core.structure.micro_batch import IGNORED

PICTURE_CONFIG, VIDEO_CONFIG, BOTH_CONFIG = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


_NO_LIMITS = MediaLimits()
TEXT_BYTES = 4
"""Bytes of UTF-8 in a token of text, about: English has 4.5, Chinese 4, code 3. For estimates."""
TURN_TOKENS = 5
"""Around a turn: its role, line breaks, begin and end."""
SHOWN_TOKENS = 8
"""Around a temporal patch of a video: its time, begin and end. A picture has fewer."""


@dataclass(frozen=True)
class MediaPlan:
    """A picture or video of a sample, planned from its header."""

    item: MediaItem
    video: VideoPlan | None
    """None for a picture."""
    tokens: int
    """Of the picture, or of one temporal patch of the video."""
    rules: PictureRules
    """By which it is resized: VideoRules for a video."""

    @property
    def counts(self) -> list[int]:
        """Tokens of each placeholder: a picture has one, a video one for each temporal patch."""
        return [self.tokens] * (1 if self.video is None else len(self.video.times))


@dataclass(frozen=True)
class TokenizedSample:
    """A conversation's tokens, computed without decoding a pixel."""

    key: str
    ids: np.ndarray
    """int64 [s], as in Encoded."""
    labels: np.ndarray
    """int64 [s], as in Encoded."""
    media: tuple[MediaPlan, ...]
    """In the order of the text."""


class ChatProcessor:
    """Created by `ChatProcessor.from_pretrained(folder)`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        rules: PictureRules,
        eos_token_ids: list[int],
        pad_token_id: int,
        video_rules: VideoRules | None = None,
        outer_vision_tokens: bool = True,
        max_visual_tokens: int | None = None,
    ) -> None:
        self.max_visual_tokens = max_visual_tokens
        """Of a sample; its pictures and videos are made smaller to fit. None: no cap."""
        self.tokenizer, self.chat_template, self.rules = tokenizer, template, rules
        self.video_rules = video_rules
        """None if the checkpoint has no video processor."""
        self.eos_token_ids = eos_token_ids
        """Tokens that end an answer."""
        self.pad_token_id = pad_token_id
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(chat_template.PICTURE))
        self.video_token_id: int | None = tokenizer.get_vocab().get(chat_template.VIDEO)
        self.outer_vision_tokens = outer_vision_tokens
        self._backend = tokenizer.backend_tokenizer
        # tokenizer.json may set truncation; samples that are too long are counted, never truncated
        self._backend.no_truncation()
        self._backend.no_padding()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, limits: MediaLimits = _NO_LIMITS, *, video: dict[str, Any] | None = None,
        outer_vision_tokens: bool = True,
    ) -> ChatProcessor:  # fmt: skip
        """From a folder with a checkpoint's tokenizer, chat template and `preprocessor_config.json`; nothing is downloaded.

        limits: of pictures and videos, instead of the checkpoint's. video: entries that override those of
        `video_preprocessor_config.json`; None keeps the checkpoint's.
        outer_vision_tokens: keep the template's vision tokens around a video's timestamped frames, as transformers 5
        does; transformers 4 removed them.
        Raises RequestError that names what is missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RequestError(f"{folder}: no such folder; give a checkpoint with its tokenizer files")
        if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
            raise RequestError(f"{folder}: no tokenizer.json; copy the tokenizer files of the original checkpoint there")
        rules = PictureRules.from_config(*_media_config(folder, PICTURE_CONFIG, "image_processor"), limits.min_pixels, limits.max_pixels)
        video_rules = _video_rules(folder, {name: value for name, value in (video or {}).items() if value is not None}, limits)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            # the library raises various errors for damaged files, with messages about the hub
            reason = type(error).__name__
            raise RequestError(f"{folder}: the tokenizer cannot be read ({reason}); copy the original checkpoint's files there") from error
        if not tokenizer.is_fast:
            raise RequestError(f"{folder}: the tokenizer has no fast form; add tokenizer.json of the original checkpoint")
        _check_tokens(tokenizer, folder)
        generation = _json(folder / "generation_config.json", needed=False)
        eos = generation.get("eos_token_id", tokenizer.eos_token_id)
        pad = generation.get("pad_token_id", tokenizer.pad_token_id)
        eos_token_ids = [e for e in (eos if isinstance(eos, list) else [eos]) if isinstance(e, int)]
        if not eos_token_ids:
            raise RequestError(f"{folder}: no eos_token_id; copy generation_config.json of the original checkpoint there")
        template = ChatTemplate(tokenizer, _template(folder, tokenizer), str(folder))
        pad = pad if isinstance(pad, int) else eos_token_ids[0]
        return cls(tokenizer, template, rules, eos_token_ids, pad, video_rules, outer_vision_tokens, limits.max_visual_tokens)

    def encode(
        self, messages: list[Message], media: dict[str, bytes], *, key: str = "", limit: int | None = None, tools: list[Any] | None = None
    ) -> Encoded:
        """Encode a conversation for training. Labels cover the assistant's texts and the tokens that end them, nothing else.

        messages: [{"role", "content": text | [part]}] with parts {"type": "text", "text"}, {"type": "image", "part"},
        {"type": "video", "part"} and {"type": "video", "frames": [part], "fps"}; media: part -> the file's bytes.
        A message of the assistant with "loss": false is not trained; its "tool_calls" and `tools` go through the chat template.
        limit: maximum of tokens; checked before anything is decoded. Raises DataError.
        """
        return self.decode_media(self.tokenize(messages, media, key=key, limit=limit, tools=tools), media)

    def tokenize(
        self, messages: list[Message], media: dict[str, bytes], *, key: str = "", limit: int | None = None, tools: list[Any] | None = None
    ) -> TokenizedSample:
        """The tokens and labels of `encode`, from the headers of pictures and videos alone. Raises DataError."""
        text = self.chat_template.render(messages, tools=tools)
        media_plans = self._plan_media(chat_template.media_of(messages), media)
        clips = [plan.video for plan in media_plans if plan.video is not None]
        text = self._with_times(text, clips)
        encoding = self._backend.encode(text)
        ids = np.array(encoding.ids, dtype=np.int64)
        counts = [count for plan in media_plans for count in plan.counts]
        places = self._is_vision(ids)
        shown = int((ids == self.image_token_id).sum())
        if shown != len(media_plans) - len(clips) or places.sum() != len(counts):
            raise DataError("template-pictures", pictures=len(media_plans) - len(clips), shown=shown)
        length = len(ids) - len(counts) + sum(counts)
        if limit is not None and length > limit:
            raise DataError("too-long", tokens=length, most=limit, **self._way_to_fit(media_plans))
        begins = np.array([begin for begin, _ in encoding.offsets])
        trained = np.zeros(len(ids), dtype=bool)
        for begin, end in self.chat_template.answers(text, messages):
            trained |= (begins >= begin) & (begins < end)
        ids, trained = self._expand(ids, counts, trained)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        # position i predicts token i + 1
        labels[:-1] = np.where(trained[1:], ids[1:], IGNORED)
        if (labels == IGNORED).all():
            raise DataError("nothing-to-train")
        return TokenizedSample(key, ids, labels, media_plans)

    def decode_media(self, tokenized: TokenizedSample, media: dict[str, bytes]) -> Encoded:
        """Decode the media of a conversation, given as to `tokenize`. Raises DataError."""
        images, clips = [], []
        for plan in tokenized.media:
            name = plan.item.parts[0]
            if plan.video is None:
                values, grid = pictures.patches(pictures.decode(media[name], name), plan.rules)
                images.append((values, grid))
            else:
                assert isinstance(plan.rules, VideoRules)
                values, grid = videos.patches(_frames(plan.item, plan.video, media), plan.video, plan.rules)
                clips.append((values, grid))
            if grid[1] * grid[2] != plan.tokens * self.rules.merge_size**2:
                # a damaged header may state another size than that of the pixels
                raise DataError("picture-sizes-differ" if plan.video is None else "video-sizes-differ", name)
        patches, grids = _joined(images, self.rules.patch_bytes)
        if not clips:
            return Encoded(tokenized.key, tokenized.ids, tokenized.labels, patches, grids)
        assert self.video_rules is not None
        return Encoded(tokenized.key, tokenized.ids, tokenized.labels, patches, grids, *_joined(clips, self.video_rules.patch_bytes))

    def prompt(self, images: list[Image.Image], text: str) -> dict[str, torch.Tensor]:
        """One question about pictures, ready for the model to answer: what `Qwen3VLProcessor` gives for
        `apply_chat_template(..., add_generation_prompt=True)`.

        input_ids, attention_mask long [1, s]; with pictures also pixel_values float32 [n, 3 * frames * patch * patch] and
        image_grid_thw long [k, 3]. Raises RequestError for a text that holds the chat format's own tokens, and for a
        picture of extreme proportions.
        """
        content: list[dict[str, Any]] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        try:
            rendered = self.chat_template.render([{"role": "user", "content": content}], add_generation_prompt=True)
        except DataError as error:
            raise RequestError(f"--prompt: {error.detail}; rephrase it") from None
        try:
            patches, grids = _joined([pictures.patches(pictures.to_rgb(image), self.rules) for image in images], self.rules.patch_bytes)
        except DataError as error:
            raise RequestError(f"--images: {error.detail}; leave that picture out") from None
        ids = np.array(self._backend.encode(rendered).ids, dtype=np.int64)
        input_ids = torch.from_numpy(self._expand(ids, self._tokens(grids))[0])[None]
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if images:
            inputs["pixel_values"] = pixel_values(torch.from_numpy(patches), self.rules)
            inputs["image_grid_thw"] = torch.from_numpy(grids)
        return inputs

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def size(self, messages: list[Message], media: Mapping[str, bytes | BinaryIO]) -> tuple[int, int]:
        """(patches, tokens) of a conversation, from the headers of its media; tokens of text are estimated. Raises DataError."""
        text = sum(len(part.encode()) for message in chat_template.plain(messages) for part in _texts(message["content"]))
        counts = [count for plan in self._plan_media(chat_template.media_of(messages), media) for count in plan.counts]
        framing = TURN_TOKENS * len(messages) + SHOWN_TOKENS * len(counts)
        return sum(counts) * self.rules.merge_size**2, sum(counts) + text // TEXT_BYTES + framing

    def _plan_media(self, items: list[MediaItem], media: Mapping[str, bytes | BinaryIO]) -> tuple[MediaPlan, ...]:
        """The plan of each picture and video, made smaller together where the sample has more tokens of them than it may."""
        sizes = [self._size_of(item, media) for item in items]
        plans = [self._plan(item, size) for item, size in zip(items, sizes, strict=True)]
        total, most = sum(sum(plan.counts) for plan in plans), self.max_visual_tokens
        if most is None or total <= most:
            return tuple(plans)
        return tuple(
            self._plan(item, size, share=(sum(plan.counts), most, total)) for item, size, plan in zip(items, sizes, plans, strict=True)
        )

    def _size_of(self, item: MediaItem, media: Mapping[str, bytes | BinaryIO]) -> tuple[int, int] | video_decode.VideoHeader:
        """(height, width) of a picture, the header of a video. Raises DataError."""
        missing = next((name for name in item.parts if name not in media), None)
        if missing is not None:
            raise DataError("picture-not-in-sample" if item.kind == "image" else "video-not-in-sample", missing)
        name = item.parts[0]
        if item.kind == "image":
            return pictures.picture_size(media[name], name)
        if self.video_rules is None or self.video_token_id is None:
            raise DataError("video-unsupported", name, file=VIDEO_CONFIG)
        if item.fps is not None:
            return videos.folder_header(media[name], name, len(item.parts), item.fps)
        return video_decode.header(media[name], name)

    def _plan(
        self, item: MediaItem, size: tuple[int, int] | video_decode.VideoHeader, share: tuple[int, int, int] | None = None
    ) -> MediaPlan:
        """The plan of a picture or video. share: (its tokens without a cap, tokens of the sample's media with and without it)."""
        name = item.parts[0]
        if isinstance(size, tuple):
            rules = self.rules if share is None else _smaller(self.rules, self.rules.factor**2, *share)
            with picture_errors(name):
                return MediaPlan(item, None, pictures.token_count(*size, rules), rules)
        assert self.video_rules is not None
        video_rules, sampling = self.video_rules, dict(item.sampling)
        if share is not None:
            video_rules = _smaller(video_rules, video_rules.factor**2 * video_rules.temporal_patch_size, *share)
            sampling.pop("max_pixels", None)
        with video_decode.video_errors(name):
            planned = videos.plan(size, video_rules, sampling)
        return MediaPlan(item, planned, planned.tokens, video_rules)

    def _way_to_fit(self, plans: Sequence[MediaPlan]) -> dict[str, Any]:
        """What a message about a sample that is too long says of its media: how many tokens, and the option that helps."""
        by_kind = {
            kind: sum(sum(plan.counts) for plan in plans if (plan.video is None) == (kind == "pictures")) for kind in ("pictures", "videos")
        }
        larger = max(by_kind, key=lambda kind: by_kind[kind])
        if not by_kind[larger]:
            return {"way": "use a longer --seq-length"}
        flags = "--max-pixels" if larger == "pictures" else "--video-max-frames or --video-max-pixels"
        return {"way": f"{by_kind[larger]:,} are of {larger}: use a smaller {flags}, --max-visual-tokens, or a longer --seq-length"}

    def _with_times(self, text: str, planned: list[VideoPlan]) -> str:
        """The text with each video's timestamps, a VIDEO token after each."""
        if not planned:
            return text
        start, end, token = chat_template.VISION_START, chat_template.VISION_END, chat_template.VIDEO
        placeholder = token if self.outer_vision_tokens else f"{start}{token}{end}"
        pieces = text.split(placeholder)
        if len(pieces) != len(planned) + 1:
            raise DataError("template-videos", videos=len(planned), shown=len(pieces) - 1)
        times = [videos.placeholders(video.times, token, start, end) for video in planned]
        return "".join(part for pair in zip(pieces, [*times, ""], strict=True) for part in pair)

    def _is_vision(self, ids: np.ndarray) -> np.ndarray:
        """bool [s]: the placeholders of pictures and videos."""
        return (ids == self.image_token_id) | (ids == (-1 if self.video_token_id is None else self.video_token_id))

    def _tokens(self, grids: np.ndarray) -> list[int]:
        return (grids.prod(axis=1) // self.rules.merge_size**2).tolist()

    def _expand(self, ids: np.ndarray, counts: list[int], *aligned: np.ndarray) -> tuple[np.ndarray, ...]:
        """Repeat each placeholder once per token of its medium, in the ids and in the arrays aligned with them."""
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[self._is_vision(ids)] = counts
        return tuple(np.repeat(values, repeats) for values in (ids, *aligned))


_Rules = TypeVar("_Rules", bound=PictureRules)


def _smaller(rules: _Rules, area: int, own: int, most: int, total: int) -> _Rules:
    """The rules for a medium of `own` tokens, each of `area` pixels, in a sample whose media may have `most` tokens instead of `total`."""
    largest = max(area, own * area * most // total)
    return replace(rules, max_pixels=largest, min_pixels=min(rules.min_pixels, largest))


def _frames(medium: MediaItem, planned: VideoPlan, media: dict[str, bytes]) -> list[np.ndarray]:
    if medium.fps is None:
        return videos.decode(media[medium.parts[0]], planned, medium.parts[0])
    return videos.decode_folder([media[name] for name in medium.parts], planned, list(medium.parts))


def _texts(content: Any) -> list[str]:
    """The texts of a message's content that `plain` accepts."""
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _joined(patches: list[tuple[np.ndarray, tuple[int, int, int]]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(patches uint8 [n, width], grids int64 [k, 3]) of all pictures or videos."""
    grids = np.array([grid for _, grid in patches], dtype=np.int64).reshape(-1, 3)
    if len(patches) == 1:
        return patches[0][0], grids
    return np.concatenate([np.zeros((0, width), dtype=np.uint8), *(values for values, _ in patches)]), grids


def _media_config(folder: Path, name: str, nested: str) -> tuple[dict[str, Any], str]:
    """(config of the picture or video processor, its location for messages). Raises RequestError without one."""
    if not (folder / name).is_file():
        # transformers 5 saves all of them in one file
        config = _json(folder / BOTH_CONFIG, needed=False).get(nested)
        if isinstance(config, dict):
            return config, f"{folder / BOTH_CONFIG}: {nested}"
    return _json(folder / name), str(folder / name)


def _video_rules(folder: Path, overrides: dict[str, Any], limits: MediaLimits) -> VideoRules | None:
    """None for a checkpoint without a video processor."""
    if not (folder / VIDEO_CONFIG).is_file() and "video_processor" not in _json(folder / BOTH_CONFIG, needed=False):
        return None
    config, location = _media_config(folder, VIDEO_CONFIG, "video_processor")
    return VideoRules.from_config(config | limits.video_config(config) | overrides, location)


def _json(file: Path, needed: bool = True) -> dict[str, Any]:
    """A JSON object from a checkpoint. Raises RequestError when it is missing or not an object."""
    if not needed and not file.exists():
        return {}
    return read_object(file, limits.CONFIG, copy="copy it from the original checkpoint")


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's chat template, from any of the places where releases of transformers store it. Raises RequestError without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_small(file, limits.CHAT_TEMPLATE).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{file}: cannot be read ({error}); copy it from the original checkpoint again") from None
    template = _json(folder / "chat_template.json", needed=False).get("chat_template") or tokenizer.chat_template
    if not isinstance(template, str):
        raise RequestError(f"{folder}: no chat template; copy chat_template.jinja (or .json) of the original checkpoint there")
    if len(template) > limits.CHAT_TEMPLATE:
        raise RequestError(f"{folder}: a chat template of {len(template):,} characters; copy that of the original checkpoint there")
    return template


def _check_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises RequestError unless the tokenizer knows Qwen's tokens, and agrees with config.json on the placeholder."""
    known = tokenizer.get_vocab()
    missing = [token for token in (chat_template.TURN, chat_template.TURN_END, chat_template.PICTURE) if token not in known]
    if missing:
        raise RequestError(f"{folder}: the tokenizer has no {missing[0]}; this reads Qwen3-VL's; copy the original's tokenizer files there")
    stated = _json(folder / "config.json", needed=False).get("image_token_id", known[chat_template.PICTURE])
    if stated != known[chat_template.PICTURE]:
        raise RequestError(
            f"{folder}: config.json says image_token_id {stated}, the tokenizer says {known[chat_template.PICTURE]}; "
            "take both from the same checkpoint"
        )
