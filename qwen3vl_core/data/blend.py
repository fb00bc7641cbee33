"""Several datasets blended into one, described by an Energon metadataset; the sample order does not depend on the layout.

A metadataset is a YAML file:

    __module__: megatron.energon
    __class__: MetadatasetV2
    splits:
      train:
        blend:                       # three samples of `captions` for each one of `charts`, endless
          - {weight: 3, path: captions}
          - {weight: 1, path: charts, subset: {range: [0%, 50%]}}
      val:
        path: captions

`blend_epochized` repeats each sample `repetitions` times in an epoch. Paths are relative to the file, absolute or
`msc://`; a path may be another metadataset. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from qwen3vl_core import limits
from qwen3vl_core.data.sample_order import SampleOrder, seeded
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.data.storage import Place, place_of, read_small, within
from qwen3vl_core.errors import RequestError
from qwen3vl_core.yaml_text import NotYamlError, load_yaml

SUFFIXES = (".yaml", ".yml")
BLOCK = 1024
"""Positions in the order over which every dataset's share matches its weight, up to rounding."""
_BLOCK, _EPOCH, _OWN = 0xB10C, 0xE90C, 0x0D5E
_CLASSES = ("Metadataset", "MetadatasetV2")
_WEIGHTS, _REPETITIONS = "weight", "repetitions"
MOST_WEIGHT = 1e9
_LISTS = {"blend": _WEIGHTS, "datasets": _WEIGHTS, "blend_epochized": _REPETITIONS}
_DEEPEST = 16


@dataclass(frozen=True)
class Share:
    """One dataset's part of a blend."""

    shards: ShardSplit
    begin: int
    """The part's first sample in the split."""
    end: int
    weight: float
    """Share of the blend if it has no epochs; otherwise repetitions in an epoch."""

    def __len__(self) -> int:
        return self.end - self.begin


def is_metadataset(place: Place) -> bool:
    """Whether a path is a metadataset, not another YAML file."""
    if place.suffix not in SUFFIXES or not place.is_file():
        return False
    try:
        return isinstance(_load(place).get("splits"), dict)
    except RequestError:
        return False


def _load(place: Place) -> dict[str, Any]:
    try:
        loaded = load_yaml(read_small(place, limits.DATASET_INDEX))
    except NotYamlError as error:
        raise RequestError(f"{place}: not YAML ({error}); write a metadataset in Energon's format") from None
    except OSError as error:
        raise RequestError(f"{place}: cannot be read ({error.strerror}); give a dataset or a metadataset") from None
    if not isinstance(loaded, dict):
        raise RequestError(f"{place}: not a metadataset; it must hold __class__: MetadatasetV2 and splits")
    return loaded


def split_names(place: Place) -> list[str]:
    """The splits that a metadataset has."""
    return [str(name) for name in _splits(place)]


def _splits(place: Place) -> dict[str, Any]:
    loaded = _load(place)
    kind, splits = loaded.get("__class__", "Metadataset"), loaded.get("splits")
    if kind not in _CLASSES:
        raise RequestError(f"{place}: __class__ is {kind}; must be one of {', '.join(_CLASSES)}")
    if not isinstance(splits, dict) or not splits:
        raise RequestError(f"{place}: splits must name train, val or test")
    return splits


