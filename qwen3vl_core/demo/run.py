"""`qwen3vl demo`: the whole loop on drawn scenes, each stage the same command that a user types."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core.caption.word_diff import count
from qwen3vl_core.demo.captions import PROMPT
from qwen3vl_core.demo.scenes import Scene
from qwen3vl_core.demo.scoring import LONG_FIELDS, parse
from qwen3vl_core.demo.workspace import FINETUNE, Workspace
from qwen3vl_core.entry_points import registered
from qwen3vl_core.errors import EXIT_DONE, WorkError
from qwen3vl_core.files import write_text
from qwen3vl_core.formats import duration
from qwen3vl_core.options import FinetuneOptions, from_mapping, shell_line, to_arguments
from qwen3vl_core.run_record import CHECKPOINTS, PLAN, STATE, TRACKER

Dispatch = Callable[[list[str]], int]
SPLIT = "15,1,0"
SHOWN = 3
NOTICE = (
    "This is a tiny model (5.5M parameters, the real Qwen3-VL architecture) that knows drawn scenes only: on a photograph it "
    "writes nonsense. The commands are the same for the real sizes."
)


@dataclass(frozen=True)
class DemoStage:
    """A stage of the loop: its command, and a check whether it is done."""

    name: str
    title: str
    words: Callable[[], list[str]]
    done: Callable[[], bool]


def finetunes(workspace: Workspace) -> Iterable[Path]:
    """Folders of the demo's finetune runs that are done, oldest first."""
    for run in sorted(workspace.runs.glob("[0-9]*")):
        try:
            plan, state = (json.loads((run / name).read_text()) for name in (PLAN, STATE))
        except (OSError, ValueError):
            continue
        demo_options = workspace.describe()["finetune"]
        if plan.get("kind") == "finetune" and state.get("status") == "done" and demo_options.items() <= plan.get("options", {}).items():
            yield run


def stages(workspace: Workspace) -> list[DemoStage]:
    """The loop, in order."""
    w = workspace
    recorded = ["--runs", str(w.runs)]
    finetune = from_mapping(FinetuneOptions, w.describe()["finetune"])

    def back() -> list[str]:
        # overwrite: the target may hold the model of an earlier training
        return ["convert", str(list(finetunes(w))[-1] / CHECKPOINTS), str(w.tuned), "--overwrite", *recorded]

    def compare() -> list[str]:
        words = ["compare", "--base", str(w.base), "--tuned", str(w.tuned), "--images", str(w.held_out), "--references", str(w.truth_file)]
        words += ["--prompt", PROMPT, "--batch-size", "64", "--show", str(SHOWN)]
        return [*words, "--json", str(w.root / "captions.json"), "--html", str(w.root / "report.html"), *recorded]

    return [
        DemoStage("prepare", "pictures and captions to shards",
              lambda: ["prepare", str(w.train_json), "--to", str(w.data), "--split", SPLIT, *recorded], (w.data / "report.json").exists),
        DemoStage("convert", "Hugging Face to Megatron",
              lambda: ["convert", str(w.base), str(w.base_megatron), "--verify", *recorded],
              (w.base_megatron / TRACKER).exists),
        DemoStage("finetune", f"{FINETUNE['train_iters']} steps of {FINETUNE['global_batch_size']} pictures",
              lambda: ["finetune", *to_arguments(finetune), "--foreground", *recorded], lambda: any(finetunes(w))),
        DemoStage("convert back", "Megatron to Hugging Face", back, (w.tuned / "config.json").exists),
        DemoStage("compare", "captions side by side", compare, (w.root / "captions.json").exists),
    ]  # fmt: skip


def mentioned(captions: dict[str, str], scenes: dict[str, Scene]) -> tuple[float, float]:
    """(fraction of the mentioned attributes that are right, average number of attributes mentioned per caption)."""
    right = said = 0
    for name, text in captions.items():
        for field, value in parse(text).items():
            if field in LONG_FIELDS and value:
                said += 1
                right += value == getattr(scenes[name], field)
    return right / max(said, 1), said / max(len(captions), 1)


