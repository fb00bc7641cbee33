"""Captions of several models side by side: pictures, word differences, votes, scores."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from console.formatting import GLYPHS
from console.notebook.data_frames import captions
from console.notebook.html import box, escape, picture, read_picture, say, table
from console.notebook.live import Live
from console.notebook.stores import as_run, open_store
from console.runs import exports
from console.runs.captions import CaptionedPicture, ComparisonHead, RecordedCaption, SampleFeed, Votes, read_votes, vote
from console.runs.store import Run, RunStore
from qwen3vl_core.caption import report
from qwen3vl_core.caption.comparison import SAME
from qwen3vl_core.caption.report import marked_html
from qwen3vl_core.caption.word_diff import count
from qwen3vl_core.errors import RequestError

STATIC_PICTURES = 8
KEYS = {
    "ArrowLeft": ".qwen3vl-back", "ArrowRight": ".qwen3vl-next", "n": ".qwen3vl-unvoted", "N": ".qwen3vl-unvoted",
    "0": ".qwen3vl-votes button:first-of-type", "=": ".qwen3vl-votes button:last-of-type",
    **{str(number): f".qwen3vl-votes button:nth-of-type({number + 1}):not(:last-of-type)" for number in range(1, 10)},
}  # fmt: skip
"""Keys of the box, and the buttons that they click."""
KEYS_HELP = "keys, after a click here: 1 to 9 vote for the caption at that place, = as good, 0 no vote, n next unvoted, ← → pictures"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class CompareCaptions(Live):
    """The captions of a `compare` run, updated while they are written.

    run: a number, id, name, `Run` or a `Launcher`; by default the newest comparison of the store, even if it starts
    later. Votes are saved in the run's folder (votes.json); `captions(run)` returns captions and votes as a data frame.
    blind: hide which model wrote which caption, and shuffle the columns, until the picture has a vote.
    """

    def __init__(self, run: Any = None, *, store: RunStore | Path | str | None = None, blind: bool = False) -> None:
        super().__init__()
        self._launcher = run if hasattr(run, "start_button") else None
        self.store = self._launcher.store if self._launcher is not None else open_store(store)
        chosen = as_run(run, self.store) if run is not None and self._launcher is None else None
        self._pinned = chosen is not None
        self._runs: dict[str, Run] = {}
        self._feed: SampleFeed | None = None
        self._votes = Votes()
        self._secret = secrets.token_hex(8)
        self._shown: Any = None
        self._quiet = False
        self.run_menu = W.Dropdown(options=[], description="run", layout=W.Layout(width="360px"))
        self.place = W.BoundedIntText(value=1, min=1, max=1, description="picture", layout=W.Layout(width="170px"))
        self.back_button = W.Button(icon="arrow-left", tooltip="The picture before", layout=W.Layout(width="40px"))
        self.next_button = W.Button(icon="arrow-right", tooltip="The next picture", layout=W.Layout(width="40px"))
        self.unvoted_button = W.Button(
            description="next unvoted", tooltip="The next picture without a vote", layout=W.Layout(width="110px")
        )
        self.mark_box = W.Checkbox(value=True, description="mark differences", indent=False, layout=W.Layout(width="140px"))
        hidden = "Hide which model wrote what until the picture has its vote"
        self.blind_box = W.Checkbox(value=blind, description="blind", tooltip=hidden, indent=False, layout=W.Layout(width="70px"))
        self.page_button = W.Button(
            description="Page", icon="download", tooltip="Write pictures, captions, scores and votes as one HTML page here",
            layout=W.Layout(width="90px"),
        )  # fmt: skip
        beside = {"width": "300px", "max_height": "420px", "object_fit": "contain", "margin": "6px 16px 0 0", "align_self": "flex-start"}
        self.image = W.Image(format="jpeg", layout=W.Layout(**beside))
        self.headline, self.score_table = W.HTML(), W.HTML()
        self.columns: dict[str, W.HTML] = {}
        """The widget of each model's caption."""
        self.side_by_side = W.HBox([], layout=W.Layout(flex="1 1 0%", min_width="0"))
        self.vote_buttons = W.ToggleButtons(options=[("no vote", "")], value="", style={"button_width": "auto"})
        self.back_button.on_click(lambda button: self.go(self.index - 1))
        self.next_button.on_click(lambda button: self.go(self.index + 1))
        self.unvoted_button.on_click(lambda button: self.go_unvoted())
        self.page_button.on_click(self._page_clicked)
        self.place.observe(self._turned, names="value")
        for control in (self.mark_box, self.blind_box):
            control.observe(lambda change: self._look(), names="value")
        self.run_menu.observe(self._chosen, names="value")
        self.vote_buttons.observe(self._voted, names="value")
        self.children = [
            W.HBox([self.run_menu, self.back_button, self.place, self.next_button, self.unvoted_button]),
            W.HBox([self.mark_box, self.blind_box, self.page_button]),
            self.headline, W.HBox([self.image, self.side_by_side], layout=W.Layout(width="100%")), self.vote_buttons,
            W.HTML(say(KEYS_HELP, "dim")), self.score_table,
            self.message,
        ]  # fmt: skip
        named = {"back": self.back_button, "next": self.next_button, "unvoted": self.unvoted_button, "votes": self.vote_buttons}
        for name, widget in named.items():
            widget.add_class(f"qwen3vl-{name}")
        self._list(chosen)
        self.begin(keys=KEYS)

    def __repr__(self) -> str:
        return f"CompareCaptions({self.run.id if self.run is not None else ''})"

    # selection

    @property
    def run(self) -> Run | None:
        """The shown comparison."""
        return self._runs.get(self.run_menu.value)

    @property
    def samples(self) -> list[CaptionedPicture]:
        """The pictures with the captions that are written so far."""
        return self._feed.samples if self._feed is not None else []

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, the base first."""
        return self._feed.names if self._feed is not None else ()

    @property
    def index(self) -> int:
        """Index of the shown picture, from 0."""
        return self.place.value - 1

    def go(self, index: int) -> None:
        """Show another picture; an index beyond an end shows the last one there."""
        self.place.value = min(max(index + 1, 1), self.place.max)

    def go_unvoted(self) -> None:
        """Show the next picture without a vote, after the last one from the first; stay when all have one."""
        many = len(self.samples)
        following = [(self.index + 1 + step) % many for step in range(many)]
        self.go(next((place for place in following if self.samples[place].image not in self._votes.choices), self.index))

    def show(self, run: Any) -> None:
        """Show another comparison. Raises RequestError when it does not exist."""
        chosen = as_run(run, self.store)
        with self.lock:
            self._pinned = True
            self._list(chosen)
        self._look()

    def _turned(self, change: Any) -> None:
        if not self._quiet:
            self._look()

    def _chosen(self, change: Any) -> None:
        if not self._quiet:
            self._pinned = True
            self._look()

    def _list(self, chosen: Run | None = None) -> None:
        listed = [run for run in self.store.list() if run.kind == "compare"]
        if self._launcher is not None and not self._pinned:
            chosen = self._launcher.run or chosen
        if chosen is not None and chosen not in listed:
            listed.insert(0, chosen)
        self._runs = {run.id: self._runs.get(run.id, run) for run in listed}
        wanted = chosen.id if chosen is not None else self.run_menu.value
        if not self._pinned and chosen is None and self._launcher is None:
            wanted = listed[0].id if listed else None
        if tuple(self._runs) != self.run_menu.options or wanted != self.run_menu.value:
            self._quiet = True
            try:
                self.run_menu.options = tuple(self._runs)
                self.run_menu.value = wanted if wanted in self._runs else None
            finally:
                self._quiet = False

    # display

    def look(self) -> None:
        """Read new rows, and update the widgets that have changed."""
        self._list()
        run = self.run
        if run is None:
            if self._feed is not None:  # its run was deleted
                self._feed, self._shown, self._votes = None, None, Votes()
                self._show_columns(None)
                self._show_picture(None)
                self._show_votes(None, "")
                self.score_table.value = ""
            self.headline.value = say(f"no comparison in {self.store.root} yet; one that starts, here or in the console, appears", "dim")
            return
        if self._feed is None or self._feed.run != run:
            self._feed, self._shown = SampleFeed(run), None
            self._set(self.place, 1)
        self._feed.read()
        samples, names = self._feed.samples, self.names
        self._votes = read_votes(run, names)
        if self.place.max != max(len(samples), 1):
            self.place.max = max(len(samples), 1)
        status = run.status
        sample = samples[min(self.index, len(samples) - 1)] if samples else None
        finished = sum(s.whole(names) for s in samples)
        written = tuple(sample.captions.get(name, RecordedCaption()) for name in names) if sample else ()
        given = self._votes.choices.get(sample.image, "") if sample else ""
        looks = (self.mark_box.value, self.blind_box.value, given, len(self._votes.choices))
        now = (run.id, status, names, len(samples), finished, sample and sample.image, written, looks)
        if now == self._shown:
            return
        before, self._shown = self._shown, now
        self.headline.value = self._headline(run, self._feed.head, status, sample, len(samples), finished)
        self._show_columns(sample)
        if before is None or before[5] != now[5]:
            self._show_picture(sample)
        self._show_votes(sample, given)
        if before is None or (before[4], before[7]) != (finished, looks):
            self.score_table.value = self._scores(run, finished)

    def _set(self, widget: W.Widget, value: Any) -> None:
        """Set a control without handling it as the user's choice."""
        self._quiet = True
        try:
            widget.value = value
        finally:
            self._quiet = False

    def hidden(self, sample: CaptionedPicture | None) -> bool:
        """Whether the models' names are hidden: in a blind comparison until there is a vote."""
        return self.blind_box.value and sample is not None and sample.image not in self._votes.choices

    def order(self, sample: CaptionedPicture | None) -> list[str]:
        """The models in the order of their columns; in a blind comparison shuffled for each picture."""
        if sample is None or not self.blind_box.value:
            return list(self.names)
        return sorted(self.names, key=lambda name: hashlib.sha256(f"{self._secret} {sample.image} {name}".encode()).digest())

    def _headline(self, run: Run, head: ComparisonHead, status: str, sample: CaptionedPicture | None, many: int, finished: int) -> str:
        count_line = f"{many} pictures" if finished == many else f"{finished} of {many} pictures"
        voted = sum(sample.image in self._votes.choices for sample in self.samples)
        count_line += f", {voted} voted" if voted else ""
        line = f"{GLYPHS[status]} <b>{escape(run.id)}</b> {escape(status)}, {count_line}"
        if sample is not None:
            line += f" · “{escape(sample.prompt or head.prompt)}” <span class=dim>{escape(Path(sample.image).name)}</span>"
        if not self.blind_box.value:
            paths = " · ".join(f"{escape(name)}: {escape(path)}" for name, path in head.models.items())
            line += f'<br><span class="dim">{paths}</span>'
        return box(line)

    def _show_columns(self, sample: CaptionedPicture | None) -> None:
        order = self.order(sample)
        if list(self.columns) != order:
            self.columns = {name: W.HTML(layout=W.Layout(flex="1 1 0%", min_width="0", margin="0 12px 0 0")) for name in order}
            before, self.side_by_side.children = self.side_by_side.children, tuple(self.columns.values())
            for column in before:
                column.close()
        for name, text in self._captions(sample, self.hidden(sample)).items():
            self.columns[name].value = text

    def _captions(self, sample: CaptionedPicture | None, hidden: bool = False) -> dict[str, str]:
        """The HTML of each model's column."""
        if sample is None:
            return dict.fromkeys(self.columns, "")
        order = self.order(sample)
        captions = {name: sample.captions.get(name, RecordedCaption()) for name in order}
        # a difference to an unfinished caption means nothing, and would reveal hidden models
        if self.mark_box.value and not hidden and sample.whole(self.names):
            texts = dict(zip(self.names, marked_html([captions[name].text.strip() for name in self.names], escape), strict=True))
        else:
            texts = {name: escape(caption.text.strip()) for name, caption in captions.items()}
        columns = {}
        choice = self._votes.choices.get(sample.image)
        for index, name in enumerate(order):
            title = LETTERS[index % len(LETTERS)] if hidden else escape(name)
            star = " ★" if choice == name else ""
            about = "" if hidden else f" <span class=dim>{_about(captions[name])}</span>"
            columns[name] = box(f"<b>{title}{star}</b>{about}<p class=caption>{texts[name]}</p>")
        if sample.references and order:
            references = "<br>".join(escape(text) for text in sample.references)
            columns[order[0]] += box(f'<p class="caption dim">reference: {references}</p>')
        return columns

    def _show_picture(self, sample: CaptionedPicture | None) -> None:
        self.message.value = ""
        if sample is None:
            self.image.value = b""
            return
        try:
            self.image.value = read_picture(Path(sample.image))
        except ValueError as error:
            self.image.value = b""
            self.message.value = say(f"{sample.image}: cannot be shown ({error})", "bad")

    def _scores(self, run: Run, finished: int) -> str:
        """The HTML of the scores, once all captions are written; empty while the comparison is blind."""
        if not finished or self.blind_box.value or finished < len(self.samples):
            return ""
        comparison = exports.comparison_of(run)
        rows = [[escape(what), *map(escape, values)] for what, values in report.score_rows(comparison)]
        return box(table(("", *comparison.names), rows))

    # votes

    def _show_votes(self, sample: CaptionedPicture | None, given: str) -> None:
        order, hidden = self.order(sample), self.hidden(sample)
        titles = [LETTERS[place % len(LETTERS)] if hidden else name for place, name in enumerate(order)]
        best = " is better" if len(order) == 2 else " is best"
        options = (("no vote", ""), *((title + best, name) for title, name in zip(titles, order, strict=True)), ("as good", SAME))
        self._quiet = True
        try:
            if options != self.vote_buttons.options:
                self.vote_buttons.options = options
            self.vote_buttons.value = given if given in dict(options).values() else ""
        finally:
            self._quiet = False
        self.vote_buttons.disabled = sample is None

    def vote(self, choice: str | None, index: int | None = None) -> None:
        """Vote for the best caption of a picture: a model's name, or `same`; None withdraws the vote. Raises RequestError."""
        with self.lock:
            run, place = self.run, self.index if index is None else index
            if run is None:
                raise RequestError("vote: no comparison is chosen; choose one")
            if not 0 <= place < len(self.samples):
                raise RequestError(f"vote: no picture {place}; there are {len(self.samples)}, numbered from 0")
            sample = self.samples[place]
            self._votes = vote(run, sample.image, choice, self.names, blind=self.hidden(sample))
        self._look()

    def _voted(self, change: Any) -> None:
        if not self._quiet and self.samples:
            with self.telling():
                self.vote(change["new"] or None)

    # export

    def frame(self) -> pd.DataFrame:
        """`captions` of this comparison as a data frame."""
        return captions(self.run) if self.run is not None else pd.DataFrame()

    def to_html(self, path: Path | str | None = None) -> Path:
        """Write this comparison as an HTML page, by default beside the notebook. Raises RequestError and WorkError."""
        run = self.run
        if run is None:
            raise RequestError("page: no comparison is chosen; choose one")
        target = Path(path or f"captions-{run.number:04d}.html")
        (page,) = exports.export(run, html=target.expanduser().absolute())
        return page

    def _page_clicked(self, button: W.Button) -> None:
        with self.telling():
            self.message.value = say(f"wrote {self.to_html()}", "good")

    def _repr_html_(self) -> str:
        with self.lock:
            rows = []
            for sample in self.samples[:STATIC_PICTURES]:
                columns = self._captions(sample, self.hidden(sample))
                rows.append([picture(Path(sample.image)), *(columns[name] for name in self.order(sample))])
        more = len(self.samples) - len(rows)
        note = f'<p class="dim">and {more} more</p>' if more > 0 else ""
        heads = [""] * len(self.names) if self.blind_box.value else self.names
        return self.headline.value + box(table(("picture", *heads), rows) + note) + self.score_table.value


def _about(caption: RecordedCaption) -> str:
    if not caption.text and not caption.done:
        return "waiting …"
    parts = [f"{count(caption.text)} words"]
    parts += [f"{caption.seconds:.1f} s"] if caption.seconds is not None else []
    parts += ["writing …"] if not caption.done else ["cut off at the maximum length"] if not caption.whole else []
    return " · ".join(parts)
