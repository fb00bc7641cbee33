"""A compare run's captions, scores and votes as files: one page of HTML, or JSON. Blocking; imports no Textual."""

from __future__ import annotations

import time
from pathlib import Path

from console.runs.captions import SampleFeed, read_votes
from console.runs.store import Run
from qwen3vl_core.caption import report
from qwen3vl_core.caption.comparison import Comparison
from qwen3vl_core.caption.data_uri import PageFit, file_picture
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import check_output_file, write_output
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import CAPTIONS_DATA, CAPTIONS_PAGE


def comparison_of(run: Run) -> Comparison:
    """The captions that a compare run has written so far, with its votes. Raises RequestError for a run of another kind, WorkError
    when no picture has all its captions."""
    if run.kind != "compare":
        raise RequestError(filled("run {}: a {} run has no captions of several models; give a compare run", run.id, run.kind))
    feed = SampleFeed(run)
    feed.read()
    return feed.comparison(read_votes(run, feed.names))


def export(run: Run, html: Path | None = None, json: Path | None = None) -> list[Path]:
    """Write the HTML page and the JSON to the given paths; without any path, both into the run's folder.

    Returns the paths that were written. Raises RequestError and WorkError.
    """
    if html is None and json is None:
        html, json = run.path / CAPTIONS_PAGE, run.path / CAPTIONS_DATA
    page, data = check_output_file("--html", str(html) if html else None), check_output_file("--json", str(json) if json else None)
    comparison = comparison_of(run)
    if page:
        fit = PageFit(len(comparison.samples))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
        addresses = (fit.uri(file_picture(sample.image, fit.side)) for sample in comparison.samples)
        write_output(page, report.to_html(comparison, addresses, f"run {run.id} · {when}"))
    if data:
        write_output(data, report.to_json(comparison))
    return [path for path in (page, data) if path]
