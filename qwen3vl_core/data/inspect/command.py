"""`qwen3vl inspect` for data: counts and token lengths of a dataset, a shard or a source, and some of its samples."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from qwen3vl_core.data.inspect.samples import kind_of_path, open_samples
from qwen3vl_core.data.prepare.report import reason_counts
from qwen3vl_core.data.sources import ENDINGS
from qwen3vl_core.data.storage import Remote, local, place_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_output_file, is_url, write_output
from qwen3vl_core.options import InspectOptions, options_of


def holds_data(path: str | Path) -> bool:
    """Whether `run` can read a path: a dataset, a shard, JSON or JSON Lines."""
    return is_url(str(path)) or kind_of_path(place_of(path)) is not None


def run(options: InspectOptions, chosen: Mapping[tuple[str, int], str] = MappingProxyType({})) -> None:
    """Print a summary of `options.path`. Raises RequestError for a path without data, WorkError when no sample can be used.

    chosen: (split, number) of the samples to show, and what to say of each; without any they are evenly spread.
    """
    for declared in options_of(InspectOptions):
        declared.check(getattr(options, declared.name))
    json_file, html_file = check_output_file("--json", options.json), check_output_file("--html", options.html)
    path = place_of(options.path)
    kind = kind_of_path(path)
    if isinstance(path, Remote) and kind is None:
        raise RequestError(f"{path}: no dataset (.nv-meta) and no metadataset (.yaml) there; copy anything else here to look into it")
    if not isinstance(path, Remote) and not path.exists():
        raise RequestError(f"{path}: no such file or folder; give a dataset, a shard, or a file of records")
    if kind is None:
        raise RequestError(f"{path}: no dataset, shard (.tar) or source ({', '.join(ENDINGS)})")
    model = None if options.model is None else Path(options.model).expanduser()
    images = None if options.images is None else local(options.images, "--images")
    if model is not None and not model.is_dir():
        raise RequestError(f"--model {options.model}: no such folder; give the model whose tokenizer shall count")
    # slow imports (pictures, tokens) that callers of `holds_data` do not need
    from qwen3vl_core.data.inspect import html, show
    from qwen3vl_core.data.inspect.survey import summary_lines, survey

    opened = open_samples(path, options.split, images, options.columns)
    summary, processor = survey(path, opened, options, model, images)

    if chosen:
        shown = [show.load_sample(name, opened[name], number, processor, note) for (name, number), note in chosen.items()]
    else:
        shown = show.select_samples(opened, options.show, processor)
    # files first: an error while writing them should not come after a long print
    if json_file:
        write_output(json_file, json.dumps(summary.as_json(), indent=2) + "\n")
    if html_file:
        everything = shown if chosen else show.select_samples(opened, max(options.show, html.SAMPLES), processor)
        write_output(html_file, html.page(summary, everything))
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((100, 24)).columns
    lines = summary_lines(summary, width)
    for sample in shown:
        lines += ["", *show.rendered(sample, width, colour=colour)]
    print("\n".join(lines))
    if summary.looked_at and sum(summary.problems.values()) >= summary.looked_at:
        raise WorkError(f"{path}: none of its samples can be used ({reason_counts(summary.problems)}); fix the data and prepare it again")
