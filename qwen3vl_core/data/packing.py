"""Samples joined to rows of the sequence length, without decoding a pixel of what is not in the row.

The order of the samples is cut into windows of about `ROWS` rows; within one, best fit decides from the token lengths,
which the headers tell, which samples share a row. A window is a function of seed and place alone, so that every rank
and every loader process finds the same rows by itself and decodes its own ones; to go on after a stop, the window's place
and the number of rows given out are enough. Each sample is packed once in each epoch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

from qwen3vl_core.data.batch import Batch, Encoded, pack
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.micro_batches import Batches, LoadedMicroBatch, Skip
from qwen3vl_core.data.processor import TokenizedSample
from qwen3vl_core.data.sample_order import seeded
from qwen3vl_core.errors import WorkError

ROWS = 128
"""Rows' worth of tokens in a window. The last row of a window is not full."""
MOST_SAMPLES = 1 << 14
"""Of a window: looking at more would hold up the first step."""
_SHUFFLE = 0x9AC6


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Places in `lengths`, grouped so that each group's sum is at most `room`; the longest first, each into the fullest
    group that still takes it. Each length is at most `room`."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []
    """(what is left, group), ascending"""
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(free, (lengths[place], -1))
        if at == len(free):
            groups.append([])
            left, group = room, len(groups) - 1
        else:
            left, group = free.pop(at)
        groups[group].append(place)
        insort(free, (left - lengths[place], group))
    return groups


@dataclass(frozen=True)
class Window:
    """A stretch of the order of samples, as rows."""

    place: int
    end: int
    """Where the next window begins."""
    rows: list[list[tuple[int, TokenizedSample]]]
    """(number of a sample, its tokens) of each row."""
    skips: list[list[Skip]]
    """What could not be planned, shared out to the rows: each is reported by one rank."""


class PackedRows(Batches):
    """Micro batches of one packed row each, numbered from where `begin` was told to begin.

    multiple: what each document's length is padded to a multiple of.
    """

    def __init__(self, *args: Any, multiple: int = 1) -> None:
        super().__init__(*args)
        self.multiple = multiple
        self._start = {"place": 0, "row": 0}
        self._window: Window | None = None
        self._first = 0
        # apart from what cannot be planned: only some ranks know of these, and all must go on to find the same rows
        self._broken: dict[int, Skip] = {}

    def begin(self, global_batch: int, following: dict[str, int] | None) -> int:
        """Number of the first micro batch of the global batch that `following` tells of."""
        self._start = {"place": 0, "row": 0} if following is None else following
        self._window = None
        return 0

    def epoch(self, global_batch: int, following: dict[str, int] | None) -> float:
        """How often the split has been gone through, to the window."""
        return (0 if following is None else following["place"]) / self.order.size

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"packing": True, "document_multiple": self.multiple}

    def _collated(self, samples: list[Encoded]) -> Batch:
        """One packed row."""
        processor = self.encoder.processor
        return pack(samples, processor.pad_token_id, processor.rules, processor.video_rules, multiple=self.multiple)

    def __getitem__(self, number: int) -> LoadedMicroBatch:
        batch, step = divmod(number, self.steps)
        first = batch * self.global_batch_size + step * self.world_size
        try:
            found = [self._find(first + rank) for rank in range(self.world_size)]
            window, row = found[self.rank]
            skips = list(window.skips[row])
            samples = self._decode(window, row, skips)
        except WorkError as error:
            # returned, not raised: through a process it would come out as a traceback in a message
            return LoadedMicroBatch(None, [], str(error))
        # from this row on; more rows than the window has lead on to the next ones
        ahead = (batch + 1) * self.global_batch_size - (first + self.rank)
        following = {"place": window.place, "row": row + ahead}
        return LoadedMicroBatch(self.batch(samples), skips, all_ranks=sum(len(w.rows[r]) for w, r in found), following=following)

    def _decode(self, window: Window, row: int, skips: list[Skip]) -> list[Encoded]:
        """The documents of a row, or of the first one after it that has any. Raises WorkError when none of the window has."""
        tried: list[Skip] = []
        for turn in range(len(window.rows)):
            samples: list[Encoded] = []
            for number, tokenized in window.rows[(row + turn) % len(window.rows)]:
                found = self._tried(
                    number, lambda key, parts, tokenized=tokenized: self.encoder.decode_media(tokenized, parts), self._broken
                )
                (tried if isinstance(found, Skip) else samples).append(found)
            if samples:
                skips += tried
                return samples
        raise self._none_usable(tried)

    def _find(self, wanted: int) -> tuple[Window, int]:
        """(window, row in it) of a row, counted from the start; never an earlier window than the last time."""
        if self._window is None:
            self._window, self._first = self._plan(self._start["place"]), -self._start["row"]
        while wanted - self._first >= len(self._window.rows):
            self._first += len(self._window.rows)
            self._window = self._plan(self._window.end)
        return self._window, wanted - self._first

    def _plan(self, place: int) -> Window:
        """The window that begins at a place. Raises WorkError when a whole epoch has no sample to pack."""
        begin, room = place, self.encoder.seq_length
        skips: list[Skip] = []
        documents: list[tuple[int, TokenizedSample]] = []
        while not documents:
            if place - begin >= self.order.size:
                raise self._none_usable(skips)
            # an epoch's end is a window's end: each epoch holds each sample once
            border, total = (place // self.order.size + 1) * self.order.size, 0
            while place < border and total < ROWS * room and len(documents) < MOST_SAMPLES:
                number = self.order.sample(place)
                found = self._tried(number, self._fitting, self._unusable)
                place += 1
                if isinstance(found, Skip):
                    skips.append(found)
                else:
                    documents.append((number, found))
                    total += self._padded(found)
        groups = best_fit([self._padded(tokenized) for _, tokenized in documents], room)
        # best fit puts the long samples first: a batch shall hold all lengths
        order = seeded(self.order.seed, begin, _SHUFFLE).permutation(len(groups)).tolist()
        rows = [[documents[i] for i in sorted(groups[group])] for group in order]
        return Window(begin, place, rows, [skips[row :: len(rows)] for row in range(len(rows))])

    def _padded(self, tokenized: TokenizedSample) -> int:
        """Tokens that a document takes of a row."""
        return -(-len(tokenized.ids) // self.multiple) * self.multiple

    def _fitting(self, key: str, parts: dict[str, bytes]) -> TokenizedSample:
        tokenized, room = self.encoder.tokenize(key, parts), self.encoder.seq_length
        if self._padded(tokenized) > room:
            raise DataError("too_long", f"{len(tokenized.ids)} tokens, {room // self.multiple * self.multiple} at most in this layout")
        return tokenized
