"""`qwen3vl compare`: captions of several models side by side, one model in memory at a time."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from qwen3vl_core.caption import compared_models, report, terminal
from qwen3vl_core.caption.compared_models import ComparedModel
from qwen3vl_core.caption.comparison import Comparison, ReportCaption, ReportModel, ReportSample
from qwen3vl_core.caption.data_uri import PageFit
from qwen3vl_core.caption.dataset import find_samples
from qwen3vl_core.caption.generate import CaptionWriter, GeneratedCaption, Prompt
from qwen3vl_core.caption.pictures import Picture, find_pictures, shown
from qwen3vl_core.caption.references import read_references
from qwen3vl_core.caption.run_output import CaptionRows
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.checkpoint.load import load
from qwen3vl_core.data.errors import listed
from qwen3vl_core.dtypes import DTYPES
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_output_file, only_writer, write_output
from qwen3vl_core.formats import printable
from qwen3vl_core.options import CompareOptions, check_options
from qwen3vl_core.progress import Progress

SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "precision")
"""Options on which the generated text depends."""


class ComparisonStopped(KeyboardInterrupt):
    """The comparison was interrupted; the reports hold the pictures that have all captions."""


def _write_captions(
    compared: ComparedModel, pictures: list[Picture], options: CompareOptions, rows: CaptionRows, captions: dict[int, GeneratedCaption]
) -> None:
    """Write a caption of each picture into `captions`; the model is freed afterwards."""
    model = load(compared.path, dtype=DTYPES.get(options.precision), base=compared.base)
    with Progress(compared.name, total=len(pictures), unit="captions") as progress:

        def on_text(index: int, text: str, done: bool) -> None:
            complete = not done or writer.finished[index].whole
            rows.write(
                pictures[index].name, _prompt_of(pictures[index], options), compared.name, text, writer.seconds[index], done, complete
            )
            progress.update(1 if done else 0, "…" + printable(text[-40:]).replace("\n", " "))

        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.top_k)
        writer = CaptionWriter(
            model, compared.processor.decode, compared.processor.eos_token_ids, sampling, batch_size=options.batch_size, on_text=on_text
        )
        writer.finished = captions
        writer.write(_prompts(compared, pictures, options))


def _prompt_of(picture: Picture, options: CompareOptions) -> str:
    return picture.question if options.own_questions and picture.question else options.prompt


def _prompts(compared: ComparedModel, pictures: list[Picture], options: CompareOptions) -> Iterator[Prompt]:
    """The prompts, each picture read when its batch needs it."""
    for picture in pictures:
        yield Prompt(compared.processor.prompt([picture.open()], _prompt_of(picture, options)), picture.seed(options.seed))


def _captions_of(
    compared: ComparedModel, pictures: list[Picture], options: CompareOptions, rows: CaptionRows, captions: dict[int, GeneratedCaption]
) -> None:
    """`_write_captions`, with one-line errors that name the model."""
    try:
        _write_captions(compared, pictures, options, rows, captions)
    except torch.OutOfMemoryError:
        raise WorkError(
            f"{compared}: out of GPU memory with --batch-size {options.batch_size} and --max-new-tokens {options.max_new_tokens}; "
            "reduce one of them"
        ) from None
    except WorkError as error:
        raise WorkError(f"{compared}: {error}") from error
    finally:
        # Megatron's modules are in reference cycles: only the garbage collector frees the weights
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _pictures(options: CompareOptions, folder: Path) -> tuple[list[Picture], list[str]]:
    """(pictures with their references, notes about those that were left out). Raises RequestError."""
    left_out: list[str] = []
    if options.data:
        pictures = find_samples(options.data, options.split, options.limit, folder, left_out)
    else:
        pictures = find_pictures(options.images, options.limit, left_out)
    notes = [f"Left out {len(left_out):,} of {len(pictures) + len(left_out):,}: {listed(left_out, 2)}."] if left_out else []
    if options.references:
        captions_by_picture = read_references(options.references)
        pictures = [replace(picture, references=captions_by_picture.of(picture.path)) for picture in pictures]
        if not any(picture.references for picture in pictures):
            raise RequestError(
                f"--references {options.references}: captions of {len(captions_by_picture):,} pictures, none of which is compared "
                f"({pictures[0].path.name}, …); give the captions of these pictures"
            )
    return pictures, notes


def _check_prompts(models: list[ComparedModel], pictures: list[Picture], options: CompareOptions) -> None:
    """Raise RequestError for a prompt that a model's chat template rejects, before any model is loaded."""
    for compared in models:
        for prompt in {_prompt_of(picture, options) for picture in pictures}:
            compared.processor.prompt([], prompt)


