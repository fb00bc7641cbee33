"""The table of all actions of the console, from which bindings, key bar, help, palette and tooltips are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from textual.binding import Binding, BindingType

from qwen3vl_core.language import keyed


class Action(NamedTuple):
    """One thing that a user can do."""

    id: str
    """`screen.name`, as in the user's settings."""
    key: str
    """Textual names of its keys, separated by commas; the first one is shown."""
    label: str
    """At most two words, for the key bar."""
    tooltip: str
    screen: str
    """`app` for all screens, else the screen that it belongs to."""
    call: str = ""
    """Textual's action string; empty: the name in the id."""
    show: bool = True
    display: str = ""
    """How the key is shown, if Textual's own way is unclear."""
    priority: bool = False

    @property
    def shown_label(self) -> str:
        """The label in the user's language."""
        return keyed(f"{self.id}.label", self.label)

    @property
    def shown_tooltip(self) -> str:
        """The tooltip in the user's language."""
        return keyed(f"{self.id}.tooltip", self.tooltip)

    @property
    def action(self) -> str:
        return self.call or self.id.rpartition(".")[2]

    @property
    def binding(self) -> Binding:
        return Binding(
            self.key, self.action, self.label, show=self.show, key_display=self.display or None,
            priority=self.priority, tooltip=self.tooltip, id=self.id,
        )  # fmt: skip

    @property
    def keys(self) -> str:
        """The key as it is shown to the user."""
        return self.display or shown(self.key)


_SHOWN = {
    "question_mark": "?", "slash": "/", "plus": "+", "minus": "-", "left": "←", "right": "→", "up": "↑", "down": "↓", "escape": "esc",
    "equals_sign": "=", "comma": ",", "full_stop": ".", "left_square_bracket": "[", "right_square_bracket": "]",
}  # fmt: skip


def shown(keys: str) -> str:
    """The first of several keys as it is shown to the user."""
    return _SHOWN.get(first := keys.split(",")[0], first)


SCREENS = {"runs": "Runs", "launch": "Launch", "monitor": "Monitor", "compare": "Compare"}
"""Mode -> title, in the order of the keys 1 to 4; shown by `tr`."""

