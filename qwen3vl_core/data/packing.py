"""Packs samples into rows of the sequence length; only the media of a rank's own rows are decoded.

The order of the samples is cut into windows of about `ROWS` rows; within a window, best-fit packing assigns samples to rows
by their token lengths, which are known from media headers. A window is a function of seed and position alone, so every rank
and loader process computes the same rows on its own and decodes only its own; the window's position and the number of rows
used are enough to resume. Each sample is packed once in each epoch. Its length is measured by one of the processes of a machine,
once in a run (`shared_lengths`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from qwen3vl_core.data.balance import Deal
from qwen3vl_core.data.batch import Batch, Encoded, pack
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.micro_batches import Batches, LoadedMicroBatch, Skip
from qwen3vl_core.data.processor import TokenizedSample
from qwen3vl_core.data.sample_order import seeded
from qwen3vl_core.data.shared_lengths import Length, SharedLengths
from qwen3vl_core.errors import WorkError

ROWS = 128
"""Rows' worth of tokens in a window. The last row of a window is not full."""
MOST_SAMPLES = 1 << 14
"""In a window: reading more would delay the first step."""
_SHUFFLE = 0x9AC6
_PLANNED_AT = 0.75
"""Share of a window's rows after which the next window is planned."""
_LOOK_AHEAD = 256
"""Samples after the one whose length is needed that a process measures while another one is measuring that."""


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of `lengths`, grouped so that each group's sum is at most `room`: the longest first, each into the fullest
    group with enough room. Each length is at most `room`."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []
    """(free room, group), ascending"""
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(free, (lengths[place], -1))
        if at == len(free):
            groups.append([])
            remaining, group = room, len(groups) - 1
        else:
            remaining, group = free.pop(at)
        groups[group].append(place)
        insort(free, (remaining - lengths[place], group))
    return groups


@dataclass(frozen=True)
class Window:
    """A contiguous range of the sample order, packed into rows."""

    place: int
    end: int
    """Where the next window begins."""
    rows: list[list[tuple[int, Length]]]
    """(number of a sample, its length) of each row."""
    skips: list[list[int]]
    """Samples that could not be tokenized, distributed over the rows so that each is reported by one rank."""

    @property
    def samples(self) -> int:
        """All that were tried."""
        return self.end - self.place


class _Planned:
    """A window that is planned in parts: all loader processes plan it, and would deliver nothing while they do."""

    def __init__(self, steps: Generator[None, None, Window]) -> None:
        """steps: measures one sample at a time."""
        self._steps, self._tried = steps, 0
        self._window: Window | WorkError | None = None

    def advance(self, samples: float) -> None:
        """Measure until this many samples are done, or all."""
        while self._window is None and self._tried < samples:
            self._tried += 1
            try:
                next(self._steps)
            except StopIteration as end:
                self._window = end.value
            except WorkError as error:
                # raised by whoever needs the window
                self._window = error

    def window(self) -> Window:
        """The whole of it. Raises WorkError when an epoch has no usable sample."""
        self.advance(float("inf"))
        if isinstance(self._window, WorkError):
            raise self._window
        assert self._window is not None
        return self._window


