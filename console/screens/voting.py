"""The part of the Compare screen that handles votes for the best caption, open or blind."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from textual import on
from textual.screen import Screen

from console.readers.captions import CompareView
from console.runs import captions as votes_of
from console.widgets.caption_columns import CaptionColumns
from qwen3vl_core.caption.comparison import SAME
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.console_base import ConsoleBase
    from console.readers.run_rows import RunRow
    from console.runs.captions import CaptionedPicture


class Voting(Screen[None]):
    """Voting for a screen that shows captions; the screen implements the rest."""

    app: ConsoleBase
    row: RunRow | None
    view: CompareView
    index: int
    blind: str
    revealed: set[str]
    outdated: bool
    """Whether the read in progress may have outdated votes."""
    _busy: bool

    @property
    def samples(self) -> tuple[CaptionedPicture, ...]:
        """The pictures of the comparison. The screen overrides it."""
        raise NotImplementedError

    @property
    def sample(self) -> CaptionedPicture | None:
        """The picture on screen. The screen overrides it."""
        raise NotImplementedError

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the models from left to right. The screen overrides it."""
        raise NotImplementedError

    @property
    def hidden(self) -> bool:
        """Whether the models of the picture on screen are hidden. The screen overrides it."""
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError

    def read(self) -> None:
        """Read new captions and votes. The screen overrides it."""
        raise NotImplementedError

    def action_turn(self, step: int) -> None:
        """Go to another picture. The screen overrides it."""
        raise NotImplementedError

    def action_unvoted(self) -> None:
        """Go to the next picture that has all its captions and no vote."""
        for step in range(1, len(self.samples) + 1):
            sample = self.samples[(self.index + step) % len(self.samples)]
            if sample.image not in self.view.votes.choices and sample.whole(self.view.names):
                self.action_turn(step)
                return
        self.notify("every picture that has all its captions has a vote")

    def action_blind(self) -> None:
        """Shuffle the captions and hide which model wrote which, or show them as before."""
        if self.blind:
            self.blind = ""
            counted = self.view.votes.tally(self.view.names)
            told = [f"{name} {number}" for name, number in counted.items() if name != SAME]
            self.notify(" · ".join([*told, tr("as good {count}", count=counted[SAME])]), title="Votes", markup=False)
        elif len(self.view.names) > 1:
            self.blind, self.revealed = secrets.token_hex(8), set()
        self._show()

    def action_reveal(self) -> None:
        """Show which model wrote which caption, for this picture only."""
        if self.blind and self.sample is not None:
            self.revealed ^= {self.sample.image}
            self._show()
        else:
            self.notify("nothing is hidden; b shuffles the captions and hides which model wrote which", severity="warning")

    def action_vote(self, place: int | None = None) -> None:
        """Vote for the caption at this index from the left (-1: the last; None: the focused one). The same vote again withdraws it."""
        names = self.order
        if names:
            self._vote(names[self.query_one(CaptionColumns).focused_place if place is None else place])

    def action_same(self) -> None:
        """Vote that the captions are as good as each other; the same again takes the vote back."""
        self._vote(SAME)

    @on(CaptionColumns.Voted)
    def _clicked(self, event: CaptionColumns.Voted) -> None:
        self.action_vote(event.place)

    def _vote(self, choice: str) -> None:
        sample, row = self.sample, self.row
        if sample is None or row is None or not sample.whole(self.view.names):
            self.notify("a vote needs all captions of this picture; they are not written yet", severity="warning")
            return
        again = self.view.votes.choices.get(sample.image) == choice
        try:
            given = votes_of.vote(row.run, sample.image, None if again else choice, self.view.names, blind=self.hidden)
        except (RequestError, WorkError) as error:
            self.notify(error.shown, severity="error", markup=False)
            return
        self.view = CompareView(row.id, self.view.head, self.samples, given, self.view.scores, self.view.whole)
        self.app.remember_command("runs", "captions", str(row.run.number), "--vote", sample.image, "none" if again else choice)
        if self.blind and not again and sample.image not in self.revealed and len(given.choices) < self.view.whole:
            self.action_unvoted()
        self._show()
        self.outdated = self._busy  # the read in progress may have read the votes before this one
        self.read()