ACTIONS = (
    Action("app.runs", "1", "Runs", "All runs", "app", "show_screen('runs')", show=False),
    Action("app.launch", "2", "Launch", "Start a run", "app", "show_screen('launch')", show=False),
    Action("app.monitor", "3", "Monitor", "Curve, numbers and log of one run", "app", "show_screen('monitor')", show=False),
    Action("app.compare", "4", "Compare", "Captions of two models side by side", "app", "show_screen('compare')", show=False),
    Action("app.start_page", "0", "start", "First page: the demo, a model, a recipe line, the doctor", "app", show=False),
    Action("app.stores", "O", "stores", "Runs of another folder: the demo's, the default one", "app", show=False, display="O"),
    Action("app.queue", "G", "GPU queue", "GPUs over time, and the runs that wait for them", "app", "gpu_queue", show=False, display="G"),
    Action("app.doctor", "f9", "doctor", "Check this machine: what is missing, and how to fix it", "app", show=False, display="f9"),
    Action("app.help", "question_mark", "keys", "The keys of this screen", "app", "keys_help", display="?"),
    Action(
        "app.palette", "ctrl+p", "palette", "Every action by name", "app", "command_palette", show=False, display="ctrl+p", priority=True
    ),
    Action("app.theme", "T", "theme", "Dark or light colours", "app", "toggle_theme", show=False, display="T"),
    Action("app.themes", "f10", "themes", "Choose among all colour themes", "app", "change_theme", show=False, display="f10"),
    Action("app.language", "L", "language", "中文 or English", "app", show=False, display="L"),
    Action("app.settings", "comma", "settings", "Keys and theme: the settings file in your editor", "app", show=False, display=","),
    Action(
        "app.subcommand", "Y", "as command", "Copy the subcommand that is equivalent to the last action", "app", show=False, display="Y"
    ),
    Action(
        "app.suspend",
        "ctrl+z",
        "suspend",
        "Back to the shell; fg returns",
        "app",
        "suspend_process",
        show=False,
        display="ctrl+z",
        priority=True,
    ),
    Action("app.quit_short", "q", "quit", "Leave the console; runs keep running", "app", "quit"),
    Action(
        "app.quit",
        "ctrl+q",
        "quit",
        "The same; also works in a field, and so does ctrl+c pressed twice",
        "app",
        "quit",
        show=False,
        display="ctrl+q",
        priority=True,
    ),
    # First page
    Action("welcome.demo", "d", "demo", "Create the demo's workspace and show its steps", "welcome"),
    Action("welcome.all", "a", "all", "The demo's five commands one after another", "welcome"),
    Action("welcome.model", "o", "open model", "A Hugging Face folder or a Megatron checkpoint", "welcome"),
    Action("welcome.download", "g", "get model", "A model or a dataset from Hugging Face or ModelScope", "welcome"),
    Action("welcome.recipe", "p", "paste recipe", "The published script's 24 or 26 values", "welcome"),
    Action("welcome.doctor", "h", "doctor", "What is missing on this machine", "welcome"),
    Action("welcome.leave", "escape", "back", "Leave the field; then go to the runs", "welcome"),
    # Runs
    Action("runs.open", "enter", "open", "Watch the run under the cursor", "runs", display="enter"),
    Action("runs.mark", "space", "mark", "Mark it for a diff, TensorBoard or deletion", "runs", display="space"),
    Action("runs.new", "n", "new", "Start a run", "runs"),
    Action("runs.clone", "c", "clone", "A new run with this one's options", "runs"),
    Action("runs.stop", "x", "stop", "Ask the run to stop; it saves a checkpoint first", "runs"),
    Action("runs.resume", "R", "resume", "Resume a stopped, failed or lost run", "runs", display="R"),
    Action("runs.difference", "d", "diff", "Diff of two marked runs, or of a marked one and this", "runs"),
    Action("runs.copy", "y", "copy command", "Copy the run's command", "runs"),
    Action("runs.filter", "slash", "filter", "Filter: words, status:failed, size:8B, lr:1e-5", "runs", display="/"),
    Action("runs.preview", "p", "preview", "Curve, options, cause and last lines of the run under the cursor", "runs", show=False),
    Action("runs.captions", "a", "captions", "The captions that the run has written", "runs", show=False),
    Action("runs.save", "s", "save now", "Ask the run for a checkpoint at its next step", "runs"),
    Action("runs.sort", "o", "sort", "Order: newest, name, status, loss, step, kind", "runs"),
    Action("runs.reverse", "i", "reverse", "Reverse the order", "runs", show=False),
    Action("runs.tensorboard", "b", "TensorBoard", "TensorBoard on this run, or on the marked ones", "runs"),
    Action("runs.delete", "D,delete", "delete", "Delete this run, or the marked ones", "runs", display="D"),
    Action("runs.check", "v", "check", "Compare every byte of its checkpoints with their digests, in the background", "runs", show=False),
    Action("runs.leave", "escape", "leave filter", "Back to the table; then clear marks and filter", "runs"),
    # Launch
    Action("launch.start", "ctrl+g", "start", "Start the run; also works in a field", "launch", display="ctrl+g"),
    Action("launch.start_short", "g", "start", "Start the run", "launch", "start", show=False),
    Action("launch.fix", "f,ctrl+f", "fix", "Apply the fix of the first problem that has one", "launch", display="f"),
    Action("launch.preset", "p", "presets", "Layouts that fit these GPUs, fastest first", "launch"),
    Action("launch.gpus", "v", "GPUs", "Choose the GPUs of the run; the free ones are marked", "launch"),
    Action("launch.copy", "y", "copy command", "Copy the command", "launch"),
    Action("launch.edit", "e", "editor", "The plan as a file in your $EDITOR", "launch"),
    Action("launch.save", "s", "save plan", "Write the plan file (YAML) for qwen3vl --plan", "launch"),
    Action("launch.next_kind", "k", "next kind", "Next of download, prepare, convert, finetune, compare", "launch"),
    Action("launch.reset", "r", "reset", "Reset every option to the form's initial value", "launch"),
    Action("launch.undo", "u", "undo", "Take back the last reset, fix, preset, edit or clone", "launch"),
    Action("launch.difference", "d", "diff", "The options that differ from their defaults", "launch", show=False),
    Action("launch.leave", "escape", "leave field", "Leave the field, so that letters are keys again", "launch"),
    # Monitor
    Action("monitor.start_fixed", "g", "start fixed", "Start a failed run again with the change that its card names", "monitor"),
    Action("monitor.fix", "f", "fix", "The form of a new run with that change", "monitor"),
    Action("monitor.resume", "R", "resume", "Resume a stopped, failed or lost run", "monitor", display="R"),
    Action("monitor.clone", "c", "clone", "A new run with this one's options", "monitor"),
    Action("monitor.metric", "tab", "metric", "Loss, learning rate, gradient norm, …", "monitor", display="tab"),
    Action("monitor.metrics", "v", "metrics", "Choose the metric from a list", "monitor", show=False),
    Action("monitor.zoom_in", "plus,equals_sign", "zoom", "Zoom in", "monitor", "curve('zoom', 0.5)", display="+"),
    Action("monitor.zoom_out", "minus", "zoom out", "Zoom out", "monitor", "curve('zoom', 2.0)", show=False, display="-"),
    Action("monitor.pan_left", "left", "earlier", "Pan to earlier steps", "monitor", "curve('pan', -0.25)", show=False, display="←"),
    Action("monitor.pan_right", "right", "later", "Pan to later steps", "monitor", "curve('pan', 0.25)", show=False, display="→"),
    Action("monitor.reset", "r", "whole run", "Show the whole run again", "monitor", show=False),
    Action(
        "monitor.cross_left",
        "shift+left",
        "cross left",
        "Crosshair to earlier steps",
        "monitor",
        "curve('cross', -1)",
        show=False,
        display="shift+←",
    ),
    Action(
        "monitor.cross_right",
        "shift+right",
        "cross right",
        "Crosshair to later steps",
        "monitor",
        "curve('cross', 1)",
        show=False,
        display="shift+→",
    ),
    Action("monitor.event", "e", "next event", "To the next checkpoint, spike, NaN or resume", "monitor", "event(1)", show=False),
    Action("monitor.event_back", "E", "previous event", "To the previous event", "monitor", "event(-1)", show=False, display="E"),
    Action("monitor.log_y", "l", "log-y", "Logarithmic axis of values, or a linear one", "monitor"),
    Action("monitor.smooth", "m", "smooth", "Average over 2, 5, 10 or 20% of what is seen, or none", "monitor"),
    Action("monitor.overlay", "o", "overlay", "Other runs over this one", "monitor"),
    Action("monitor.captions", "a", "captions", "Captions written during the run, instead of the log", "monitor"),
    Action("monitor.maximize", "z", "enlarge", "The focused pane on the whole screen, and back", "monitor", "enlarge", show=False),
    Action("monitor.follow", "F", "follow", "Keep the end of the log in view", "monitor", display="F"),
    Action("monitor.wrap", "W", "wrap", "Break the long lines of the log, or cut them", "monitor", show=False, display="W"),
    Action("monitor.find", "slash", "find", "Find text in the log", "monitor", display="/"),
    Action("monitor.find_next", "n", "next match", "Next match", "monitor", "find_step(1)", show=False),
    Action("monitor.find_back", "N", "previous match", "Previous match", "monitor", "find_step(-1)", show=False, display="N"),
    Action("monitor.trouble", "w", "what's wrong", "The line of the log that says why it failed", "monitor", show=False),
    Action("monitor.save", "s", "save now", "Ask the run for a checkpoint at its next step", "monitor"),
    Action("monitor.stop", "x", "stop", "Ask the run to stop; it saves a checkpoint first", "monitor"),
    Action("monitor.difference", "d", "diff", "Diff of this run and the first one over it, else the next older one", "monitor", show=False),
    Action("monitor.newer", "left_square_bracket", "newer run", "The next newer run", "monitor", "neighbour(-1)", show=False, display="["),
    Action("monitor.older", "right_square_bracket", "older run", "The next older run", "monitor", "neighbour(1)", show=False, display="]"),
    Action("monitor.tensorboard", "b", "TensorBoard", "TensorBoard on this run and its overlays", "monitor", show=False),
    Action("monitor.copy", "y", "copy command", "Copy the run's command", "monitor", show=False),
    Action("monitor.leave", "escape", "leave", "Leave the field, hide the crosshair", "monitor", show=False),
    # Compare
    Action("compare.before", "left", "picture", "Previous picture", "compare", "turn(-1)", display="←→"),
    Action("compare.after", "right", "picture", "Next picture", "compare", "turn(1)", show=False, display="→"),
    Action("compare.form", "t", "ask", "Models, pictures, prompt and sampling", "compare", "form"),
    Action(
        "compare.vote_left",
        "left_square_bracket",
        "vote",
        "The first caption is best; again: withdraw the vote",
        "compare",
        "vote(0)",
        display="[ ]",
    ),
    Action(
        "compare.vote_right",
        "right_square_bracket",
        "vote last",
        "The last caption is best; again: withdraw the vote",
        "compare",
        "vote(-1)",
        show=False,
        display="]",
    ),
    Action("compare.vote", "v", "vote", "The caption in focus is best; again: withdraw the vote", "compare", show=False),
    Action("compare.same", "equals_sign", "as good", "The captions are equally good", "compare", display="="),
    Action("compare.blind", "b", "blind", "Shuffle the captions and hide which model wrote which; again: show it", "compare"),
    Action("compare.reveal", "r", "reveal", "In a blind comparison, show which model wrote which caption", "compare", show=False),
    Action("compare.words", "d", "diff", "Mark the words that differ", "compare"),
    Action("compare.models", "m,f2", "models", "Choose checkpoints of runs; f2 from fields", "compare"),
    Action("compare.report", "e", "export", "Write captions and votes as HTML page and JSON", "compare"),
    Action("compare.full", "o", "full size", "The picture as large as the terminal", "compare"),
    Action("compare.unvoted", "N", "next unvoted", "The next picture without a vote", "compare", show=False, display="N"),
    Action("compare.another_seed", "n", "next seed", "Run this comparison again with the next seed", "compare", show=False),
    Action("compare.clone", "c", "clone", "The form with the models, pictures and sampling of this comparison", "compare", show=False),
    Action("compare.undo", "u", "undo", "Take back what was put into the form at once", "compare", show=False),
    Action("compare.older", "less_than_sign", "older", "The next older comparison", "compare", "other(1)", show=False, display="<"),
    Action("compare.newer", "greater_than_sign", "newer", "The next newer comparison", "compare", "other(-1)", show=False, display=">"),
    Action("compare.first", "home", "first", "First picture", "compare", "ends(False)", show=False),
    Action("compare.last", "end", "last", "Last picture", "compare", "ends(True)", show=False),
    Action("compare.start", "enter", "start", "Write captions with the models", "compare", display="enter"),
    Action("compare.start_field", "ctrl+g", "start", "The same; also works in a field", "compare", "start", display="ctrl+g"),
    Action("compare.copy", "y", "copy command", "Copy the comparison's command", "compare", show=False),
    Action("compare.stop", "x", "stop", "Ask the run to stop", "compare", show=False),
    Action("compare.leave", "escape", "leave field", "Leave the field, so that letters are keys again", "compare"),
)


BY_ID = {action.id: action for action in ACTIONS}


def actions_of(screen: str) -> list[Action]:
    """The actions of one screen (or of `app`), in the order in which they are shown."""
    return [action for action in ACTIONS if action.screen == screen]


def bindings_of(screen: str) -> list[BindingType]:
    """Textual bindings of one screen, or of `app`."""
    return [action.binding for action in actions_of(screen)]


def clashes(keymap: Mapping[str, str]) -> dict[str, str]:
    """Actions whose new keys are taken: id -> a line that says by which. An action of all screens clashes with those of each screen."""
    lines = {}
    for action in ACTIONS:
        for key in keymap.get(action.id, "").split(","):
            for other in ACTIONS:
                overlaps = other.screen == action.screen or "app" in (other.screen, action.screen)
                same = other.action == action.action
                if key and other is not action and overlaps and not same and key in keymap.get(other.id, other.key).split(","):
                    lines[action.id] = f"keys: {action.id}: {shown(key)} is the key of {other.id}; give that one another key too"
    return lines
