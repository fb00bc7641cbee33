"""A comparison as JSON for machines and as one page of HTML for people. Imports no torch."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import unicodedata
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from qwen3vl_core.caption.record import MODELS, Comparison, Model, Sample, Text
from qwen3vl_core.caption.scores import repetition
from qwen3vl_core.caption.words import difference
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import disk_full, write_text

VERSION = 1
TITLE = "Captions of two models"


def to_mapping(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON holds it."""
    return {
        "v": VERSION,
        "prompt": comparison.prompt,
        "models": {name: dataclasses.asdict(getattr(comparison, name)) for name in MODELS},
        "sampling": comparison.sampling,
        "notes": comparison.notes,
        "scores": dataclasses.asdict(comparison.scores()),
        "captions": [_row(sample) for sample in comparison.samples],
    }


def _row(sample: Sample) -> dict[str, Any]:
    row: dict[str, Any] = {"image": sample.image}
    for name in MODELS:
        caption: Text = getattr(sample, name)
        row |= {
            name: caption.text, f"{name}_words": caption.words, f"{name}_repetition": round(repetition(caption.text), 4),
            f"{name}_seconds": round(caption.seconds, 3), f"{name}_whole": caption.whole,
        }  # fmt: skip
    return row | {"difference": [list(run) for run in difference(sample.base.text, sample.tuned.text)]}


def to_json(comparison: Comparison) -> str:
    return json.dumps(to_mapping(comparison), ensure_ascii=False, indent=1) + "\n"


def escaped(text: str) -> str:
    """For HTML's text and quoted attributes; control characters, which HTML forbids, become replacement characters."""
    visible = "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text.replace("\r\n", "\n"))
    return html.escape(visible, quote=True)


def _tagged(text: str, tag: str) -> str:
    """The text's words in a tag, the spaces around them outside: a line-through under a line's end says nothing."""
    body = text.strip()
    if not body:
        return escaped(text)
    start = text.index(body)
    return f"{escaped(text[:start])}<{tag}>{escaped(body)}</{tag}>{escaped(text[start + len(body) :])}"


def _captions(sample: Sample) -> tuple[str, str]:
    """Both captions as HTML, what only they have in `del` and `ins`."""
    base, tuned = [], []
    for kind, text_base, text_tuned in difference(sample.base.text, sample.tuned.text):
        base.append(escaped(text_base) if kind == "same" else _tagged(text_base, "del"))
        tuned.append(escaped(text_tuned) if kind == "same" else _tagged(text_tuned, "ins"))
    return "".join(base), "".join(tuned)


def _column(label: str, caption: Text, marked: str) -> str:
    cut = "" if caption.whole else " · cut off at the longest length"
    body = f'<p class="caption" dir="auto">{marked}</p>' if caption.text.strip() else '<p class="empty">no text</p>'
    return f'<section><h3>{label}</h3>\n<p class="meta">{caption.words} words · {caption.seconds:.1f} s{cut}</p>\n{body}</section>'


def _article(sample: Sample, picture: str, number: int) -> str:
    base, tuned = _captions(sample)
    return (
        f'<article id="picture-{number}"><h2>{number}. {escaped(sample.image)}</h2>\n<div class="row">\n'
        f'<img src="{escaped(picture)}" alt="{escaped(sample.image)}" loading="lazy">\n'
        f"{_column('base', sample.base, base)}\n{_column('tuned', sample.tuned, tuned)}\n</div></article>"
    )


def _about(comparison: Comparison) -> Iterable[tuple[str, str]]:
    def described(model: Model) -> str:
        return model.path + (f" (size {model.size})" if model.size else "")

    yield "prompt", comparison.prompt
    yield "base", described(comparison.base)
    yield "tuned", described(comparison.tuned)
    yield "sampling", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in comparison.sampling.items())


def _scores(comparison: Comparison) -> Iterable[tuple[str, str, str]]:
    scores = comparison.scores()
    yield "pictures", str(len(comparison.samples)), str(len(comparison.samples))
    yield "words of a caption, average", f"{scores.base.words:.1f}", f"{scores.tuned.words:.1f}"
    yield "shortest", str(scores.base.fewest_words), str(scores.tuned.fewest_words)
    yield "longest", str(scores.base.most_words), str(scores.tuned.most_words)
    yield "repeated passages", f"{scores.base.repetition:.1%}", f"{scores.tuned.repetition:.1%}"
    yield "captions that differ", "", f"{scores.differ:.0%}"


def to_html(comparison: Comparison, pictures: Iterable[str]) -> str:
    """One page that needs nothing else: no network, no script. pictures: a data URI for each sample."""
    here = resources.files(__package__)
    articles = [_article(sample, uri, n) for n, (sample, uri) in enumerate(zip(comparison.samples, pictures, strict=True), start=1)]
    return Template(here.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=TITLE,
        style=here.joinpath("report.css").read_text(encoding="utf-8"),
        notes="\n".join(f'<p class="note" role="note">{escaped(note)}</p>' for note in comparison.notes),
        about="\n".join(f"<dt>{name}</dt><dd>{escaped(value)}</dd>" for name, value in _about(comparison)),
        scores="\n".join(f'<tr><th scope="row">{n}</th><td>{b}</td><td>{t}</td></tr>' for n, b, t in _scores(comparison)),
        samples="\n".join(articles),
    )


def check_file(option: str, name: str | None) -> Path | None:
    """The path of a report to write. Raises RequestError when it is a folder, or stands where nothing can be written."""
    if name is None:
        return None
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        raise RequestError(f"{option} {name}: a folder; give a file in it")
    if not path.parent.is_dir():
        raise RequestError(f"{option} {name}: {path.parent} is no folder; make it first, or choose another place")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"{option} {name}: {path.parent} cannot be written to; choose another place")
    return path


def save(path: Path, text: str) -> None:
    """Whole or not at all. Raises WorkError when it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        reason = "the disk is full" if disk_full(error) else error.strerror
        raise WorkError(f"{path}: cannot be written ({reason}); free some space or choose another place, and compare again") from error
