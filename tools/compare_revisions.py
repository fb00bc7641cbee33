"""Show that two revisions compute the same bits on a CPU.

    python tools/compare_revisions.py v0.1.0 main
    python tools/compare_revisions.py main my-branch --keep /tmp/both --layout "--pp 2 --recompute full"
    python tools/compare_revisions.py v0.1.0 main --options-b=--no-balance    # of its finetunes alone: v0.1.0 deals samples in order

Each revision is checked out into a temporary folder and drives its own `qwen3vl` command line through the demo's loop on small
settings: draw, prepare, convert, finetune with a save, a stop and a resume, convert back, compare captions; then a finetune in
each parallel layout. What they leave is compared bit for bit: losses and gradient norms, files of data, tensors of checkpoints,
captions. Prints a table and exits with 1 on a difference or when a command of a revision fails, with 2 for an invalid request.

Both revisions run under this interpreter, so that its packages must serve both. About a minute and a half a revision on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qwen3vl_core.checkpoint.torch_dist import RegionReader

ROOT = Path(__file__).resolve().parents[1]
COMPUTED = {"loss", "lr", "grad_norm", "tokens", "samples", "skipped"}
"""Fields of a training row of `metrics.jsonl` that say what was computed; the others are times, rates and memory."""

STEPS, SAVE_INTERVAL, STOP_AFTER = 24, 8, 10
TRAINING = ["--precision", "fp32", "--lr", "5e-4", "--lr-warmup-iters", "2"]
BATCHES = ["--micro-batch-size", "4", "--global-batch-size", "8", "--seq-length", "256"]
LAYOUT_STEPS = 6
LAYOUTS = (
    "--tp 2 --sequence-parallel --micro-batch-size 4 --global-batch-size 8 --seq-length 256",
    "--cp 2 --packing --global-batch-size 2 --seq-length 512",
    "--distributed-optimizer --micro-batch-size 4 --global-batch-size 8 --seq-length 256",
)
CAPTIONS = ["--limit", "8", "--batch-size", "8", "--max-new-tokens", "48"]
COMMAND_SECONDS = 600
SHOWN = 100
"""Characters of a value in the table."""

Items = dict[str, str]
"""Name of one thing that was computed -> its value, or the digest of it."""
Results = dict[str, Items]
"""By the title of a row of the table."""


class CommandFailed(Exception):
    """A command of a revision failed; the text says which and how it ended."""


# What a revision leaves, as names and digests


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def of_tensor(tensor: torch.Tensor) -> str:
    """Precision, shape and digest of the bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest(raw)}"


def of_value(value: Any) -> str:
    """Of what a checkpoint holds beside tensors: nested lists and dicts of tensors and plain values."""
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {of_value(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(of_value, value)) + "]"
    return f"{type(value).__name__} {digest(value)}" if isinstance(value, bytes | bytearray) else repr(value)


def of_files(folder: Path, leave_out: Iterable[str] = ()) -> Items:
    """Digest of every file below a folder. A SQLite database is compared by its rows: its pages depend on how it was filled."""
    items: Items = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out):
        name = str(file.relative_to(folder))
        if file.suffix == ".sqlite":
            items |= {f"{name}: {table}": rows for table, rows in of_database(file).items()}
        else:
            items[name] = digest(file.read_bytes())
    return items


