"""Generates captions for many prompts: in batches of prompts of equal length, finished rows removed early, text streamed."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.model.cpu import suit_threads

import torch
from torch import Tensor

from qwen3vl_core.caption.sampling import Sampling, choose_tokens
from qwen3vl_core.errors import WorkError

Decode = Callable[[list[int]], str]
OnText = Callable[[int, str, bool], None]

# bytes of inputs that may wait for more prompts of the same length; above it the largest group is generated as it is
WAITING_BYTES = 512 << 20
# a batch is compacted when at least this share of its rows is finished
FINISHED_SHARE = 0.25
NOT_FINITE = "the model's logits are NaN or infinite; compare a checkpoint from before its training diverged, or use --precision fp32"
# a byte-level tokenizer decodes an incomplete character to this
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Prompt:
    """One prompt: the processor's outputs for one conversation (input_ids [1, s], pixel_values, …)."""

    inputs: Mapping[str, Tensor]
    seed: int = 0
    """Seed for the sampling of this caption."""

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def size(self) -> int:
        """Bytes of the inputs."""
        return sum(t.numel() * t.element_size() for t in self.inputs.values())


@dataclass(frozen=True)
class GeneratedCaption:
    """A generated caption."""

    text: str
    ids: list[int]
    """Generated tokens, without the EOS token."""
    seconds: float
    """Its share of the time: what all captions of a batch are written in together is divided equally among them."""
    whole: bool
    """False when it was cut off at `max_new_tokens`."""


def whole_characters(text: str) -> str:
    """The text without an incomplete character at its end, of which only the first bytes have been generated."""
    return text.rstrip(INCOMPLETE)


class _StreamedText:
    """The text of a growing list of tokens; each token is decoded about once. Never ends inside a character."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.final = ""
        self.decoded = 0

    def of(self, ids: list[int]) -> str:
        pending = self.decode(ids[self.decoded :]) if len(ids) > self.decoded else ""
        if not pending.endswith(INCOMPLETE):
            self.final += pending
            self.decoded = len(ids)
            return self.final
        return self.final + whole_characters(pending)


@dataclass
class _RunningCaption:
    """A caption in progress."""

    index: int
    random: random.Random
    text: _StreamedText
    ids: list[int] = field(default_factory=list)


def _collate(prompts: list[Prompt], device: torch.device) -> dict[str, Tensor]:
    """The inputs of several prompts of equal length as one batch; pixels and grids are concatenated."""
    names = {name: None for prompt in prompts for name in prompt.inputs if name != "attention_mask"}
    return {name: torch.cat([p.inputs[name] for p in prompts if name in p.inputs]).to(device) for name in names}


@contextlib.contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    """Inside this context the number of CPU threads suits the size of the model."""
    previous = suit_threads(sum(p.numel() for p in model.parameters()))
    try:
        yield
    finally:
        torch.set_num_threads(previous)


class CaptionWriter:
    """Writes captions with one model.

    model: a `Qwen3VLModel`. decode: token ids to text. eos_token_ids: tokens that end a caption. on_text(index, text so
    far, done) is called for each caption at most every `interval` seconds and once at its end; each text of a caption is a prefix of
    the next.
    """

    def __init__(
        self,
        model: Any,
        decode: Decode,
        eos_token_ids: Collection[int],
        sampling: Sampling,
        *,
        batch_size: int = 16,
        on_text: OnText | None = None,
        interval: float = 0.1,
    ) -> None:
        if batch_size < 1 or sampling.max_new_tokens < 1:
            raise ValueError(f"batch size {batch_size}, max_new_tokens {sampling.max_new_tokens}: must be at least 1")
        self.model, self.decode, self.sampling = model, decode, sampling
        self.ends = frozenset(eos_token_ids)
        self.batch_size, self.on_text, self.interval = batch_size, on_text, interval
        self.seconds: dict[int, float] = {}
        """Time of each caption so far, by the index of its prompt, as in `GeneratedCaption.seconds`."""
        self.finished: dict[int, GeneratedCaption] = {}
        """Finished captions, by the index of their prompt; still available when generation is interrupted."""

    def write(self, prompts: Iterable[Prompt]) -> list[GeneratedCaption]:
        """One caption for each prompt, in order. Prompts are read one by one and wait until a batch of the same length is full, or
        their inputs exceed `WAITING_BYTES`. Raises WorkError when the logits are NaN or infinite."""
        self.finished.clear()
        self.seconds.clear()
        with _threads_for(self.model):
            for group in self._groups(prompts):
                self._write_batch(group)
        return [self.finished[index] for index in sorted(self.finished)]

    def _groups(self, prompts: Iterable[Prompt]) -> Iterator[list[tuple[int, Prompt]]]:
        """Batches of prompts of equal length, each prompt with its index."""
        waiting: dict[int, list[tuple[int, Prompt]]] = {}
        waiting_bytes = 0
        for index, prompt in enumerate(prompts):
            length = prompt.length
            waiting.setdefault(length, []).append((index, prompt))
            waiting_bytes += prompt.size
            if waiting_bytes > WAITING_BYTES:
                length = max(waiting, key=lambda key: len(waiting[key]))
            if waiting_bytes > WAITING_BYTES or len(waiting[length]) == self.batch_size:
                group = waiting.pop(length)
                waiting_bytes -= sum(p.size for _, p in group)
                yield group
        yield from waiting.values()

    @torch.inference_mode()
    def _write_batch(self, group: list[tuple[int, Prompt]]) -> None:
        """Captions of at most batch_size prompts of equal length."""
        since = reported = time.monotonic()
        prompts = [prompt for _, prompt in group]
        # None: the row is finished, but the batch has not been compacted yet
        rows: list[_RunningCaption | None] = [
            _RunningCaption(index, random.Random(prompt.seed), _StreamedText(self.decode)) for index, prompt in group
        ]
        decoder = self.model.cached_decoder(prompts[0].length + self.sampling.max_new_tokens)
        logits = decoder.prefill(**_collate(prompts, next(self.model.parameters()).device))
        while True:
            draws = [row.random.random() if row else 0.0 for row in rows]
            if not bool(logits.isfinite().all()):
                raise WorkError(NOT_FINITE)
            tokens = choose_tokens(logits, self.sampling, draws)
            now = time.monotonic()
            written = list(filter(None, rows))
            for writing in written:
                self.seconds[writing.index] = self.seconds.get(writing.index, 0.0) + (now - since) / len(written)
            since = now
            for slot, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                if row is None:
                    continue
                ended = token in self.ends
                if not ended:
                    row.ids.append(token)
                if ended or len(row.ids) == self.sampling.max_new_tokens:
                    text = whole_characters(self.decode(row.ids)) if row.ids else ""
                    self.finished[row.index] = GeneratedCaption(text, row.ids, self.seconds[row.index], ended)
                    rows[slot] = None
                    if self.on_text:
                        self.on_text(row.index, text, True)
            active = [slot for slot, row in enumerate(rows) if row is not None]
            if not active:
                return
            if self.on_text and now - reported >= self.interval:
                reported = now
                for row in filter(None, rows):
                    self.on_text(row.index, row.text.of(row.ids), False)
            if len(active) <= len(rows) * (1 - FINISHED_SHARE):
                decoder.keep_rows(active)
                rows, tokens = [rows[slot] for slot in active], tokens[active]
            logits = decoder.decode(tokens)
