"""A checkpoint's tokenizer, chat template and picture rules as one thing: conversations in, tokens and patches out.

Equal to `Qwen3VLProcessor` token for token and, after normalising, pixel for pixel; needs no torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen3vl_core.data import pictures, template
from qwen3vl_core.data.batch import IGNORED, Encoded, pixel_values
from qwen3vl_core.data.faults import DataError, picture_faults
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.data.template import ChatTemplate, Message
from qwen3vl_core.errors import RequestError

PICTURE_CONFIG = "preprocessor_config.json"


class ChatProcessor:
    """Made by `ChatProcessor.from_pretrained(folder)`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: ChatTemplate,
        rules: PictureRules,
        eos_token_ids: list[int],
        pad_token_id: int,
    ) -> None:
        self.tokenizer, self.chat_template, self.rules = tokenizer, chat_template, rules
        self.eos_token_ids = eos_token_ids
        """Tokens that end an answer."""
        self.pad_token_id = pad_token_id
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(template.PICTURE)
        self._backend = tokenizer.backend_tokenizer
        # a tokenizer.json may carry a limit from elsewhere; what is too long is counted, never cut
        self._backend.no_truncation()
        self._backend.no_padding()

    @classmethod
    def from_pretrained(cls, folder: str | Path, min_pixels: int | None = None, max_pixels: int | None = None) -> ChatProcessor:
        """From a folder with a checkpoint's tokenizer, chat template and `preprocessor_config.json`; nothing is downloaded.

        min_pixels, max_pixels: areas that pictures are resized into, instead of the checkpoint's.
        Raises RequestError that names what is missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RequestError(f"{folder}: no such folder; give a checkpoint with its tokenizer files")
        if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
            raise RequestError(f"{folder}: no tokenizer.json; copy the tokenizer files of the original checkpoint there")
        rules = PictureRules.from_config(_json(folder / PICTURE_CONFIG), str(folder / PICTURE_CONFIG), min_pixels, max_pixels)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            # the library raises many kinds for damaged files, and its messages advise about the hub
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
        made = ChatTemplate(tokenizer, _template(folder, tokenizer), str(folder))
        return cls(tokenizer, made, rules, eos_token_ids, pad if isinstance(pad, int) else eos_token_ids[0])

    def encode(self, messages: list[Message], media: dict[str, bytes], *, key: str = "", limit: int | None = None) -> Encoded:
        """A conversation for training. Labels cover the assistants' texts and the tokens that end them, nothing else.

        messages: [{"role", "content": text | [{"type": "image", "part"} | {"type": "text", "text"}]}]; media: part -> the
        picture's file. limit: most tokens; checked before a picture is decoded. Raises DataError.
        """
        text = self.chat_template.render(messages)
        names = template.picture_parts(messages)
        missing = next((name for name in names if name not in media), None)
        if missing is not None:
            raise DataError("missing_picture", f"{missing} is not in the sample")
        counts = [self._token_count(media[name], name) for name in names]
        found = self._backend.encode(text)
        ids = np.array(found.ids, dtype=np.int64)
        if (ids == self.image_token_id).sum() != len(counts):
            raise DataError("bad_messages", f"{len(counts)} pictures, but the chat template shows {(ids == self.image_token_id).sum()}")
        length = len(ids) - len(counts) + sum(counts)
        if limit is not None and length > limit:
            raise DataError("too_long", f"{length} tokens, {limit} at most")
        begins = np.array([begin for begin, _ in found.offsets])
        trained = np.zeros(len(ids), dtype=bool)
        for begin, end in self.chat_template.answers(text):
            trained |= (begins >= begin) & (begins < end)
        ids, trained = self._expand(ids, counts, trained)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        # position i predicts token i + 1
        labels[:-1] = np.where(trained[1:], ids[1:], IGNORED)
        if (labels == IGNORED).all():
            raise DataError("no_trained_token", "no assistant's answer in the conversation")
        patches, grids = self._patches([pictures.decode(media[name], name) for name in names])
        return Encoded(key=key, ids=ids, labels=labels, patches=patches, grids=grids)

    def prompt(self, images: list[Image.Image], text: str) -> dict[str, torch.Tensor]:
        """One question about pictures, ready for the model to answer: what `Qwen3VLProcessor` gives for
        `apply_chat_template(..., add_generation_prompt=True)`.

        input_ids, attention_mask long [1, s]; with pictures also pixel_values float32 [n, 3 * frames * patch * patch] and
        image_grid_thw long [k, 3]. Raises RequestError for a text that holds the chat format's own tokens, and for a
        picture of extreme proportions.
        """
        content: list[dict[str, Any]] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        try:
            whole = self.chat_template.render([{"role": "user", "content": content}], add_generation_prompt=True)
        except DataError as error:
            raise RequestError(f"--prompt: {error.detail}; write it in other words") from None
        try:
            patches, grids = self._patches([pictures.to_rgb(image) for image in images])
        except DataError as error:
            raise RequestError(f"--images: {error.detail}; leave that picture out") from None
        ids = np.array(self._backend.encode(whole).ids, dtype=np.int64)
        input_ids = torch.from_numpy(self._expand(ids, self._tokens(grids))[0])[None]
        made = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if images:
            made["pixel_values"] = pixel_values(torch.from_numpy(patches), self.rules)
            made["image_grid_thw"] = torch.from_numpy(grids)
        return made

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, without the special ones."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _token_count(self, data: bytes, name: str) -> int:
        with picture_faults(name):
            return pictures.token_count(*pictures.picture_size(data, name), self.rules)

    def _tokens(self, grids: np.ndarray) -> list[int]:
        return (grids.prod(axis=1) // self.rules.merge_size**2).tolist()

    def _patches(self, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """RGB pictures -> (uint8 [n, 3 * p * p], int64 [k, 3])"""
        made = [pictures.patches(image, self.rules) for image in images]
        empty = np.zeros((0, self.rules.patch_bytes), dtype=np.uint8)
        grids = np.array([grid for _, grid in made], dtype=np.int64).reshape(-1, 3)
        return np.concatenate([empty, *(values for values, _ in made)]), grids

    def _expand(self, ids: np.ndarray, counts: list[int], *beside: np.ndarray) -> tuple[np.ndarray, ...]:
        """Repeat each picture's placeholder once for each of its tokens, and whatever runs beside the ids with it."""
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[ids == self.image_token_id] = counts
        return tuple(np.repeat(values, repeats) for values in (ids, *beside))