def of_database(file: Path) -> Items:
    """Digest of each table's rows."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {table: digest(repr(sorted(database.execute(f'SELECT * FROM "{table}"'), key=repr)).encode()) for table in tables}


def of_safetensors(folder: Path) -> Items:
    items: Items = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            items |= {name: of_tensor(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    return items


def of_checkpoint(folder: Path) -> tuple[Items, Items, Items]:
    """(weights, optimizer, the rest: random states and where the data goes on) of a `torch_dist` checkpoint."""
    reader = RegionReader(folder)
    weights: Items = {}
    optimizer: Items = {}
    for key in sorted(reader.tensors):
        (optimizer if key.startswith("optimizer") else weights)[key] = of_tensor(reader.read(key))
    rest = {key: of_value(reader.read_object(key)) for key in sorted(reader.objects)}
    if (extra := folder / "extra.json").exists():
        rest |= {f"extra.json: {key}": repr(value) for key, value in json.loads(extra.read_text()).items()}
    return weights, optimizer, rest


def of_metrics(file: Path) -> Items:
    """Losses, gradient norms, learning rates and counts of every step, as Python writes the numbers; of a step done again the last."""
    items: Items = {}
    for row in map(json.loads, file.read_text().splitlines()):
        if row["kind"] == "train":
            items |= {f"step {row['step']} {name}": repr(row.get(name)) for name in sorted(COMPUTED)}
    return items


def of_captions(file: Path) -> Items:
    """Texts of both models by picture."""
    rows = json.loads(file.read_text())["captions"]
    return {f"{Path(row['image']).name} {side}": row[side] for row in rows for side in ("base", "tuned")}


# Running a revision


@dataclass
class Revision:
    """One of the two: its name as given, its commit, and the folder it is checked out in."""

    name: str
    commit: str
    tree: Path


def git(*words: str) -> str:
    """What git prints. Raises ValueError with its last line."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["git failed"])[-1])
    return done.stdout.strip()


