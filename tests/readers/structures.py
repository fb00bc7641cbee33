"""Seeded damage that knows the structure of what it damages: JSON, YAML, pickles, archives of torch.save, headers of safetensors.

Damage to bytes alone seldom passes the parser: what stands behind it is reached by a file that is whole and says something else.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

from tests.data.mutations import damaged

Change = Callable[[bytes, random.Random], bytes]

_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**40, -(2**63), 2**63, 2**64, 10**30, 10**400, 0.0, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "a",
    "0", "-1", "nan", "true", "null", "\0", "\n", "\x1b[31m", "\ud800",
    "../..", "/", "/dev/zero",
    "a" * 5000, "{00000..99999999}", "{a,b}{a,b}{a,b}", "%s%n", "{0}", "{{ 1 }}", "<|image_pad|>", "é漢🐕", "(a+)+$", "[", "*",
    [], {}, [[]],
    [None], [0], [1, 2, 3], ["a"], {"a": 1}, {"": {}}, [{}], [-1], [2**40] * 3, list(range(200)), _DEEP,
)  # fmt: skip
"""Values that stand where others are expected."""


def place(value: Any, chance: random.Random) -> tuple[Any, ...]:
    """The path of a value in a structure: each level is as likely to be met, however many values a list or an object has."""
    path: tuple[Any, ...] = ()
    while isinstance(value, dict | list) and value and (not path or chance.random() < 0.8):
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        path, value = (*path, key), value[key]
    return path if chance.random() < 0.95 else ()


def changed(made: Any, chance: random.Random) -> Any:
    """Plain values with one to three changes: a value replaced, left out, doubled, renamed, swapped or put a level deeper."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = place(made, chance)
        nasty = copy.deepcopy(chance.choice(NASTY))
        if not path:
            if chance.random() < 0.1:
                return nasty
            continue
        holder = made
        for key in path[:-1]:
            holder = holder[key]
        key, how = path[-1], chance.randrange(8)
        if how < 4:
            holder[key] = _near(holder[key], chance) if how == 0 else nasty
        elif how == 4:
            del holder[key]
        elif how == 5:
            holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
        elif how == 6:
            source = made
            for step in place(made, chance):
                source = source[step]
            holder[key] = copy.deepcopy(source)
        elif isinstance(holder, dict):
            holder[nasty if isinstance(nasty, str) else str(nasty)[:50]] = holder.pop(key)
        else:
            holder.insert(key, copy.deepcopy(holder[key]))
    return made


