"""Seeded damage to sources, pictures, videos and shards, and what prepare, inspect and the loader make of it.

    python -m tests.data.mutations --count 10000
    python -m tests.data.mutations --count 10000 --kinds csv parquet     # so many of each

One damaged input in eight goes through the whole command, and what comes out of it through the loader; the others through
the parts of both that read it: the source's reader, prepare's checks, the shards' reader, the loader's encoder. Each ends with
samples, with counted refusals, or with one line; whatever else it raises is printed with its number, and `--only NUMBER`
repeats it. An input that takes over two minutes ends the run with a traceback of where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from qwen3vl_core.data import sources
from qwen3vl_core.data.byte_ranges import Spool, read_range
from qwen3vl_core.data.dataset_info import naming_of
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect import command as inspect
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.prepare.check import Checker, Refusal
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.options import InspectOptions, PrepareOptions
from tests.data import samples, videos
from tests.data.layout_cases import READ
from tests.readers.fuzz import ending as ending_of

KINDS = ("json", "lines", "jpeg", "png", "mp4", "tar", "csv", "parquet", "arrow", "gzip", "shard", "layouts", "info")
DAMAGED = {
    "json": "list.json", "lines": "list.json", "jpeg": "a.jpg", "png": "b.png", "mp4": "c.mp4", "tar": "train-00000.tar",
    "csv": "rows.csv", "parquet": "rows.parquet", "arrow": "rows.arrow", "gzip": "lines.jsonl.gz", "shard": "made.tar",
    "layouts": "layouts.json", "info": "dataset_info.json",
}  # fmt: skip
MEDIA = ("jpeg", "png", "mp4")
"""Kinds of damage to a file that list.json names; the others are sources themselves."""
WHOLE = 8
"""Of so many inputs one goes through whole commands."""
MOST_MEMORY = 1 << 30
"""Bytes of this process at any time, with PyTorch in it."""
_NASTY = (
    b"\0", b"\xff", b"\xd8", b'"', b"{", b"[", b"]", b"\\ud800", b"null", b"NaN", b"1e999", b"<image>", b"<video>", b"../", b"\n",
    b"9" * 400, b"9" * 5000,
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: bits, bytes, pieces cut out, doubled or moved, an end cut off, nasty pieces put in."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not made:
            break
        at = chance.randrange(len(made))
        length = min(chance.choice((1, 2, 4, 16, 256)), len(made) - at)
        how = chance.randrange(7)
        if how == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            made[at : at + length] = chance.randbytes(length)
        elif how == 2:
            del made[at : at + length]
        elif how == 3:
            made[at:at] = made[at : at + length]
        elif how == 4:
            del made[at:]
        elif how == 5:
            made[at : at + chance.choice((0, 1, 4))] = chance.choice(_NASTY)
        else:
            other = chance.randrange(len(made))
            made[other : other + length] = made[at : at + length]
    return bytes(made)


def holds_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(holds_bytes, value.values()))
    return any(map(holds_bytes, value)) if isinstance(value, list) else isinstance(value, bytes)


def originals() -> dict[str, list[bytes]]:
    """Small sound inputs of each kind."""
    pictures = [samples.picture(seed, 48, 32) for seed in range(3)]
    records = [
        samples.record(0, "a.jpg"),
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "<image> and <image>?"},
                      {"role": "assistant", "content": "Yes."}], "images": ["a.jpg", "b.png"]},
        samples.record(2),
        {"video": "c.mp4", "conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A dog."}]},
    ]  # fmt: skip
    rows = [
        {"image": {"bytes": samples.encoded(picture), "path": None}, "conversations": records[0]["conversations"]} for picture in pictures
    ]
    return {
        "csv": [b'image,caption\na.jpg,A dog\nb.png,"Two, dogs"\n', b"image\tcaption\na.jpg\tA dog\n"],
        "gzip": [gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode(), mtime=0)],
        "layouts": [json.dumps([record for record, _ in READ.values() if not holds_bytes(record)]).encode()],
        "info": [json.dumps({"one": {"file_name": "list.json", "formatting": "sharegpt", "tags": {"role_tag": "from"}}}).encode()],
        "shard": [_shard(records)],
        **_tables(rows),
        "json": [json.dumps(records[:1] * 2).encode(), json.dumps(records, indent=1).encode()],
        "lines": ["".join(json.dumps(record) + "\n" for record in records).encode()],
        "jpeg": [*(samples.encoded(pictures[i], progressive=bool(i)) for i in (0, 1)), samples.encoded(pictures[2].convert("CMYK"))],
        "mp4": [videos.video(6, 2, codec="mpeg4"), videos.video(6, 3, gop=2)],
        "png": [samples.encoded(pictures[0], "PNG"), samples.encoded(pictures[1].convert("P"), "PNG", transparency=3)],
    }


def _shard(records: list[dict]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, content in enumerate((json.dumps(records[0]["conversations"]).encode(), b"A dog.")):
            for ending, data in (("json" if number == 0 else "txt", content), ("jpg", samples.encoded(samples.picture(number)))):
                entry = tarfile.TarInfo(f"{number:04d}.{ending}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _tables(rows: list[dict]) -> dict[str, list[bytes]]:
    import pyarrow
    import pyarrow.parquet

    table, made = pyarrow.Table.from_pylist(rows), {}
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    with pyarrow.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    made["parquet"], made["arrow"] = [parquet.getvalue()], [arrow.getvalue()]
    return made


class Fuzzer:
    """`outcome(number)` is the same for the same number."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self.originals = originals()
        self.spool = Spool(folder / "spool")
        base = folder / "base"
        base.mkdir()
        (base / "a.jpg").write_bytes(self.originals["jpeg"][0])
        (base / "b.png").write_bytes(self.originals["png"][0])
        (base / "c.mp4").write_bytes(self.originals["mp4"][0])
        (base / "list.json").write_bytes(self.originals["json"][1])
        prepare.run(PrepareOptions(source=str(base / "list.json"), to=str(folder / "whole"), split="1,0,0", workers=1))
        self.processor = ChatProcessor.from_pretrained(samples.CHECKPOINT)
        self.encoder = SampleEncoder(self.processor, 2048)
        self.originals["tar"] = [(folder / "whole" / "train-00000.tar").read_bytes()]

    def outcome(self, number: int) -> str:
        """`done`, `counted`, `refused` or `failed`. Raises what should not come through."""
        chance = random.Random(f"{self.seed} {number}")
        kind = KINDS[number % len(KINDS)]
        data = damaged(chance.choice(self.originals[kind]), chance)
        if number // len(KINDS) % WHOLE:
            return self._parts(kind, data, chance.choice(("none", "header", "header", "decode")))
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        if kind == "tar":
            shutil.copytree(self.folder / "whole", place)
            (place / "train-00000.tar").write_bytes(data)
            if chance.random() < 0.5:
                (place / "train-00000.tar.idx").unlink(missing_ok=True)
            model = str(samples.CHECKPOINT) if chance.random() < 0.25 else None
            path = place / "train-00000.tar" if chance.random() < 0.3 else place
            looked = ending_of(lambda: inspect.run(InspectOptions(path=str(path), model=model)))
            loaded = self._loaded(place)
            return looked if loaded == "read" else loaded
        shutil.copytree(self.folder / "base", place)
        (place / DAMAGED[kind]).write_bytes(data)
        source = "list.json" if kind in MEDIA else DAMAGED[kind]
        options = PrepareOptions(
            source=str(place / source), to=str(place / "data"), split="1,0,0", workers=1,
            check=chance.choice(("none", "header", "header", "decode")), skip_missing=chance.random() < 0.7,
        )  # fmt: skip
        made = ending_of(lambda: prepare.run(options))
        there = sorted(path.name for path in place.iterdir())
        if there != sorted({"a.jpg", "b.png", "c.mp4", *(["data"] if made == "read" else []), "list.json", source}):
            raise AssertionError(f"{made}, and left {there}")
        if made == "read" and json.loads((place / "data" / "report.json").read_text())["refused"]:
            self._loaded(place / "data")
            return "counted"
        # what prepare took for sound, on trust or by its header alone, is the loader's to notice
        return self._loaded(place / "data") if made == "read" else made

    def _loaded(self, dataset: Path) -> str:
        """`read` or `counted`: an epoch of the loader; `refused` or `failed`."""
        skipped: Counter[str] = Counter()

        def epoch() -> None:
            loader = build_loader(dataset, "train", self.processor, micro_batch_size=1, global_batch_size=1, seq_length=2048)
            try:
                for _ in range(loader.samples):
                    next(loader)
            finally:
                skipped.update(loader.skipped)
                loader.close()

        ending = ending_of(epoch)
        return "counted" if ending == "read" and skipped else ending

    def _parts(self, kind: str, data: bytes, how: str) -> str:
        """How the readers of an input end, without the commands around them."""
        name = DAMAGED[kind]
        place = self.folder / ("whole" if kind == "tar" else "base")
        sound = (place / name).read_bytes() if (place / name).exists() else None
        counts: Counter[str] = Counter()

        def read() -> None:
            if kind == "tar":
                split = ShardSplit(place, "train")
                for number in range(len(split)):
                    self._encoded(lambda number=number: split.read(number), counts)
                split.close()
                return
            checker = Checker(place, how, self.spool)
            source, naming, _ = naming_of(place / ("list.json" if kind in MEDIA else name), None, None)
            checker.naming = naming
            for result in checker.check(list(sources.open_records(source, naming).records())):
                if isinstance(result, Refusal):
                    counts[result.reason] += 1
                    continue
                names = [file if "\0" in file else str(place / file) for file in result.files]
                files = {part: read_range(name) for part, name in zip(result.parts, names, strict=True)}
                self._encoded(lambda: ("key", {"json": result.payload} | files), counts)  # noqa: B023 - called at once

        try:
            (place / name).write_bytes(data)
            ending = ending_of(read)
        finally:
            self.spool.clear()
            (place / name).unlink() if sound is None else (place / name).write_bytes(sound)
        return "counted" if ending == "read" and counts else ending

    def _encoded(self, read: Callable[[], tuple[str, dict[str, bytes]]], counts: Counter[str]) -> None:
        try:
            self.encoder(*read())
        except DataError as error:
            counts[error.reason] += 1


def main() -> int:
    """1 when an input ended otherwise, or the process took too much memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="--count inputs of each of these instead of all kinds in turn")
    given = parser.parse_args()
    numbers = range(given.count)
    if given.only is not None:
        numbers = [given.only]
    elif given.kinds:
        numbers = [KINDS.index(kind) + place * len(KINDS) for place in range(given.count) for kind in given.kinds]
    os.environ["QWEN3VL_PROGRESS"] = "none"
    endings: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        fuzzer = Fuzzer(Path(folder), given.seed)
        for number in numbers:
            faulthandler.dump_traceback_later(120, exit=True)
            try:
                endings[f"{KINDS[number % len(KINDS)]} {fuzzer.outcome(number)}"] += 1
            except Exception:
                wrong += 1
                print(f"number {number} ({KINDS[number % len(KINDS)]}):\n{traceback.format_exc()}", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    for ending, count in sorted(endings.items()):
        print(f"{ending:16s} {count:6,}")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{wrong} ended otherwise; {most / 2**30:.2f} GiB of memory at most")
    return int(wrong > 0 or most > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