class Blend:
    """Splits of several datasets, numbered consecutively. Same interface as `ShardSplit`.

    Raises RequestError for a file that is not a metadataset, and for a dataset in it that does not exist.
    """

    def __init__(self, path: str | Place, split: str) -> None:
        self.path, self.split = place_of(path), split
        mode, self.shares = _shares(self.path, split, ())
        self.epochs = mode is not False
        """Whether the blend has epochs, in which each sample occurs a fixed number of times."""
        empty = next((share for share in self.shares if not len(share)), None)
        if empty is not None:
            raise RequestError(f"{path}: the subset of {empty.shards.path} holds no sample; widen its range")
        self._ends = np.cumsum([len(share) for share in self.shares])
        members = [[s.shards.identity, s.begin, s.end, s.weight] for s in self.shares]
        self.identity: str = hashlib.sha256(json.dumps([self.epochs, members]).encode()).hexdigest()
        """Changes with the datasets, their weights and their subsets, not with their paths."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def order(self, seed: int) -> BlendOrder:
        """The order of the samples."""
        return BlendOrder([len(share) for share in self.shares], [share.weight for share in self.shares], seed, epochs=self.epochs)

    def _find(self, number: int) -> tuple[Share, int]:
        which = int(np.searchsorted(self._ends, number, "right"))
        share = self.shares[which]
        return share, number - int(self._ends[which]) + len(share) + share.begin

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """(key, {part: content}) of a sample, as `ShardSplit.read`."""
        share, own = self._find(number)
        return share.shards.read(own)

    def open_parts(self, number: int) -> dict[str, BinaryIO]:
        """{part: its bytes as a file} of a sample, as `ShardSplit.open_parts`."""
        share, own = self._find(number)
        return share.shards.open_parts(own)

    @property
    def remote(self) -> bool:
        """Whether shards of one of the datasets are in an object store."""
        return any(share.shards.remote for share in self.shares)

    def place(self, number: int) -> str:
        """Location of a sample, for messages."""
        share, own = self._find(number)
        return f"{share.shards.path}/{share.shards.place(own)}"

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        for share in self.shares:
            share.shards.close()

    def lines(self) -> list[str]:
        """A line for each dataset, for reports."""
        lines = []
        for share in self.shares:
            often = "all" if len(self.shares) == 1 else f"{share.weight:g} times an epoch" if self.epochs else f"{share.weight:.1%}"
            lines.append(f"{often}: {share.shards.path}, split {share.shards.split}, {len(share):,} samples")
        return lines


def open_split(path: str | Place, split: str) -> ShardSplit | Blend:
    """The samples of a split of a dataset or a metadataset. Raises RequestError."""
    place = place_of(path)
    return Blend(place, split) if place.suffix in SUFFIXES and place.is_file() else ShardSplit(place, split)


def _shares(place: Place, split: str, above: tuple[Place, ...]) -> tuple[bool | None, list[Share]]:
    """(whether it has epochs, None for a single dataset; the datasets) of a metadataset's split. `above`: those that include it."""
    if place in above or len(above) >= _DEEPEST:
        raise RequestError(f"{place}: a metadataset that includes itself; remove one of the paths")
    splits = _splits(place)
    if split not in splits:
        raise RequestError(f"{place}: no split {split}; there are: {', '.join(map(str, splits))}")
    blend = splits[split]
    where = f"{place}, {split}"
    if not isinstance(blend, dict):
        raise RequestError(f"{where}: must hold blend, blend_epochized or path")
    if "path" in blend:
        return _leaf(place, split, blend, where, above)
    kinds = [key for key in _LISTS if key in blend]
    if len(kinds) != 1 or not isinstance(blend[kinds[0]], list) or not blend[kinds[0]]:
        raise RequestError(
            f"{where}: join is not supported; a sample comes from one dataset"
            if "join" in blend
            else f"{where}: must hold one of blend, blend_epochized (a list) and path"
        )
    unit, entries, shares = _LISTS[kinds[0]], blend[kinds[0]], []
    mode = unit == _REPETITIONS
    for number, entry in enumerate(entries):
        at = f"{where}, entry {number}"
        if not isinstance(entry, dict) or "path" not in entry:
            raise RequestError(
                f"{at}: must hold path and {unit}" + ("; join is not supported" if isinstance(entry, dict) and "join" in entry else "")
            )
        weight = entry.get(unit, 1)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not (0 < weight <= MOST_WEIGHT):
            given = str(weight)[:40] if not isinstance(weight, int) or abs(weight) < 1 << 60 else "of over 2**60"
            raise RequestError(f"{at}: {unit} {given}: must be a number above 0, at most {MOST_WEIGHT:g}; use 1")
        nested, inner = _leaf(place, split, entry, at, above)
        if nested not in (None, mode):
            raise RequestError(f"{at}: blend and blend_epochized cannot be mixed; use the same kind in both metadatasets")
        total = 1.0 if mode else sum(share.weight for share in inner)
        shares += [replace(share, weight=share.weight / total * weight) for share in inner]
    shares = [_cut(share, blend.get("subset"), where) for share in shares]
    if not mode:
        total = sum(share.weight for share in shares)
        shares = [replace(share, weight=share.weight / total) for share in shares]
    return mode, shares


def _leaf(place: Place, split: str, entry: dict[str, Any], where: str, above: tuple[Place, ...]) -> tuple[bool | None, list[Share]]:
    """The datasets of one entry: one dataset, or all of another metadataset."""
    for key in ("aux", "dataset_config", "split_config"):
        if entry.get(key) is not None:
            raise RequestError(f"{where}: {key} is not supported; remove it")
    name, part = entry.get("path"), entry.get("split_part") or split
    if not isinstance(name, str) or not name or not isinstance(part, str):
        raise RequestError(f"{where}: path and split_part must be text")
    target = within(place.parent, name)
    if target.suffix in SUFFIXES and target.is_file():
        mode, shares = _shares(target, part, (*above, place))
    else:
        try:
            shards = ShardSplit(target, part)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
        mode, shares = None, [Share(shards, 0, len(shards), 1.0)]
    return mode, [_cut(share, entry.get("subset"), where) for share in shares]


