"""What cases of sources are made of: media, and records in the layouts of several trainers."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from tests.data import samples, videos

A, B = (samples.encoded(samples.picture(seed)) for seed in (1, 2))
P, Q = (samples.encoded(samples.picture(seed), "PNG") for seed in (3, 4))
FRAMES = [samples.encoded(samples.picture(seed, 48, 32)) for seed in range(10, 14)]
C = videos.video(8, 4, seed=1)
D = videos.video(6, 2, seed=2)
MEDIA = {"a.jpg": A, "b.jpg": B, "p.png": P, "q.png": Q, "c.mp4": C, "d.mp4": D} | {
    f"f/{n}.jpg": frame for n, frame in enumerate(FRAMES, 1)
}
NAMES = {content: name for name, content in MEDIA.items()}
URL = "data:image/png;base64," + base64.b64encode(P).decode()


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def bot(content: Any = "Red.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def human(text: str = "<image>\nWhat?") -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str = "Red.") -> dict[str, str]:
    return {"from": "gpt", "value": text}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def messages(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def llava(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns) or [human(), gpt()], **more}


def json_list(*records: Any) -> dict[str, bytes]:
    return {"train.json": json.dumps(records).encode()}


def lines(*records: Any) -> dict[str, bytes]:
    return {"train.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode()}


def tar(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def picture_as(format: str) -> bytes:
    return samples.encoded(samples.picture(1), format)


@dataclass
class Case:
    files: dict[str, bytes]
    expected: list[str] | str
    """The samples, or the words of the refusal."""
    source: str = ""
    """Else the first file."""
    said: str = ""
    """Words of the table that `prepare` prints."""
    options: dict[str, Any] = field(default_factory=dict)


ONE = "U {a.jpg}What?\nA Red."
CAPTION = "U {a.jpg}Describe this image.\nA Red."
PUT = "1 record: pictures or videos without a tag, put in front of the first question"
WHERE = "@HERE@"
"""Stands for the source's folder."""
