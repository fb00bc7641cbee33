"""Captions for many prompts: batches of equal length, each row at its own pace, text streamed as it is written."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qwen3vl_core.model.cpu import suit_threads

import torch
from torch import Tensor

from qwen3vl_core.caption.sampling import Sampling, choose_tokens
from qwen3vl_core.errors import WorkError

Decode = Callable[[list[int]], str]
OnText = Callable[[int, str, bool], None]

# bytes of inputs that may wait for prompts of the same length; above it the largest group is generated as it is
WAITING_BYTES = 512 << 20
# a batch is compacted when at least this share of its rows is finished
FINISHED_SHARE = 0.25
NOT_FINITE = "the model gives numbers that are not finite; compare a checkpoint from before its training diverged, or use --precision fp32"
# what a byte-level tokenizer decodes an unfinished character to
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Prompt:
    """One prompt: `inputs` as the processor gives them for one conversation (input_ids [1, s], pixel_values, …)."""

    inputs: Mapping[str, Tensor]
    seed: int = 0
    """Of the sampling of this caption."""

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(t.numel() * t.element_size() for t in self.inputs.values())


@dataclass(frozen=True)
class GeneratedCaption:
    """A generated caption."""

    text: str
    ids: list[int]
    """Tokens, without the one that ended them."""
    seconds: float
    """Wall time from the start of its batch to its last token."""
    whole: bool
    """False when it was cut off at `max_new_tokens`."""


def whole_characters(text: str) -> str:
    """The text without a trailing character of which only the first bytes have been generated."""
    return text.rstrip(INCOMPLETE)


class _StreamedText:
    """The text of a growing list of tokens, each token decoded about once. Never ends inside a character."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.settled = ""
        self.used = 0

    def of(self, ids: list[int]) -> str:
        waiting = self.decode(ids[self.used :]) if len(ids) > self.used else ""
        if not waiting.endswith(INCOMPLETE):
            self.settled += waiting
            self.used = len(ids)
            return self.settled
        return self.settled + whole_characters(waiting)


@dataclass
class _RunningCaption:
    """A caption in progress."""

    index: int
    random: random.Random
    text: _StreamedText
    ids: list[int] = field(default_factory=list)


def _collate(prompts: list[Prompt], device: torch.device) -> dict[str, Tensor]:
    """The inputs of several prompts of equal length collated into one batch; pixels and grids are concatenated."""
    names = {name: None for prompt in prompts for name in prompt.inputs if name != "attention_mask"}
    return {name: torch.cat([p.inputs[name] for p in prompts if name in p.inputs]).to(device) for name in names}


@contextlib.contextmanager
def _threads_for(model) -> Iterator[None]:
    """Set the number of CPU threads to suit the model within the block."""
    previous = suit_threads(sum(p.numel() for p in model.parameters()))
    try:
        yield
    finally:
        torch.set_num_threads(previous)


class CaptionWriter:
    """Writes captions with one model.

    model: a `Qwen3VLModel`. decode: token ids to text. eos_token_ids: tokens that end a caption. on_text(index, text so
    far, done) is called for each caption at most every `interval` seconds and once at its end; the texts of one caption
    are each the beginning of the next.
    """

    def __init__(
        self,
        model,
        decode: Decode,
        eos_token_ids: Collection[int],
        sampling: Sampling,
        *,
        batch_size: int = 16,
        on_text: OnText | None = None,
        interval: float = 0.1,
    ) -> None:
        if batch_size < 1 or sampling.max_new_tokens < 1:
            raise ValueError(f"batch size {batch_size}, longest caption {sampling.max_new_tokens}: must be at least 1")
        self.model, self.decode, self.sampling = model, decode, sampling
        self.ends = frozenset(eos_token_ids)
        self.batch_size, self.on_text, self.interval = batch_size, on_text, interval
        self.started = time.monotonic()
        """Start of the current batch, in seconds of `time.monotonic`."""
        self.finished: dict[int, GeneratedCaption] = {}
        """Captions by the index of their prompt, added as each is complete; kept when generation is interrupted."""

    def write(self, prompts: Iterable[Prompt]) -> list[GeneratedCaption]:
        """One caption for each prompt, in order. Prompts are taken one by one and held until as many of the same length
        are there as fit a batch, or their pixels fill `WAITING_BYTES`. Raises WorkError for a model that gives NaN."""
        self.finished.clear()
        with _threads_for(self.model):
            for group in self._groups(prompts):
                self._write_batch(group)
        return [self.finished[index] for index in sorted(self.finished)]

    def _groups(self, prompts: Iterable[Prompt]) -> Iterator[list[tuple[int, Prompt]]]:
        """Batches of equal length, each prompt with its number."""
        waiting: dict[int, list[tuple[int, Prompt]]] = {}
        held = 0
        for index, prompt in enumerate(prompts):
            length = prompt.length
            waiting.setdefault(length, []).append((index, prompt))
            held += prompt.size
            if held > WAITING_BYTES:
                length = max(waiting, key=lambda key: len(waiting[key]))
            if held > WAITING_BYTES or len(waiting[length]) == self.batch_size:
                group = waiting.pop(length)
                held -= sum(p.size for _, p in group)
                yield group
        yield from waiting.values()

    @torch.inference_mode()
    def _write_batch(self, group: list[tuple[int, Prompt]]) -> None:
        """Captions of at most batch_size prompts of equal length."""
        started = reported = self.started = time.monotonic()
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
            for slot, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                if row is None:
                    continue
                ended = token in self.ends
                if not ended:
                    row.ids.append(token)
                if ended or len(row.ids) == self.sampling.max_new_tokens:
                    text = whole_characters(self.decode(row.ids)) if row.ids else ""
                    self.finished[row.index] = GeneratedCaption(text, row.ids, now - started, ended)
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
