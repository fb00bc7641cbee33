"""Turns records into checked samples: media files exist and look complete, sizes are known, the JSON is built. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from qwen3vl_core import limits
from qwen3vl_core.data import grounding, records, sources
from qwen3vl_core.data.byte_ranges import RangeReader, Spool, split_name
from qwen3vl_core.data.dataset_info import Naming
from qwen3vl_core.data.errors import REASON_OF, DataError, picture_errors
from qwen3vl_core.data.pictures import upright_size
from qwen3vl_core.data.prepare.media_check import CheckedFile, check_bytes, check_file, check_range
from qwen3vl_core.data.records import Frames, Medium, Note, SourceRecord
from qwen3vl_core.data.tar import member_size
from qwen3vl_core.problems import Problem

FRAME_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_KEPT = 200_000
"""Media files whose result is cached: in many datasets several records use one picture."""


class TarSample(NamedTuple):
    """What will be written for a record. A tuple, because many are sent between processes."""

    number: int
    payload: bytes
    """The sample's JSON file."""
    parts: tuple[str, ...]
    """Names of the media within the sample."""
    files: tuple[str, ...]
    """Their names, as `byte_ranges` has them; paths are absolute or relative to the media folder."""
    lengths_and_stamps: bytes
    """`sizes`, then `stamps`, 8 bytes each: as tuples of numbers they would take a seventh of the memory of very many samples."""
    turns: int
    pictures: int
    videos: int
    size: int
    """Bytes in its shard."""
    notes: tuple[Note, ...]
    """As in SourceRecord."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each of the files."""
        return struct.unpack_from(f"<{len(self.parts)}q", self.lengths_and_stamps)

    @property
    def stamps(self) -> bytes:
        """Modification time of each of the files in ns; for bytes of a record, their digest: 8 bytes each, little endian."""
        return self.lengths_and_stamps[8 * len(self.parts) :]


class Refusal(NamedTuple):
    """A record that cannot be used."""

    number: int
    id: str | None
    code: str
    rule: dict[str, Any]
    """Of the problem, as plain values: a worker process sends them."""

    @classmethod
    def of(cls, number: int, name: str | None, error: DataError) -> Refusal:
        return cls(number, name, error.problem.code, dict(error.problem.rule))

    @property
    def reason(self) -> str:
        """A key of errors.REASONS."""
        return REASON_OF[self.code]

    @property
    def detail(self) -> str:
        return str(Problem(self.code, rule=self.rule))