def write_metadata(tree: Path) -> None:
    """The entry points of a checkout, as an installation would have them: those that are installed are another revision's."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    folder = tree / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project.get("scripts", {})} | project.get("entry-points", {})
    lines = [f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items()) for group, points in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))


@contextlib.contextmanager
def checked_out(name: str, folder: Path) -> Iterator[Revision]:
    """A revision in a worktree of its own, which is removed again. Raises ValueError for a name that git does not know."""
    commit = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    tree = folder / "tree"
    git("worktree", "add", "--detach", "--quiet", str(tree), commit)
    try:
        write_metadata(tree)
        yield Revision(name, commit, tree)
    finally:
        with contextlib.suppress(ValueError):
            git("worktree", "remove", "--force", str(tree))


class Runner:
    """Runs `qwen3vl` commands of one revision in a folder. The folder has the same path for both: files may hold it."""

    def __init__(self, revision: Revision, folder: Path, options: str = "") -> None:
        """options: of each finetune, beside those of both revisions."""
        self.revision, self.folder, self.options = revision, folder, shlex.split(options)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QWEN3VL_", "PYTHON"))}
        self.environment = kept | {
            "PYTHONPATH": str(revision.tree), "QWEN3VL_RUNS": str(folder / "runs"), "QWEN3VL_PROGRESS": "lines", "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip

    def __call__(self, *words: str, stop_when: Any = None) -> None:
        """Run one command to its end. stop_when: a function that says when to interrupt it, as Ctrl-C does.

        Raises CommandFailed when it ends in another way than it should, and TimeoutError when it does not end.
        """
        words = (*words, *(self.options if words[0] == "finetune" else []))
        shown = shlex.join(["qwen3vl", *words])
        started = time.monotonic()
        with tempfile.TemporaryFile() as output:
            command = [sys.executable, "-m", "console", *words]
            child = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
            interrupted = False
            try:
                while child.poll() is None:
                    if stop_when is not None and not interrupted and stop_when():
                        interrupted = True
                        child.send_signal(signal.SIGINT)
                    if time.monotonic() - started > COMMAND_SECONDS:
                        raise CommandFailed(f"{shown}: not done after {COMMAND_SECONDS} s")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(0.02 if stop_when else 1)
            finally:
                if child.poll() is None:
                    child.send_signal(signal.SIGINT)
                    child.wait(60)
            expected_code = 128 + signal.SIGINT if stop_when else 0
            if child.returncode != expected_code:
                output.seek(0)
                last = "\n  ".join(output.read().decode(errors="replace").splitlines()[-15:])
                raise CommandFailed(f"{shown}: exit code {child.returncode}, {expected_code} was expected; its last lines:\n  {last}")
        print(f"  {time.monotonic() - started:5.1f} s  {shown}", flush=True)

    def last_run(self) -> Path:
        """Folder of the run that was started last."""
        return sorted((self.folder / "runs").glob("[0-9]*"))[-1]


def last_step(metrics: Path) -> int:
    """Step of the last whole row of training; 0 while there is none."""
    if not metrics.exists():
        return 0
    # what follows the last line's end is still being written
    rows = map(json.loads, metrics.read_text().rpartition("\n")[0].splitlines())
    return max((row["step"] for row in rows if row["kind"] == "train"), default=0)


def of_loop(run: Runner) -> Results:
    """The demo's loop, and what each of its stages left."""
    results: Results = {}
    run("demo", "--dir", "demo", "--workspace-only")
    demo_folder = run.folder / "demo"
    results["drawn pictures and conversations"] = of_files(demo_folder / "train") | of_files(demo_folder / "held-out")
    run("prepare", "demo/train/captions.json", "--to", "demo/data", "--split", "15,1,0")
    results["shards and their index"] = of_files(demo_folder / "data", leave_out=["report.json"])
    run("convert", "demo/base-hf", "demo/base-mcore", "--verify")
    results["converted to torch_dist: tensors"] = of_checkpoint(demo_folder / "base-mcore" / "release")[0]

    sizes = [*BATCHES, "--train-iters", str(STEPS), "--save-interval", str(SAVE_INTERVAL)]
    before = set((run.folder / "runs").glob("*"))

    def far_enough() -> bool:
        new_runs = sorted(set((run.folder / "runs").glob("[0-9]*")) - before)
        return bool(new_runs) and last_step(new_runs[-1] / "metrics.jsonl") >= STOP_AFTER

    run("finetune", "--load", "demo/base-mcore", "--train-data", "demo/data", *TRAINING, *sizes, "--foreground", stop_when=far_enough)
    finetune = run.last_run()
    run("runs", "resume", finetune.name, "--foreground")
    results["finetune, stopped and resumed: losses and gradient norms"] = of_metrics(finetune / "metrics.jsonl")
    for step in (SAVE_INTERVAL, STEPS):
        parts = of_checkpoint(finetune / "checkpoints" / f"iter_{step:07d}")
        results |= {
            f"finetune, step {step}: {title}": part
            for title, part in zip(("weights", "optimizer", "random and data states"), parts, strict=True)
        }

    run("convert", str(finetune / "checkpoints"), "demo/tuned-hf")
    results["converted back to safetensors: tensors"] = of_safetensors(demo_folder / "tuned-hf")
    names = [file.name for file in (demo_folder / "tuned-hf").glob("*.safetensors")]
    results["converted back to safetensors: other files"] = of_files(demo_folder / "tuned-hf", leave_out=names)
    pictures = ["--images", "demo/held-out", *CAPTIONS, "--json", "captions.json"]
    run("compare", "--base", "demo/base-hf", "--tuned", "demo/tuned-hf", *pictures)
    results["captions of both models"] = of_captions(run.folder / "captions.json")
    return results


def layout_title(layout: str) -> str:
    """Its options without those of the batch."""
    return re.split(r" --(?:micro-batch|global-batch|seq-length)", layout)[0]


def of_layout(run: Runner, layout: str) -> Results:
    """A short finetune from the base model in two processes."""
    words = [*shlex.split(layout), "--nproc", "2", "--train-iters", str(LAYOUT_STEPS), "--foreground"]
    run("finetune", "--load", "demo/base-hf", "--train-data", "demo/data", *TRAINING, *words)
    run_folder = run.last_run()
    weights, optimizer, rest = of_checkpoint(run_folder / "checkpoints" / f"iter_{LAYOUT_STEPS:07d}")
    title = layout_title(layout)
    return {
        f"{title}: losses and gradient norms": of_metrics(run_folder / "metrics.jsonl"),
        f"{title}: weights": weights, f"{title}: optimizer": optimizer, f"{title}: random and data states": rest,
    }  # fmt: skip