class PackedRows(Batches):
    """Micro batches of one packed row each, numbered from the row where `begin` starts.

    multiple: what each document's length is padded to a multiple of.
    """

    def __init__(self, *args: Any, multiple: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        self.multiple = multiple
        self._start = {"place": 0, "row": 0}
        self._window: Window | None = None
        self._next: _Planned | None = None
        # samples of the largest window: the last one of an epoch is shorter
        self._largest = 0
        self._first = 0
        self._of_batch: tuple[int, list[tuple[Window, int]]] = (-1, [])
        # samples that fail to decode: apart from those that cannot be tokenized, as only some ranks know them and all must compute
        # the same rows
        self._broken: dict[int, Skip] = {}
        self.lengths = SharedLengths(len(self.shards), self.fingerprint())
        # what this process has tokenized to measure it, until its window is given out
        self._tokenized: dict[int, TokenizedSample] = {}

    def begin(self, global_batch: int, following: dict[str, int] | None) -> int:
        """Number of the first micro batch of the global batch at `following`."""
        self._start = {"place": 0, "row": 0} if following is None else following
        self._window = self._next = None
        self._of_batch, self._deal = (-1, []), (-1, Deal([]))
        self._tokenized = {}
        return 0

    def epoch(self, global_batch: int, following: dict[str, int] | None) -> float:
        """Passes over the split, in whole windows."""
        return (0 if following is None else following["place"]) / self.order.size

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"packing": True, "document_multiple": self.multiple}

    def _collated(self, samples: list[Encoded]) -> Batch:
        """One packed row."""
        processor = self.encoder.processor
        return pack(samples, processor.pad_token_id, processor.rules, processor.video_rules, multiple=self.multiple)

    def __getitem__(self, number: int) -> LoadedMicroBatch:
        batch, step = divmod(number, self.steps)
        try:
            deal, rows = self.deal(batch), self._rows(batch)
            (own,) = deal.ranks[self.rank][step]
            window, row = rows[own]
            skips = self._skips(window.skips[row])
            samples = self._decode(window, row, skips)
        except WorkError as error:
            # returned, not raised: a DataLoader process would turn it into an error whose message is a traceback
            return LoadedMicroBatch(None, [], str(error))
        # rows beyond the window are those of the next ones
        last, last_row = rows[-1]
        following = {"place": last.place, "row": last_row + 1}
        at_this_step = [rows[index] for steps in deal.ranks for index in steps[step]]
        all_ranks = sum(len(w.rows[r]) for w, r in at_this_step)
        loaded = LoadedMicroBatch(self.batch(samples, deal), skips, all_ranks=all_ranks, following=following, spread=deal.spread)
        self._plan_ahead()
        return loaded

    def _rows(self, batch: int) -> list[tuple[Window, int]]:
        """(window, row in it) of each row of a global batch."""
        if self._of_batch[0] != batch:
            first = batch * self.global_batch_size
            self._of_batch = batch, [self._find(index) for index in range(first, first + self.global_batch_size)]
        return self._of_batch[1]

    def _sizes(self, batch: int) -> np.ndarray:
        merged = self.encoder.processor.rules.merge_size**2
        rows = [[length for _, length in window.rows[row]] for window, row in self._rows(batch)]
        seen = [sum(length.visual_tokens for length in row) for row in rows]
        return np.array([(merged * count, sum(map(self._padded, row))) for count, row in zip(seen, rows, strict=True)], dtype=np.int64)

    def _decode(self, window: Window, row: int, skips: list[Skip]) -> list[Encoded]:
        """The documents of a row, or of the first later row with a usable one. Raises WorkError if the window has none."""
        tried: list[Skip] = []
        for turn in range(len(window.rows)):
            samples: list[Encoded] = []
            for number, _ in window.rows[(row + turn) % len(window.rows)]:
                result = self._tried(number, partial(self._encode, number), self._broken)
                (tried if isinstance(result, Skip) else samples).append(result)
            if samples:
                skips += tried
                return samples
        raise self._none_usable(tried)

    def _find(self, index: int) -> tuple[Window, int]:
        """(window, row in it) of a row, counted from the start; windows never go backwards between calls."""
        if self._window is None:
            self._first = -self._start["row"]
            self._window, self._next = _Planned(self._plan(self._start["place"])).window(), None
        while index - self._first >= len(self._window.rows):
            self._first += len(self._window.rows)
            for number, _ in chain.from_iterable(self._window.rows):
                self._tokenized.pop(number, None)
            planned = self._next or _Planned(self._plan(self._window.end))
            self._window, self._next = planned.window(), None
        return self._window, index - self._first

    def _plan_ahead(self) -> None:
        """Plan as much of the next window as of this one is used."""
        batch, rows = self._of_batch
        if self._window is None or not rows:
            return
        used = (batch + 1) * self.global_batch_size - self._first
        self._next = self._next or _Planned(self._plan(self._window.end))
        self._largest = max(self._largest, self._window.samples)
        self._next.advance(used / (_PLANNED_AT * len(self._window.rows)) * self._largest)

    def _plan(self, place: int) -> Generator[None, None, Window]:
        """The window that begins at a position, one sample at a time. Raises WorkError when an epoch has no usable sample."""
        begin, room = place, self.encoder.seq_length
        skips: list[int] = []
        documents: list[tuple[int, Length]] = []
        while not documents:
            if place - begin >= self.order.size:
                raise self._none_usable(self._skips(skips))
            # a window ends with its epoch: each epoch holds each sample once
            border, total = (place // self.order.size + 1) * self.order.size, 0
            ahead = place
            while place < border and total < ROWS * room and len(documents) < MOST_SAMPLES:
                number = self.order.sample(place)
                while (length := self.lengths.find(number)) is None:
                    # measured by another process at the moment: meanwhile those that come after it
                    ahead = max(ahead, place)
                    if ahead < min(place + _LOOK_AHEAD, border):
                        following = self.order.sample(ahead)
                        ahead += 1
                        if self.lengths.claim(following):
                            self._measure(following)
                    else:
                        self._measure(number)
                place += 1
                yield
                if isinstance(length, Length):
                    documents.append((number, length))
                    total += self._padded(length)
                else:
                    skips.append(number)
        groups = best_fit([self._padded(length) for _, length in documents], room)
        # best fit puts the long samples first: shuffle, so that a batch holds all lengths
        order = seeded(self.order.seed, begin, _SHUFFLE).permutation(len(groups)).tolist()
        rows = [[documents[i] for i in sorted(groups[group])] for group in order]
        return Window(begin, place, rows, [skips[row :: len(rows)] for row in range(len(rows))])

    def _measure(self, number: int) -> None:
        """Put the length of a sample into the table."""
        tokenized = self._tried(number, self._fitting, self._unusable)
        if isinstance(tokenized, Skip):
            self.lengths.set(number, None)
            return
        self._tokenized[number] = tokenized
        self.lengths.set(number, Length(len(tokenized.ids), sum(sum(plan.counts) for plan in tokenized.media)))

    def _skips(self, numbers: list[int]) -> list[Skip]:
        """Why samples cannot be used; another process may have found out."""
        tried = [self._tried(number, self._fitting, self._unusable) for number in numbers]
        return [skip for skip in tried if isinstance(skip, Skip)]

    def _encode(self, number: int, key: str, parts: dict[str, bytes]) -> Encoded:
        tokenized = self._tokenized.get(number) or self._fitting(key, parts)
        return self.encoder.decode_media(tokenized, parts)

    def _padded(self, length: Length) -> int:
        """Tokens that a document takes in a row, with its padding."""
        return -(-length.tokens // self.multiple) * self.multiple

    def _fitting(self, key: str, parts: dict[str, bytes]) -> TokenizedSample:
        tokenized, room = self.encoder.tokenize(key, parts), self.encoder.seq_length
        if -(-len(tokenized.ids) // self.multiple) * self.multiple > room:
            raise DataError("too-long-for-layout", tokens=len(tokenized.ids), most=room // self.multiple * self.multiple)
        return tokenized
