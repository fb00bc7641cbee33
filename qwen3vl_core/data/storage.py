"""Locations of data: a path on this machine, or `msc://PROFILE/PATH` of the Multi-Storage Client. Imports no torch.

A profile names an object store and is defined in the client's own configuration (`MSC_CONFIG`, `~/.msc_config.yaml`).
Both kinds of locations have one interface; the client, which is slow to import, is imported for remote ones only.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3vl_core import files
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import is_url
from qwen3vl_core.formats import quantity

_MSC = "msc://"


class Remote:
    """The part of `pathlib.Path` that readers of datasets use, for an object store.

    Raises RequestError for an address that the client cannot resolve, WorkError when the store cannot be read.
    """

    def __init__(self, url: str) -> None:
        if not re.fullmatch(r"msc://[^/]+(/.*)?", url):
            raise RequestError(
                f"{url}: remote data is named msc://PROFILE/PATH; name the store as a profile in the Multi-Storage Client's "
                "configuration (MSC_CONFIG, ~/.msc_config.yaml)"
            )
        profile, _, path = url.removeprefix(_MSC).partition("/")
        self.profile, self.path = profile, posixpath.normpath("/" + path).lstrip("/")

    def __str__(self) -> str:
        return f"{_MSC}{self.profile}/{self.path}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> Remote:
        return Remote(str(self).rstrip("/") + "/" + str(name))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1]

    @property
    def parent(self) -> Remote:
        return Remote(f"{_MSC}{self.profile}/{posixpath.dirname(self.path)}")

    def with_suffix(self, suffix: str) -> Remote:
        return Remote(os.path.splitext(str(self))[0] + suffix)

    def is_file(self) -> bool:
        return bool(self._request(lambda client: client.is_file(self.path)))

    def is_dir(self) -> bool:
        # a store has no folders, only names with a common prefix
        return bool(self._request(lambda client: not client.is_empty(self.path + "/")))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        return int(self._request(lambda client: client.info(self.path).content_length))

    def read_bytes(self) -> bytes:
        return self._request(lambda client: client.read(self.path))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def read_range(self, begin: int, size: int) -> bytes:
        """Up to `size` bytes from `begin` on."""
        from multistorageclient.types import Range

        return self._request(lambda client: client.read(self.path, Range(begin, size)))

    def _request(self, call: Callable[[Any], Any]) -> Any:
        import multistorageclient

        try:
            # cached by the library, which creates a new one after a fork
            client, _ = multistorageclient.resolve_storage_client(f"{_MSC}{self.profile}/")
        except Exception as error:
            raise RequestError(
                f"{self}: the Multi-Storage Client cannot use the profile {self.profile} ({_reason(error)}); "
                "correct its configuration (MSC_CONFIG, ~/.msc_config.yaml)"
            ) from error
        try:
            return call(client)
        except FileNotFoundError:
            raise RequestError(f"{self}: no such file; copy it there, or correct the path") from None
        except Exception as error:
            # each provider raises its own library's errors
            raise WorkError(f"{self}: the store does not give it ({_reason(error)}); is it still there, may you read it?") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


Place = Path | Remote


def place_of(name: str | Path | Remote) -> Place:
    """The location that the user named. Raises RequestError for an unsupported kind of address."""
    if isinstance(name, (Path, Remote)):
        return name
    return Remote(name) if is_url(name) else Path(name).expanduser()


_LONGEST_NAME, _LONGEST_PATH = 255, 3000


def within(folder: Place, name: str) -> Place:
    """Resolve a `name` in a file of `folder`: relative to the folder, absolute, or an address. Raises RequestError for one that is too
    long for a file system."""
    if is_url(name):
        return Remote(name)
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in name.split("/")) or len(name) > _LONGEST_PATH:
        raise RequestError(f"{folder}: {name[:40]}…: a name of {len(name):,} characters; correct the path")
    if isinstance(folder, Remote) and name.startswith("/"):
        return Remote(f"{_MSC}{folder.profile}{name}")
    return folder / name


def local(name: str, flag: str) -> Path:
    """A path on this machine. Raises RequestError for an address: `flag` takes local paths only."""
    if is_url(name):
        raise RequestError(f"{flag} {name}: must be a path of this machine; copy it with the store's own tool (msc cp, msc sync)")
    return Path(name).expanduser()


def read_small(place: Place, most: int) -> bytes:
    """The content of a file of at most `most` bytes, which are compared first. Raises RequestError for a larger one, OSError, WorkError."""
    if isinstance(place, Path):
        return files.read_small(place, most)
    if (size := place.size()) > most:
        raise RequestError(f"{place}: {quantity(size, 'B')}; such a file has at most {quantity(most, 'B')}; copy it again")
    return place.read_bytes()


def size_of(place: Place) -> int:
    """Bytes of a file."""
    return place.size() if isinstance(place, Remote) else place.stat().st_size