def _near(value: Any, chance: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return chance.choice((value + 1, value - 1, -value, value * 2, value * 10**6, value // 2 if isinstance(value, int) else value / 2))
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        return chance.choice((value[:at], value + value, value[:at] + chance.choice(("\0", "\n", "/", "é", "{", " ")) + value[at:]))
    return value


def as_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON file, changed in one of its values; one in eight in its bytes."""
    if chance.random() < 0.125:
        return damaged(data, chance)
    value = changed(json.loads(data), chance)
    return json.dumps(value).encode()


def as_lines(data: bytes, chance: random.Random) -> bytes:
    """A file of JSON lines, changed in one row or two."""
    if chance.random() < 0.125:
        return damaged(data, chance)
    lines = data.splitlines()
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode()
        if chance.random() < 0.1:
            lines.insert(chance.randrange(len(lines)), lines[at])
    return b"\n".join(lines) + chance.choice((b"\n", b"\n", b""))


_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (c, c, *[c - 1] * 9) for c in range(ord("b"), ord("k"))
)


def as_yaml(data: bytes, chance: random.Random) -> bytes:
    """A YAML file, changed in one of its values, in its bytes, or with aliases that multiply."""
    which = chance.random()
    if which < 0.15:
        return damaged(data, chance)
    if which < 0.17:
        return data + _BOMB
    if which < 0.22:
        lines = data.splitlines(keepends=True)
        at = chance.randrange(len(lines))
        tag = chance.choice((b"!!bool", b"!!int", b"!!float", b"!!timestamp", b"!!binary", b"!!set", b"!!omap", b"!!pairs", b"!!null",
                             b"!!python/object/apply:os.getpid", b"&a *a", b"2024-99-99", b"1" * 5000))  # fmt: skip
        key, colon, rest = lines[at].partition(b":")
        lines[at] = key + colon + b" " + tag + (rest or b"\n")
        return b"".join(lines)
    value = changed(yaml.safe_load(data), chance)
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return repr(value).encode("utf-8", "surrogatepass")


def as_text(data: bytes, chance: random.Random) -> bytes:
    """Words and lines of a text, replaced, doubled, cut or moved; or its bytes."""
    if chance.random() < 0.4:
        return damaged(data, chance)
    words = data.split(b" ")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(words))
        nasty = str(chance.choice(NASTY)).encode("utf-8", "surrogatepass")[:6000]
        words[at] = chance.choice((nasty, b"", words[chance.randrange(len(words))], words[at] + b"\n", words[at] * 2))
    return b" ".join(words)


_NUMBERS = ("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")


def _tuples(levels: int, first: int) -> bytes:
    """A tuple of twice the tuple before it, `levels` times, by places of the memo from `first` on."""
    twice = b"".join(b"r" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + b"\x86" for n in range(first, first + levels))
    return b"K\x01K\x01\x86" + twice


PICKLE_BOMBS = (
    b"}" + _tuples(60, 0) + b"Ns",
    b"\x8f(" + _tuples(60, 0) + b"\x90",
    b"})" + b"\x85" * 1_000_000 + b"Ns",
    b"}(" + b"}(" * 1000 + b"u" * 1000 + b"(" + _tuples(20, 0) * 50 + b"tNu",
    b"cbuiltins\nbytearray\n\x8a\x06" + struct.pack("<Q", 2**40)[:6] + b"\x85R",
    b"Nr" + struct.pack("<I", 2**31 - 1),
    b"\x8d" + struct.pack("<Q", 2**40) + b"a",
    b"\x95" + struct.pack("<Q", 2**40) + b"N",
)
"""Pieces of pickles that take hours, the stack or terabytes of a reader; each leaves one value."""


def as_pickle(data: bytes, chance: random.Random) -> bytes:
    """A pickle with other numbers, texts, or operations; frames are left out, which would give it away."""
    if chance.random() < 0.125:
        return damaged(data, chance)
    operations = list(pickletools.genops(data))
    ends = [place for _, _, place in operations[1:]] + [len(data)]
    parts = [(code.name, argument, data[begin:end]) for (code, argument, begin), end in zip(operations, ends, strict=True)]
    parts = [part for part in parts if part[0] != "FRAME"]
    if chance.random() < 0.05:
        # before some operation: the key of a dictionary of tuples in tuples, a place of the memo, or lengths, that are left there again
        at = chance.randrange(1, len(parts))
        bomb = chance.choice(PICKLE_BOMBS)
        return b"".join([*(piece for _, _, piece in parts[:at]), bomb, b"0", *(piece for _, _, piece in parts[at:])])
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(parts))
        wanted = chance.choice((_NUMBERS, _TEXTS, ()))
        suitable = [i for i, (name, _, _) in enumerate(parts) if name in wanted]
        if suitable:
            at = chance.choice(suitable)
        name, argument, piece = parts[at]
        if name in _NUMBERS:
            number = chance.choice((0, -1, argument + 1, argument * 2, 2**31, 2**40, 2**62, -(2**63), 10**30))
            coded = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
            piece = b"\x8a" + bytes([len(coded)]) + coded
        elif name in _TEXTS:
            text = chance.choice(("", "a", "\0", "../x", argument + "x", argument[:-1], "torch", "a" * 5000)).encode()
            piece = b"X" + struct.pack("<I", len(text)) + text
        elif (how := chance.randrange(5)) == 0:
            piece = b""
        elif how == 1:
            piece += piece
        elif how == 2:
            piece = parts[chance.randrange(len(parts))][2]
        elif how == 3:
            piece = chance.choice(
                (b"N", b"K\x01", b"]", b"}", b")", b"\x88", b"\x8c\x01a", b"G\x7f\xf8\0\0\0\0\0\0", b"0", b".", b"R", b"b", b"u")
            )
        else:
            other = chance.randrange(len(parts))
            parts[other], parts[at] = parts[at], parts[other]
            piece = parts[at][2]
        parts[at] = (name, argument, piece)
    return b"".join(piece for _, _, piece in parts)


def as_archive(data: bytes, chance: random.Random) -> bytes:
    """A file of torch.save, with another pickle in it, other sizes, or without one of its entries."""
    if chance.random() < 0.2:
        return damaged(data, chance)
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    names = [i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")]
    at = chance.choice(names) if chance.random() < 0.8 else chance.randrange(len(entries))
    name, content = entries[at]
    if name.endswith("data.pkl"):
        entries[at] = name, as_pickle(content, chance)
    elif chance.random() < 0.3:
        del entries[at]
    else:
        entries[at] = name, chance.choice((b"", content[: len(content) // 2], content * 2, damaged(content or b"x", chance)))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name, content in entries:
            target.writestr(name, content)
    return made.getvalue()


def as_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, the length stated rightly, or its first bytes damaged."""
    (length,) = struct.unpack("<Q", data[:8])
    which = chance.random()
    if which < 0.1:
        return damaged(data[: 8 + length], chance) + data[8 + length :]
    if which < 0.2:
        return struct.pack("<Q", chance.choice((0, 1, length + 1, length - 1, len(data), 2**31, 2**62, 2**64 - 1))) + data[8:]
    header = json.dumps(changed(json.loads(data[8 : 8 + length]), chance)).encode()
    if which < 0.3:
        header = damaged(header, chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def as_bytes(data: bytes, chance: random.Random) -> bytes:
    """A file that has no structure of its own, or whose parser is not ours."""
    return damaged(data, chance)