class Checker:
    """Caches the result of each file, so that a file that many records name is checked once."""

    def __init__(self, root: Path, how: str, spool: Spool | None = None, naming: Naming | None = None) -> None:
        """how: `none` checks that the files exist; `header` reads headers and ends; `decode` decodes every pixel.

        spool: keeps the media that are bytes of a record. naming: of the source's columns.
        """
        self.root, self.how, self.spool, self.naming = root, how, spool or Spool(), naming or Naming()
        # a string: building a Path takes as long as opening the file
        self._folder = str(root / "x")[:-1]
        self._media: dict[str, CheckedFile | DataError] = {}
        self._folders: dict[str, Frames | DataError | None] = {}
        self._ranges = RangeReader()

    def check(self, raw_records: list[tuple[int, Any]]) -> list[TarSample | Refusal]:
        """raw_records: as `RecordFile.records` gives them. One result for each.

        Step by step for all of them, not record by record: after a system call the caches are cold, and everything else
        takes half as long again.
        """
        parsed = [self._record(number, raw) for number, raw in raw_records]
        checked = self._media
        for record in parsed:
            if isinstance(record, SourceRecord):
                for name in record.pictures:
                    if type(name) is str and name not in checked:
                        self._look(name, "picture")
        return [self._sample(record) if isinstance(record, SourceRecord) else record for record in parsed]

    def _record(self, number: int, raw: Any) -> SourceRecord | Refusal:
        try:
            record = sources.parse(number, raw, self.naming)
        except DataError as error:
            record_id = raw.get("id") if isinstance(raw, dict) else None
            return Refusal.of(number, record_id if isinstance(record_id, str) else None, error)
        for turn, (_, text) in enumerate(record.turns):
            if type(text) is not str:
                text = "\n".join([piece for piece in text if isinstance(piece, str)])
            if "<|" in text and (token := records.CONTROL.search(text)):
                return Refusal.of(number, record.id, DataError("control-token", f"turn {turn}", token=token.group()))
        if record.extras is not None:
            more = json.dumps([record.extras.turns, record.extras.tools, record.extras.boxes], ensure_ascii=False)
            if token := records.CONTROL.search(more):
                return Refusal.of(number, record.id, DataError("control-token", "a tool or a label", token=token.group()))
        return record

    def _sample(self, record: SourceRecord) -> TarSample | Refusal:
        number, name, turns, pictures, videos, extras, notes = record
        parts = record.parts
        folders: list[Frames | None] = []
        boxes: list[dict[str, Any]] = []
        try:
            files, media = [], []
            for place, picture in enumerate(pictures):
                file, checked = self._medium(picture, "picture", place)
                files.append(file)
                media.append(checked)
            if videos:
                folders = [self._frames(video, place) for place, video in enumerate(videos)]
                files += self._video_files(record, folders, parts, media)
            if extras is not None and extras.boxes is not None:
                coordinates = grounding.scaled(extras.boxes, [self._upright(file) for file in files[: len(pictures)]])
                boxes = grounding.drawn(extras.boxes, coordinates)
                record = record._replace(turns=grounding.filled(turns, extras.boxes, coordinates))
        except DataError as error:
            return Refusal.of(number, name, error)
        payload = record.payload(parts, folders, boxes)
        size, sizes, stamps = member_size(len(payload)), [], []
        for length, stamp, _ in media:
            sizes.append(length)
            stamps.append(stamp)
            size += member_size(length)
        packed = struct.pack(f"<{2 * len(sizes)}q", *sizes, *stamps)
        return TarSample(number, payload, tuple(parts), tuple(files), packed, len(turns), len(pictures), len(videos), size, notes)

    def _video_files(self, record: SourceRecord, folders: list[Frames | None], parts: list[str], media: list[CheckedFile]) -> list[str]:
        """Files of a record's videos; appends their names in the sample to `parts`, their checks to `media`. Raises DataError."""
        files: list[str] = []
        for place, (video, frames, part) in enumerate(zip(record.videos, folders, record.video_parts(folders), strict=True)):
            if frames is None:
                file, checked = self._medium(video, "video", place)
                parts.append(part["part"])
                files.append(file)
                media.append(checked)
                continue
            parts += part["frames"]
            files += frames.names
            checks = [self._medium(name, "picture", n)[1] for n, name in enumerate(frames.names)]
            differing = next((n for n, checked in enumerate(checks) if checked.shape != checks[0].shape), None)
            if differing is not None:
                shown = [os.path.basename(frames.names[n].partition("\0")[0]) for n in (differing, 0)]
                raise DataError("frames-differ", self._shown(video), frame=shown[0], first=shown[1])
            media += checks
        return files

    def _medium(self, medium: Any, kind: str, place: int) -> tuple[str, CheckedFile]:
        """(name, result) of a picture or video. Raises DataError if it cannot be used."""
        content = medium.content if isinstance(medium, Medium) else medium
        if isinstance(content, bytes):
            # checked before it is kept: what is broken takes no space
            checked = check_bytes(content, 0, self.how, kind, f"{kind} {place} in the record")
            name, digest = self.spool.add(content)
            return name, checked._replace(stamp=digest)
        assert isinstance(content, str)
        result = self._media.get(content) or self._look(content, kind)
        if isinstance(result, DataError):
            raise result
        return content, result

    def _look(self, name: str, kind: str) -> CheckedFile | DataError:
        result: CheckedFile | DataError
        try:
            if "\0" in name:
                path, offset, size = split_name(name)
                file, stamp = self._ranges.open(path)
                result = check_range(file, offset, size, stamp, self.how, kind, f"{path} at byte {offset:,}")
            else:
                result = check_file(name if name[0] == "/" else self._folder + name, self.how, kind)
        except DataError as error:
            result = error
        except OSError as error:
            result = DataError(f"{kind}-missing", split_name(name)[0], reason=str(error.strerror))
        if len(self._media) >= _KEPT:
            self._media.clear()
        self._media[name] = result
        return result

    def _frames(self, video: Any, place: int) -> Frames | None:
        """The frames of a video that is a folder or a list; None for a file."""
        content, fps = (video.content, video.options.get("fps")) if isinstance(video, Medium) else (video, None)
        if isinstance(content, tuple):
            if len(content) > limits.FRAME_FILES:
                raise DataError("frames-too-many", self._shown(video), frames=len(content), most=limits.FRAME_FILES)
            names = tuple(self._medium(frame, "picture", n)[0] if isinstance(frame, bytes) else frame for n, frame in enumerate(content))
            return Frames(names, fps or records.FRAMES_PER_SECOND)
        if isinstance(content, bytes) or "\0" in content:
            return None
        if content not in self._folders:
            try:
                path = frame_folder(self.root / content)
                folder = None if path is None else read_frames(path)
                # relative where the video is: the names in a shard's plan do not depend on the place
                prefix = content if path == self.root / content else content.rpartition(".")[0]
                self._folders[content] = (
                    None if folder is None else Frames(tuple(f"{prefix}/{frame}" for frame in folder.names), folder.fps)
                )
            except DataError as error:
                self._folders[content] = error
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                self._folders[content] = DataError("video-missing", repr(str(self.root / content)), reason=str(reason))
        result = self._folders[content]
        if isinstance(result, DataError):
            raise result
        return Frames(result.names, fps) if result is not None and fps else result

    def _upright(self, name: str) -> tuple[int, int]:
        """(height, width) of a picture as it is seen, for coordinates in it. Raises DataError."""
        path, offset, size = split_name(name)
        with picture_errors(path), open(self.root / path, "rb") as file:
            file.seek(offset)
            return upright_size(file.read(size))

    def _shown(self, video: Any) -> str:
        content = video.content if isinstance(video, Medium) else video
        return str(self.root / content) if isinstance(content, str) else "a list of frames"