def _json(file: Path, needed: bool = True) -> dict[str, Any]:
    """A JSON object from a checkpoint. Raises RequestError when it is missing or something else."""
    if not needed and not file.exists():
        return {}
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{file}: no such file; copy it from the original checkpoint") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"{file}: not JSON ({error}); copy it from the original checkpoint again") from None
    if not isinstance(loaded, dict):
        raise RequestError(f"{file}: not a JSON object; copy it from the original checkpoint again")
    return loaded


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's chat template, from where the releases of transformers keep it. Raises RequestError without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = _json(folder / "chat_template.json", needed=False).get("chat_template") or tokenizer.chat_template
    if not isinstance(found, str):
        raise RequestError(f"{folder}: no chat template; copy chat_template.jinja (or .json) of the original checkpoint there")
    return found


def _check_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises RequestError unless the tokenizer knows Qwen's tokens, and the placeholder that config.json speaks of."""
    known = tokenizer.get_vocab()
    missing = [token for token in (template.TURN, template.TURN_END, template.PICTURE) if token not in known]
    if missing:
        raise RequestError(f"{folder}: the tokenizer has no {missing[0]}; this reads Qwen3-VL's; copy the original's tokenizer files there")
    stated = _json(folder / "config.json", needed=False).get("image_token_id", known[template.PICTURE])
    if stated != known[template.PICTURE]:
        raise RequestError(
            f"{folder}: config.json says image_token_id {stated}, the tokenizer says {known[template.PICTURE]}; "
            "take both from the same checkpoint"
        )
