"""Sources as people have them, from public documentation and reports of problems: each ends as its owner expects.

A case is a folder's files, the source among them, and what becomes of each record: the conversation that is trained, a line a turn
(`U` user, `S` system, `A` answer that is trained, `a` one that is not, `T` tool; {a.jpg} the picture of that file, {c.mp4} a video),
or the words of the refusal.
"""

from __future__ import annotations

import json

import pytest

from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import PrepareOptions
from tests.data.brought import MEDIA, NAMES, WHERE
from tests.data.brought_layouts import LAYOUTS
from tests.data.brought_records import MARKUP_AND_KEYS, MEDIA_FILES, SHAPES

CASES = LAYOUTS | SHAPES | MARKUP_AND_KEYS | MEDIA_FILES


def shown(parts: dict[str, bytes]) -> str:
    """A sample, as the cases write it."""
    rows = []
    for message in json.loads(parts["json"])["messages"]:
        words = ""
        for part in message["content"]:
            if part["type"] == "text":
                words += part["text"]
            elif "frames" in part:
                words += "{" + " ".join(NAMES[parts[name]] for name in part["frames"]) + f" @{part['fps']}" + "}"
            else:
                sampling = " " + json.dumps(part["sampling"], sort_keys=True, separators=(",", ":")) if "sampling" in part else ""
                words += "{" + NAMES.get(parts[part["part"]], "?") + sampling + "}"
        if calls := message.get("tool_calls"):
            words += " " + json.dumps([call["function"] for call in calls], sort_keys=True, separators=(",", ":"))
        letter = {"user": "U", "system": "S", "tool": "T", "assistant": "A" if message.get("loss", True) else "a"}[message["role"]]
        rows.append(f"{letter} {words}")
    return "\n".join(rows)


@pytest.mark.parametrize("name", CASES)
def test_a_source_ends_as_its_owner_expects(tmp_path, capsys, name):
    case, folder = CASES[name], tmp_path / "source"
    for file, content in ({} if case.source else MEDIA).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    for file, content in case.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content.replace(WHERE.encode(), str(folder).encode()))
    source = folder / (case.source or next(iter(case.files)))
    options = PrepareOptions(source=str(source), to=str(tmp_path / "data"), split="1,0,0", workers=1, **case.options)
    if isinstance(case.expected, str) and not case.said:
        with pytest.raises(RequestError) as refused:
            prepare.run(options)
        line = str(refused.value)
        assert case.expected in line
        assert "\n" not in line and len(line) < 900
        return
    prepare.run(options)
    split = ShardSplit(tmp_path / "data", "train")
    found = {key: shown(parts) for key, parts in (split.read(number) for number in range(len(split)))}
    expected = case.expected if isinstance(case.expected, list) else []
    assert [found[key] for key in sorted(found)][: len(expected) or None] == (expected or list(found.values()))
    assert case.said in capsys.readouterr().out


def test_every_kind_has_three_cases():
    """F01, W01, … are the kinds of reported cases."""
    kinds: dict[str, int] = {}
    for name in CASES:
        kinds[name.split()[0]] = kinds.get(name.split()[0], 0) + 1
    assert len(CASES) > 160
    assert not {kind for kind, count in kinds.items() if kind[1:].isdigit() and count < 3}