def frame_folder(path: Path) -> Path | None:
    """The folder of a video's frames: `path`, or where there is no such file, `path` without its suffix; None for neither."""
    if path.is_dir():
        return path
    if path.suffix and not path.exists() and path.with_suffix("").is_dir():
        return path.with_suffix("")
    return None


def read_frames(folder: Path) -> Frames:
    """Names of the frames in a folder, sorted by the numbers in them, and frames per second. Raises DataError.

    The rate is in the folder's file `fps` or `fps.txt`, or as {"fps": 0.5} in a JSON of the folder's name beside it.
    """
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.rpartition(".")[2].lower() in FRAME_SUFFIXES and not e.name.startswith(".")]
    if not names:
        raise DataError("frames-missing", str(folder), endings=FRAME_SUFFIXES)
    if len(names) > limits.FRAME_FILES:
        raise DataError("frames-too-many", str(folder), frames=len(names), most=limits.FRAME_FILES)
    names.sort(key=lambda name: ([int(digits) for digits in re.findall(r"[0-9]{1,18}", name)], name))
    try:
        for name in names:
            name.encode()
    except UnicodeEncodeError:
        raise DataError("frames-name", repr(str(folder))) from None
    for file in (folder / "fps", folder / "fps.txt", folder.with_name(folder.name + ".json")):
        if file.is_file():
            return Frames(tuple(names), _rate(file))
    return Frames(tuple(names), records.FRAMES_PER_SECOND)


def _rate(file: Path) -> float:
    """Frames per second from a file. Raises DataError."""
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(4096)
        fps = float(json.loads(text)["fps"] if file.suffix == ".json" else text)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        fps = 0.0
    if not 1e-3 <= fps <= 1e5:
        raise DataError("frames-fps", str(file))
    return fps
