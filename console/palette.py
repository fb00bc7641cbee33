"""What the palette finds beside the actions of the screen: actions of the other screens, runs, options, and the words of the help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from textual.command import DiscoveryHit, Hit, Hits, Provider

from console.actions import SCREENS, actions_of
from console.formatting import GLYPHS, one_line
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.console_base import ConsoleBase

LATE = 0.6
"""Share of the score of a hit in an explanation, so that names come first."""
RUNS_OFFERED = 5
"""Number of newest runs that are offered before anything is typed."""


class ConsoleProvider(Provider):
    """Runs, options of every form, actions of the other screens."""

    @property
    def _app(self) -> ConsoleBase:
        return self.app  # type: ignore[return-value]  # Textual's type is that of any app

    async def discover(self) -> Hits:
        for name, about, do in self._runs(RUNS_OFFERED):
            yield DiscoveryHit(name, do, help=about)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, about, do in (*self._runs(None), *self._actions(), *self._options()):
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), do, help=about)
            elif query.lower() in about.lower():
                # letters in between match any long text: of an explanation only the words themselves count
                yield Hit(LATE * max(matcher.match(about), 0.5), name, do, help=about)

    def _runs(self, most: int | None) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        for row in self._app.snapshot.rows[:most]:
            about = f"{row.kind}, {row.status}" + (f": {one_line(row.error, 80)}" if row.error else "")
            yield f"{GLYPHS.get(row.status, '·')} {row.id}", about, partial(self._app.watch_run, row.id)

    def _actions(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """Of the screens that are not shown; those of this one are the app's."""
        app = self._app
        for mode, title in SCREENS.items():
            if mode == app.current_mode and app.screen_stack[-1].id != "welcome":
                continue
            for action in {action.action: action for action in reversed(actions_of(mode))}.values():
                if action.action != "leave":
                    about = f"{action.shown_tooltip} ({app.key_of(action.id)})"
                    yield f"{tr(title)}: {action.shown_label}", about, partial(app.act_on, mode, action.action)

    def _options(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """Of the forms in Launch, in the order of the kinds."""
        from console.readers.form_defaults import KINDS  # late: the palette is seldom the first thing
        from qwen3vl_core.options import COMMANDS, options_of

        for kind in ("finetune", *(kind for kind in KINDS if kind != "finetune")):
            for option in options_of(COMMANDS[kind]):
                yield f"{kind} {option.flag} {option.word}".rstrip(), tr(option.help), partial(self._app.show_option, kind, option.name)
