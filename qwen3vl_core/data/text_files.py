"""What a file is by its first bytes, and text files whatever their compression and encoding. Imports no torch."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError

_HEAD = 1 << 16
_BOM = b"\xef\xbb\xbf"
_OPENERS: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_MAGIC = (
    (b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"),
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf", "7z"), (b"Rar!", "rar"), (b"SQLite format 3", "sqlite"), (b"%PDF", "pdf"),
    (b"\x80\x04\x95", "pickle"), (b"\x93NUMPY", "numpy"), (b"\xff\xd8\xff", "picture"), (b"\x89PNG", "picture"),
    (b"version https://git-lfs", "lfs"),
)  # fmt: skip
_ARCHIVE = "archive; unpack it, and give the file or folder in it"
_WAYS = {
    "zstd": "compressed by zstd; unpack it: zstd -d {name}", "zip": f"a zip {_ARCHIVE}",
    "7z": f"a 7z {_ARCHIVE}", "rar": f"a rar {_ARCHIVE}",
    "sqlite": "an SQLite database; export the table as CSV or JSON Lines", "pdf": "a PDF; give a file of records",
    "numpy": "a NumPy array; write the records as JSON Lines", "picture": "a picture; give the file that names it",
    "pickle": "a Python pickle, which could run code when it is read; write the records as JSON Lines",
    "lfs": "a pointer of Git LFS, not the file itself; fetch it: git lfs pull",
}  # fmt: skip
_GUESSES = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252")


def file_kind(head: bytes) -> str:
    """parquet, arrow, tar, gzip, …, or `text` for what none of the known formats begins with."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "text")


def read_head(path: Path) -> bytes:
    """The first block of a file, as stored. Raises RequestError when it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise unreadable(path, error) from None
    if not head:
        raise RequestError(f"{path}: an empty file; copy or download it again")
    return head


def unreadable(path: Path, error: OSError) -> RequestError:
    if isinstance(error, FileNotFoundError):
        return RequestError(f"{path}: no such file; give a file or folder of records (docs/data.md lists the layouts)")
    return RequestError(f"{path}: cannot be read ({error.strerror}); give a file or folder of records")


def refuse_binary(path: Path, kind: str) -> None:
    """Raises RequestError for a kind of file that holds no records as it is."""
    if kind == "zip" and path.suffix.lower() in (".xlsx", ".ods", ".docx"):
        raise RequestError(f"{path}: a spreadsheet or document; export it as CSV (UTF-8), and give that")
    if kind in _WAYS:
        raise RequestError(f"{path}: {_WAYS[kind].format(name=path.name)}")


class TextFile:
    """A text file of records: compression and encoding are found out from its first bytes. Raises RequestError for other files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        head = read_head(path)
        self.compression = file_kind(head)
        refuse_binary(path, self.compression)
        if self.compression not in _OPENERS and self.compression != "text":
            raise RequestError(f"{path}: {self.compression}, not text")
        if self.compression != "text":
            with self.errors(), self._raw() as file:
                head = file.read(_HEAD)
            if head[257:262] == b"ustar":
                raise RequestError(f"{path}: a compressed tar; unpack it: gunzip, bunzip2 or unxz {path.name}")
        self.encoding, self._bom = encoding_of(head)
        if self.encoding == "utf-32":
            raise RequestError(f"{path}: UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8 {path.name} > utf8-{path.name}")
        self.head = head[self._bom :].decode(self.encoding, "replace").lstrip("\ufeff")

    def _raw(self) -> BinaryIO:
        if self.compression == "text":
            return open(self.path, "rb", buffering=1 << 20)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, _OPENERS[self.compression](self.path, "rb")), 1 << 20))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise RequestError(f"{self.path}: damaged or cut off ({error}); copy or download it again") from None
        except OSError as error:
            if self.compression != "text" and error.errno is None:
                raise RequestError(f"{self.path}: damaged or cut off ({error}); copy or download it again") from None
            raise unreadable(self.path, error) from None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(line from 1, its bytes in UTF-8, or as they are where they are not). Raises RequestError for a line too long for a record."""
        with self.errors(), self._raw() as file:
            file.read(self._bom)
            place = 0
            if self.encoding != "utf-8":
                with io.TextIOWrapper(file, self.encoding, "surrogatepass", newline="\n") as text:
                    while decoded := self._decoded(lambda: text.readline(limits.JSON_LINE)):
                        place += 1
                        yield place, decoded.encode("utf-8", "surrogatepass")
                return
            while line := file.readline(limits.JSON_LINE):
                place += 1
                if len(line) == limits.JSON_LINE and not line.endswith(b"\n"):
                    raise RequestError(f"{self.path}: line {place} is over {limits.JSON_LINE >> 20} MiB; JSON Lines have one record a line")
                yield place, line

    def text(self) -> io.TextIOBase:
        """The file as text, for `with`. Its reads raise UnicodeDecodeError, which `not_utf8` names."""
        file = self._raw()
        file.read(self._bom)
        return io.TextIOWrapper(file, self.encoding, newline="")

    def blocks(self, size: int = 1 << 20) -> Iterator[str]:
        """The file's text in blocks, none of them empty. Raises RequestError for what is not text."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        done = self._bom
        with self.errors(), self._raw() as file:
            file.read(self._bom)
            while True:
                block = file.read(size)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise self.not_utf8(done + error.start, error.object) from None
                if text:
                    yield text
                if not block:
                    return
                done += len(block)

    def _decoded(self, read: Callable[[], str]) -> str:
        try:
            return read()
        except UnicodeDecodeError as error:
            raise self.not_utf8(error.start, error.object) from None

    def not_utf8(self, byte: int, data: bytes, line: int | None = None) -> RequestError:
        """For a file whose bytes are not text: names the place, and the encoding that it may be."""
        position = f"line {line}, byte {byte:,}" if line is not None else f"byte {byte:,}"
        guess = next((name for name in _GUESSES if _decodes(data, name)), None)
        way = f"; it may be {guess.upper()}: iconv -f {guess.upper()} -t UTF-8 {self.path.name} > utf8-{self.path.name}" if guess else ""
        return RequestError(f"{self.path}: not UTF-8 text ({position}){way or '; convert it to UTF-8'}")


def _decodes(data: bytes, name: str) -> bool:
    try:
        # a block may end within a character
        text = codecs.getincrementaldecoder(name)().decode(data)
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def encoding_of(head: bytes) -> tuple[str, int]:
    """(encoding of a text, bytes of its byte order mark): UTF-8 unless the first bytes say UTF-16 or UTF-32."""
    if head.startswith(_BOM):
        return "utf-8", 3
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32", 4
    if head.startswith(b"\xff\xfe"):
        return "utf-16-le", 2
    if head.startswith(b"\xfe\xff"):
        return "utf-16-be", 2
    begin = head[:8]
    if len(begin) >= 4 and not any(begin[1::2]) and all(begin[::2]):
        return "utf-16-le", 0
    if len(begin) >= 4 and not any(begin[::2]) and all(begin[1::2]):
        return "utf-16-be", 0
    return "utf-8", 0