def compare(options: CompareOptions, pictures_in: Path | None = None) -> tuple[Comparison, list[Picture]]:
    """Write all captions. pictures_in: folder for the pictures of a dataset; default: in the run's folder.

    Raises RequestError for invalid pictures or models, before any work; on an interrupt `ComparisonStopped` with (comparison,
    pictures) for the pictures that have all captions.
    """
    check_options(options)
    rows = CaptionRows()
    folder = pictures_in or ((rows.folder or Path.cwd()) / "pictures")
    pictures, notes = _pictures(options, folder)
    models = compared_models.open_models(options)
    _check_prompts(models, pictures, options)
    notes = compared_models.notes(models) + notes
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    sampling = {name: getattr(options, name) for name in SAMPLING}
    report_models = {compared.name: ReportModel(shown(compared.path), compared.size) for compared in models}
    comparison = Comparison(options.prompt, report_models, [], sampling, notes)
    rows.begin(comparison, pictures)
    captions: dict[str, dict[int, GeneratedCaption]] = {compared.name: {} for compared in models}
    try:
        for compared in models:
            _captions_of(compared, pictures, options, rows, captions[compared.name])
    except KeyboardInterrupt:
        complete = [index for index in range(len(pictures)) if all(index in by_index for by_index in captions.values())]
        comparison.notes.append(f"Stopped early: {len(complete):,} of {len(pictures):,} pictures have all captions.")
        comparison.samples = _samples(complete, pictures, captions, options)
        raise ComparisonStopped(comparison, [pictures[index] for index in complete]) from None
    comparison.samples = _samples(range(len(pictures)), pictures, captions, options)
    return comparison, pictures


def _samples(
    indices: Iterable[int], pictures: list[Picture], captions: dict[str, dict[int, GeneratedCaption]], options: CompareOptions
) -> list[ReportSample]:
    samples = []
    for index in indices:
        by_model = {name: ReportCaption(c[index].text, c[index].seconds, c[index].whole) for name, c in captions.items()}
        samples.append(ReportSample(pictures[index].name, by_model, _prompt_of(pictures[index], options), pictures[index].references))
    return samples


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside this context SIGTERM stops the comparison like Ctrl-C: reports are written for the pictures that have all captions."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run(options: CompareOptions) -> None:
    """Compare captions of several models: prints a table, and writes the requested reports.

    Raises RequestError for invalid pictures, models or report paths, WorkError when a model fails to generate.
    """
    to_stdout = options.json == "-"
    json_file = None if to_stdout else check_output_file("--json", options.json)
    html_file = check_output_file("--html", options.html)
    if json_file and json_file == html_file:
        raise RequestError(f"--json {options.json}: the same file as --html; choose another file")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminable())
        for file in filter(None, (json_file, html_file)):
            stack.enter_context(only_writer(file, f"{file}: another comparison will write it; wait for it, or choose another file"))
        # without a run's folder, the pictures of a dataset are kept until the reports are written
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if options.data and CaptionRows().folder is None else None
        try:
            comparison, pictures = compare(options, folder)
        except ComparisonStopped as stopped:
            comparison, pictures = stopped.args
            print("\n" + comparison.notes[-1], file=sys.stderr)
            if pictures:
                _report(comparison, pictures, options, json_file, html_file)
            raise
        _report(comparison, pictures, options, json_file, html_file)


def _report(
    comparison: Comparison, pictures: list[Picture], options: CompareOptions, json_file: Path | None, html_file: Path | None
) -> None:
    if options.json == "-":
        sys.stdout.write(report.to_json(comparison))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(terminal.table(comparison, width=shutil.get_terminal_size((100, 24)).columns, colour=colour, show=options.show))
    sys.stdout.flush()
    if json_file:
        write_output(json_file, report.to_json(comparison))
    if html_file:
        fit, when = PageFit(len(pictures)), time.strftime("%Y-%m-%d %H:%M")
        write_output(html_file, report.to_html(comparison, (fit.uri(picture.open()) for picture in pictures), when))
    for path in filter(None, (json_file, html_file)):
        print(f"wrote {shown(path)}", file=sys.stderr)