# The table


def first_difference(a: Items, b: Items) -> str | None:
    """Name and both values of the first thing that is not the same on both sides; None where all are."""
    for name in [*a, *(name for name in b if name not in a)]:
        if a.get(name) != b.get(name):
            sides = [value if len(value) <= SHOWN else f"{value[:SHOWN]}…" for value in (a.get(name, "missing"), b.get(name, "missing"))]
            if sides[0] == sides[1]:
                sides = [digest(value.encode()) for value in (a[name], b[name])]
            return f"{name}: {sides[0]} | {sides[1]}"
    return None


def table(a: Results, b: Results) -> tuple[list[str], bool]:
    """Lines of the table, and whether all is equal."""
    rows = []
    for what in [*a, *(what for what in b if what not in a)]:
        left, right = a.get(what, {}), b.get(what, {})
        # an empty side must not count as equal
        difference = first_difference(left, right) if left and right else "nothing was found to compare"
        rows.append((what, len(left), difference))
    width = max(len(what) for what, _, _ in rows)
    lines = [f"{'what':{width}}  things  result"]
    for what, count, difference in rows:
        lines.append(f"{what:{width}}  {count:6}  {'equal' if difference is None else f'different  {difference}'}")
    return lines, all(difference is None for _, _, difference in rows)


def arguments() -> argparse.Namespace:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev_a", metavar="REV_A", help="a commit, branch or tag of this repository")
    parser.add_argument("rev_b", metavar="REV_B", help="the one to compare it with")
    parser.add_argument(
        "--layout", action="append", metavar="OPTIONS", help="finetune options of a layout of two processes, in quotes; may be given "
        f"several times; else those of {', '.join(map(repr, map(layout_title, LAYOUTS)))}",
    )  # fmt: skip
    for letter in ("a", "b"):
        parser.add_argument(
            f"--options-{letter}", default="", metavar="OPTIONS", help=f"more finetune options of REV_{letter.upper()}, in quotes"
        )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what both revisions wrote, in DIR/a and DIR/b")
    return parser.parse_args()


def run_revision(name: str, letter: str, folder: Path, layouts: Iterable[str], options: str, keep: Path | None) -> Results:
    work = folder / "work"
    with checked_out(name, folder) as revision:
        print(f"{letter}: {name} ({revision.commit[:9]})", flush=True)
        work.mkdir()
        run = Runner(revision, work, options)
        try:
            results = of_loop(run)
            for layout in layouts:
                results |= of_layout(run, layout)
            return results
        finally:
            if keep:
                shutil.move(work, keep / letter)
            else:
                shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    args = arguments()
    started = time.monotonic()
    # a kill must not leave a worktree behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    keep = args.keep.expanduser().absolute() if args.keep else None
    sides = {"a": args.rev_a, "b": args.rev_b}
    if keep and any((keep / letter).exists() for letter in sides):
        print(f"--keep {keep}: holds a or b already; choose another folder", file=sys.stderr)
        return 2
    for name in sides.values():
        try:
            git("rev-parse", "--verify", f"{name}^{{commit}}")
        except ValueError:
            print(f"{name}: no commit of {ROOT}; git log --oneline lists them", file=sys.stderr)
            return 2
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compare-revisions-") as folder:
        try:
            layouts = args.layout or LAYOUTS
            a = run_revision(args.rev_a, "a", Path(folder), layouts, args.options_a, keep)
            b = run_revision(args.rev_b, "b", Path(folder), layouts, args.options_b, keep)
        except CommandFailed as error:
            print(error, file=sys.stderr)
            return 1
    lines, equal = table(a, b)
    print("\n".join(lines))
    print(f"{'all equal' if equal else 'DIFFERENT'}, {time.monotonic() - started:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
