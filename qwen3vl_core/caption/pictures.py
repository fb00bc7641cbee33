"""Finds and reads the pictures to compare."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.pictures import check_proportions, decode
from qwen3vl_core.errors import RequestError
from qwen3vl_core.problems import Problem
from qwen3vl_core.progress import Progress

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Suffixes of pictures in a folder; a file that is given by its own name may have any suffix."""
MANY = 200


def shown(path: str | Path) -> str:
    """A path as valid UTF-8 text; bytes of its name that are not UTF-8 are replaced."""
    return os.fsencode(str(path)).decode("utf-8", "replace")


@dataclass(frozen=True)
class Picture:
    """A picture file that was decoded once without an error."""

    path: Path
    digest: bytes
    """SHA-256 of the file."""
    question: str = ""
    """The question that its dataset asks about it."""
    references: tuple[str, ...] = ()
    """Reference captions."""

    @property
    def name(self) -> str:
        return shown(self.path)

    def seed(self, seed: int) -> int:
        """The seed of this picture's caption, independent of the other pictures."""
        return int.from_bytes(hashlib.sha256(b"%d:" % seed + self.digest).digest()[:8], "big")

    def open(self) -> Image.Image:
        """Upright, RGB, the first frame of an animation. Raises RequestError when the file is no picture (any more)."""
        return _decoded(self.path, _bytes(self.path))


def _refused(code: str, path: str | Path, **rule: Any) -> RequestError:
    return RequestError(Problem(code, "images", shown(path), rule))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused("path-unreadable", path, reason=error.strerror, advice="leave it out or repair it") from None


def _decoded(path: Path, data: bytes) -> Image.Image:
    try:
        image = decode(data, shown(path))
        check_proportions(image.height, image.width)
    except DataError as error:
        raise _refused("not-a-picture", path, reason=error.problem.explanation) from None
    return image


def _listed(folder: Path) -> list[Path]:
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and p.is_file())
    except OSError as error:
        raise _refused("path-unreadable", folder, reason=error.strerror, advice="choose another folder") from None
    if not files:
        raise _refused("folder-without-pictures", folder, endings=[e.removeprefix(".") for e in ENDINGS])
    return files


def find_pictures(names: list[str], limit: int = 0, left_out: list[str] | None = None) -> list[Picture]:
    """The pictures in files and folders, in the order of `names`, those of a folder sorted by name, without duplicates. limit: 0: none.

    Each is decoded once, so that a broken picture is reported before the models are loaded. left_out: gets a line for each broken
    picture of a folder; without it those are refused as well. Raises RequestError for a name that is not there, a file that
    was named and is no picture, and a folder without pictures.
    """
    paths: dict[Path, Path] = {}
    named = {Path(name).expanduser() for name in names}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            candidates = _listed(path)
        elif path.is_file():
            candidates = [path]
        else:
            raise _refused("no-such-picture", name)
        for picture in candidates:
            paths.setdefault(picture.resolve(), picture)
    if not paths:
        raise RequestError(Problem("no-pictures-given", "images"))
    chosen = list(paths.values())
    count = min(limit or len(chosen), len(chosen))
    pictures: list[Picture] = []
    refused: tuple[Problem, ...] = ()
    # few pictures are read quickly: only many get a progress line
    with Progress("pictures", count, "pictures") if count > MANY else contextlib.nullcontext() as progress:
        for path in chosen:
            if len(pictures) == count:
                break
            try:
                data = _bytes(path)
                _decoded(path, data)
            except RequestError as error:
                if left_out is None or path in named:
                    raise
                refused = error.problems
                left_out += [f"{problem.value}: {problem.broken_rule}" for problem in refused]
                continue
            pictures.append(Picture(path, hashlib.sha256(data).digest()))
            if progress:
                progress.update()
    if not pictures:
        raise RequestError(*refused)
    return pictures