def report(workspace: Workspace, seconds: dict[str, float]) -> dict[str, Any]:
    """Summary of the loop, from the captions that compare wrote. Raises WorkError for a caption that is empty."""
    rows = json.loads((workspace.root / "captions.json").read_text())["captions"]
    scenes = workspace.scenes()
    summary: dict[str, Any] = {}
    for side in ("base", "tuned"):
        captions = {Path(row["image"]).name: row[side] for row in rows}
        empty = [name for name, text in captions.items() if not text.strip()]
        if empty:
            raise WorkError(
                f"{workspace.root / 'captions.json'}: the {side} model wrote nothing for {empty[0]}; "
                f"remove {workspace.root} and start again"
            )
        summary[f"{side}_words"] = round(sum(map(count, captions.values())) / len(captions), 1)
        accuracy, number = mentioned(captions, scenes)
        summary[f"{side}_accuracy"], summary[f"{side}_attributes"] = round(accuracy, 4), round(number, 2)
    return summary | {"pictures": len(rows), "seconds": {k: round(v, 1) for k, v in seconds.items()}}


def _run_stages(workspace: Workspace, seconds: dict[str, float], dispatch: Dispatch) -> None:
    times = workspace.root / "stages.json"
    redone = False
    for number, stage in enumerate(stages(workspace), 1):
        head = f"[{number}/5] {stage.name}: {stage.title}"
        # a stage after one that ran again is redone: its input changed
        if stage.done() and not redone:
            print(f"{head} - done before")
            continue
        words = stage.words()
        if stage.done() and stage.name in ("prepare", "convert"):
            words.append("--overwrite")
        print(f"{head}\n  $ {shell_line(['qwen3vl', *words])}", flush=True)
        started = time.monotonic()
        code = dispatch(words)
        if code != EXIT_DONE:
            raise WorkError(f"demo: {stage.name} ended with exit code {code}; its lines above say why; run qwen3vl demo again to continue")
        seconds[stage.name] = time.monotonic() - started
        write_text(times, json.dumps(seconds) + "\n")
        redone = True
        print(f"  {stage.name} took {duration(seconds[stage.name])}\n", flush=True)


def main(dispatch: Dispatch, dir: Path, headless: bool = False, workspace_only: bool = False) -> int:
    """Create the workspace; then open the console on it, run the loop here, or stop. Returns the exit code.

    dispatch: runs a command line of `qwen3vl` and returns its exit code."""
    folder = dir.expanduser().absolute()
    workspace = Workspace(folder)
    print(NOTICE + "\n")
    workspace.make()
    if workspace_only:
        print(f"the workspace is {folder}; qwen3vl demo --dir {folder} opens the console on it")
        return EXIT_DONE
    if not headless and sys.stdin.isatty() and sys.stdout.isatty():
        return registered("qwen3vl.commands", "console")(["--runs", str(workspace.runs), "--workspace", str(folder)])
    try:
        seconds = json.loads((folder / "stages.json").read_text())
    except (OSError, ValueError):
        seconds = {}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _run_stages(workspace, seconds, dispatch)
    summary = report(workspace, seconds)
    write_text(folder / "report.json", json.dumps(summary, indent=2) + "\n")
    print(
        f"{summary['pictures']} held-out pictures: base {summary['base_words']:.0f} words, "
        f"{summary['base_accuracy']:.1%} of what it says is right; "
        f"finetuned {summary['tuned_words']:.0f} words, {summary['tuned_accuracy']:.1%}\n"
        f"{folder / 'report.html'} shows all of them side by side; report.json beside it has the figures\n"
        f"qwen3vl console --runs {workspace.runs} shows the runs"
    )
    return EXIT_DONE
