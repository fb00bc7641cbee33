"""`qwen3vl compare`: captions of two models side by side, one model in memory at a time."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen3vl_core.caption import report, terminal
from qwen3vl_core.caption.generate import Caption, Prompt, Writer
from qwen3vl_core.caption.pictures import Picture, find, shown
from qwen3vl_core.caption.record import MODELS, Comparison, Model, Sample, Text
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.load import load
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import CompareOptions
from qwen3vl_core.progress import Progress
from qwen3vl_core.sizes import size_of

RUN_DIRECTORY = "QWEN3VL_RUN_DIR"
SAMPLES = "samples.jsonl"
DEMO_SIZE = "tiny"
DEMO_NOTE = (
    "{models} the bundled demo model or made from it (size tiny): it knows drawn scenes only; "
    "what it writes about a photograph is nonsense."
)
# a row of a caption under way is written at most this often
ROW_SECONDS = 0.5
_PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Side:
    """One of the two models, checked but not loaded."""

    name: str
    path: str
    size: str | None
    processor: ChatProcessor

    def __str__(self) -> str:
        return f"--{self.name} {shown(self.path)}"


class _Rows:
    """`samples.jsonl` of a run's directory, one write for each row; nowhere when there is no run."""

    def __init__(self, options: CompareOptions) -> None:
        folder = os.environ.get(RUN_DIRECTORY)
        self.file = Path(folder) / SAMPLES if folder else None
        self.prompt = options.prompt
        self.written: dict[tuple[str, str], float] = {}

    def write(self, image: str, model: str, text: str, seconds: float, done: bool) -> None:
        now = time.monotonic()
        if self.file is None or (not done and now - self.written.get((model, image), 0.0) < ROW_SECONDS):
            return
        self.written[model, image] = now
        row = {
            "v": 1, "image": image, "prompt": self.prompt, "model": model, "text": text,
            "seconds": round(seconds, 3), "done": done,
        }  # fmt: skip
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        try:
            with open(self.file, "ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise WorkError(f"{self.file}: cannot be written ({error.strerror}); mend that and compare again") from error


def _open_side(name: str, path: str) -> Side:
    """Everything that can be wrong with a model, found before any is loaded. Raises RequestError."""
    folder = Path(path).expanduser()
    checkpoint = torch_dist.find(folder) if folder.is_dir() else None
    if checkpoint and not (checkpoint.root / "config.json").is_file():
        raise RequestError(
            f"--{name} {shown(path)}: no config.json beside {torch_dist.TRACKER}; "
            "copy config.json and the tokenizer files of the original model there"
        )
    source = open_source(path, option=f"--{name}")
    source.check()
    return Side(name, path, size_of(source.architecture), ChatProcessor.from_pretrained(source.side))


def _prompts(side: Side, pictures: list[Picture], options: CompareOptions) -> Iterator[Prompt]:
    """Read one picture at a time, as the batches need them."""
    for picture in pictures:
        yield Prompt(side.processor.prompt([picture.open()], options.prompt), picture.seed(options.seed))


def _write_captions(side: Side, pictures: list[Picture], options: CompareOptions, rows: _Rows) -> list[Caption]:
    """One caption of each picture; the model is gone from memory afterwards."""
    model = load(side.path, dtype=_PRECISIONS[options.precision])
    with Progress(side.name, total=len(pictures), unit="captions") as progress:

        def on_text(index: int, text: str, done: bool) -> None:
            rows.write(pictures[index].name, side.name, text, time.monotonic() - writer.started, done)
            progress.update(1 if done else 0, "…" + terminal.printable(text[-40:]).replace("\n", " "))

        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.top_k)
        writer = Writer(
            model, side.processor.decode, side.processor.eos_token_ids, sampling, batch_size=options.batch_size, on_text=on_text
        )
        return writer.write(_prompts(side, pictures, options))


def _captions_of(side: Side, pictures: list[Picture], options: CompareOptions, rows: _Rows) -> list[Caption]:
    """`_write_captions`, and what can go wrong with one model on this machine said in one line."""
    try:
        return _write_captions(side, pictures, options, rows)
    except torch.OutOfMemoryError:
        raise WorkError(
            f"{side}: the GPU's memory is full at --batch-size {options.batch_size} and --max-new-tokens {options.max_new_tokens}; "
            "use smaller ones"
        ) from None
    except WorkError as error:
        raise WorkError(f"{side}: {error}") from error
    finally:
        # Megatron's modules refer to each other in circles: only the collector lets go of the weights
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _notes(sides: list[Side]) -> list[str]:
    tiny = [side.name for side in sides if side.size == DEMO_SIZE]
    if not tiny:
        return []
    return [DEMO_NOTE.format(models="Both models are" if len(tiny) == 2 else f"The {tiny[0]} model is")]


def compare(options: CompareOptions) -> tuple[Comparison, list[Picture]]:
    """Write all captions. Raises RequestError before any work for pictures or models that will not do."""
    pictures = find(options.images, options.limit)
    sides = [_open_side(name, getattr(options, name)) for name in MODELS]
    for side in sides:
        # a prompt that a model's chat format refuses is found now, and not after the base has written its captions
        side.processor.prompt([], options.prompt)
    notes = _notes(sides)
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    rows = _Rows(options)
    base, tuned = (_captions_of(side, pictures, options, rows) for side in sides)
    texts = [[Text(c.text, c.seconds, c.whole) for c in captions] for captions in (base, tuned)]
    samples = [Sample(picture.name, *pair) for picture, *pair in zip(pictures, *texts, strict=True)]
    sampling = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "precision")}
    models = [Model(shown(side.path), side.size) for side in sides]
    return Comparison(options.prompt, *models, samples, sampling, notes), pictures


def run(options: CompareOptions) -> None:
    """Captions of both models: a table on standard output, and the reports that were asked for.

    Raises RequestError for pictures, models or places that will not do, WorkError when a model cannot write.
    """
    json_file, html_file = report.check_file("--json", options.json), report.check_file("--html", options.html)
    if json_file and json_file == html_file:
        raise RequestError(f"--json {options.json}: the same file as --html; give each its own")
    comparison, pictures = compare(options)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    sys.stdout.write(terminal.table(comparison, width=shutil.get_terminal_size((100, 24)).columns, colour=colour, show=options.show))
    sys.stdout.flush()
    if json_file:
        report.save(json_file, report.to_json(comparison))
    if html_file:
        report.save(html_file, report.to_html(comparison, (picture.embedded() for picture in pictures)))
    for path in filter(None, (json_file, html_file)):
        print(f"wrote {shown(path)}", file=sys.stderr)