def _cut(share: Share, subset: Any, where: str) -> Share:
    """The subset of a share that `subset: {range: [begin, end]}` selects. Raises RequestError."""
    if subset is None:
        return share
    bounds = subset.get("range") if isinstance(subset, dict) else None
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise RequestError(f"{where}: subset must be {{range: [25%, 75%]}}, or samples: {{range: [100, end]}}")
    samples = []
    for bound in bounds:
        if isinstance(bound, str) and bound.strip() == "end":
            samples.append(len(share))
        elif isinstance(bound, str) and bound.endswith("%"):
            try:
                samples.append(int(len(share) * (float(bound[:-1]) / 100)))
            except ValueError:
                samples.append(-1)
        else:
            samples.append(bound if isinstance(bound, int) and not isinstance(bound, bool) else -1)
    begin, end = samples
    if not 0 <= begin <= end <= len(share):
        raise RequestError(f"{where}: subset range {bounds}: must lie within the {len(share):,} samples, begin before end")
    return replace(share, begin=share.begin + begin, end=share.begin + end)


class BlendOrder:
    """Maps a position in the order to a sample; a pure function of seed and position, as `SampleOrder`.

    sizes: samples of each dataset. weights: of each; they are shares of the positions, or with `epochs` how often each
    sample occurs in an epoch.
    """

    def __init__(self, sizes: list[int], weights: list[float], seed: int, *, epochs: bool) -> None:
        self.seed, self.epochs = seed, epochs
        self._orders = [SampleOrder(size, seed + _OWN * (number + 1)) for number, size in enumerate(sizes)]
        self._begins = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        if epochs:
            self._counts = [max(1, int(size * weight)) for size, weight in zip(sizes, weights, strict=True)]
            self.size: int = sum(self._counts)
            """Positions of an epoch."""
        else:
            self.size = sum(sizes)
            self._weights = [weight / sum(weights) for weight in weights]
            self._heaviest = int(np.argmax(self._weights))
            # long enough that the heaviest dataset's count, which takes the rounding error, is never negative
            self._block = max(BLOCK, len(sizes) ** 2)
        self._cached: dict[int, tuple[np.ndarray, np.ndarray, list[int]]] = {}

    def sample(self, place: int) -> int:
        """Number of the sample at a position."""
        which, own = self._own(place)
        return self._begins[which] + self._orders[which].sample(own)

    def stand_ins(self, place: int) -> Iterator[int]:
        """Every other sample once: those of the same dataset first, to keep the shares of the blend."""
        which, own = self._own(place)
        for number in self._orders[which].stand_ins(own):
            yield self._begins[which] + number
        for other, order in enumerate(self._orders):
            if other != which:
                begin = place % order.size
                for number in range(order.size):
                    yield self._begins[other] + (begin + number) % order.size

    def _own(self, place: int) -> tuple[int, int]:
        """(dataset, position in the dataset's own order)"""
        stretch, offset = divmod(place, self.size if self.epochs else self._block)
        if stretch not in self._cached:
            # two are cached: a global batch may cross a boundary
            self._cached = {number: cached for number, cached in self._cached.items() if abs(number - stretch) == 1}
            begins = self._before(stretch)
            counts = [end - begin for begin, end in zip(begins, self._before(stretch + 1), strict=True)]
            labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
            labels = labels[seeded(self.seed, stretch, _EPOCH if self.epochs else _BLOCK).permutation(len(labels))]
            ranks = np.empty(len(labels), dtype=np.int64)
            for which in range(len(counts)):
                mask = labels == which
                ranks[mask] = np.arange(int(mask.sum()))
            self._cached[stretch] = labels, ranks, begins
        labels, ranks, begins = self._cached[stretch]
        which = int(labels[offset])
        return which, begins[which] + int(ranks[offset])

    def _before(self, stretch: int) -> list[int]:
        """Samples of each dataset before a stretch begins."""
        if self.epochs:
            return [stretch * count for count in self._counts]
        counts = [math.floor(weight * stretch * self._block) for weight in self._weights]
        counts[self._heaviest] += stretch * self._block - sum(counts)
        return counts
