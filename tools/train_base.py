"""The recipe of the bundled base model: a tiny Qwen3-VL trained from scratch on freshly drawn scenes.

    python -m tools.train_base --to DIR

Plain PyTorch on Hugging Face's model class, on CUDA if available, else on the CPU. In the first third of the time
most batches answer with a bare list of the scene's attributes, short sequences from which the vision tower learns to
see; then all are long captions, with the learning rate falling to zero. Writes an ordinary Hugging Face folder.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3vl_core.argument_parser import Parser
from qwen3vl_core.demo.captions import PROMPT
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.scoring import LONG_FIELDS, score
from qwen3vl_core.demo.workspace import HELD_OUT_SEED
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError, WorkError
from qwen3vl_core.files import atomic_folder, check_target, disk_full, need_space
from qwen3vl_core.formats import duration
from qwen3vl_core.progress import Progress
from tools.base_samples import LONG_TOKENS, SampleSource
from tools.base_tokenizer import write_processor

# the worker processes import this module again; torch and transformers, which they do not need, wait for `train`
if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import Qwen3VLForConditionalGeneration

    from tools.base_model import Pool

TAGS_SHARE = 0.35
"""Share of the training that is about tags."""
LONG_EVERY = 8
"""In that share every eighth batch is long captions already, so that the switch is not abrupt."""
TAGS_BATCH = 2
"""Size of a batch of tags relative to one of long captions: its sequences are short."""
WARMUP_STEPS = 200
WEIGHT_DECAY, BETAS, CLIP = 0.05, (0.9, 0.98), 1.0
LAST_LR = 1e-6
LOOK_EVERY = 10
"""Steps between two readings of the loss on CUDA, each of which waits for the device."""

CHUNK = 128
"""Scenes that a worker draws at a time."""
SEEDS_APART = 10**9
# samples to choose batches from, and how many of them must be there before the first step; a CPU is slower and smaller
POOL = {"cuda": 200_000, "cpu": 20_000}
FIRST = {"cuda": 20_000, "cpu": 2_000}
SCORING_SECONDS = {"cuda": 12.0, "cpu": 60.0}
"""Part of --minutes reserved for writing the model and scoring it on the held-out scenes."""
MODEL_BYTES = 12_000_000


@dataclass(frozen=True)
class Recipe:
    """Options of a training; the defaults made the bundled base model."""

    to: Path
    minutes: float = 7.8
    steps: int | None = None
    batch_size: int = 256
    lr: float = 1.5e-3
    workers: int = max(1, (os.cpu_count() or 2) - 1)
    seed: int = 0
    held_out: int = 256
    overwrite: bool = False

    def check(self) -> None:
        """Raises RequestError that names the first invalid option."""
        for option, value, valid, rule in (
            ("--minutes", self.minutes, 0 < self.minutes < math.inf, "a number above 0; the base model took 7.8"),
            ("--steps", self.steps, self.steps is None or self.steps >= 1, "1 or more; leave it out to train for --minutes"),
            ("--batch-size", self.batch_size, self.batch_size >= 1, "1 or more; the base model took 256"),
            ("--lr", self.lr, 0 < self.lr < math.inf, "a number above 0; the base model took 0.0015"),
            ("--workers", self.workers, 1 <= self.workers <= 256, "1 to 256 processes; one less than there are CPUs is the default"),
            ("--seed", self.seed, self.seed >= 0, "0 or more; the base model took 0"),
            ("--held-out", self.held_out, self.held_out >= 0, "0 or more scenes; 0 leaves the score out"),
        ):
            if not valid:
                raise RequestError(f"{option} {value}: must be {rule}")
        check_target(self.to, overwrite=self.overwrite, what="model")
        need_space(self.to, MODEL_BYTES, "model")

    @property
    def warmup(self) -> int:
        """Warm-up steps of the learning rate; a training of a few steps must reach the peak too."""
        return WARMUP_STEPS if self.steps is None else min(WARMUP_STEPS, max(1, self.steps // 10))

    def is_long(self, step: int, share: float) -> bool:
        """Whether the batch of a step (from 0), begun when `share` (0 to 1) of the training was done, is long captions."""
        return share >= TAGS_SHARE or step % LONG_EVERY == LONG_EVERY - 1

    def rate(self, step: int, share: float) -> float:
        """The learning rate of that step: constant while tags are learnt, then cosine decay to almost zero."""
        rate = self.lr * min(1.0, (step + 1) / self.warmup)
        if share < TAGS_SHARE:
            return rate
        return rate * (0.5 + 0.5 * math.cos(math.pi * (share - TAGS_SHARE) / (1 - TAGS_SHARE))) + LAST_LR


class _StepProgress(Progress):
    """Progress line of a training: `train  12%  step 620 of 5,255  loss 0.0652  lr 1.5e-03  3,900 scenes/s  ETA 6:50`.

    `note` holds the loss and the learning rate; `scenes` were trained on so far.
    """

    scenes = 0

    def line(self, width: int = 100) -> str:
        elapsed, done, total = max(time.monotonic() - self.started, 1e-9), int(self.done), int(self.total or 0)
        clock = f"ETA {duration(elapsed * (total - done) / done)}" if 0 < done < total else f"in {duration(elapsed)}"
        steps = f"{done / total if total else 0:4.0%}  step {done:,} of {total:,}"
        return f"{self.label} {steps}  {self.note}  {self.scenes / elapsed:,.0f} scenes/s  {clock}"[: max(width, 20)]


def _optimise(
    recipe: Recipe, model: Qwen3VLForConditionalGeneration, positions: torch.Tensor, source: SampleSource, pool: Pool, seconds: float
) -> int:
    """Training loop, for recipe.steps or for `seconds`; returns the steps done."""
    import torch

    from tools.base_model import caption_loss, parameter_groups

    on_cuda = pool.device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=recipe.lr, betas=BETAS, fused=on_cuda)
    started, step, used, first, share = time.monotonic(), 0, 0, pool.drawn, 0.0
    with _StepProgress("train", recipe.steps, "steps") as progress:
        while share < 1:
            long, rate = recipe.is_long(step, share), recipe.rate(step, share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # as many new scenes as the steps have used; with a given number of steps they are waited for, so that a
            # seed gives one training, and within a given time they are not
            while pool.drawn < first + used and source.take(pool.put, wait=recipe.steps is not None):
                pass
            count = recipe.batch_size * (1 if long else TAGS_BATCH)
            loss = caption_loss(model, *pool.batch(count, long), positions)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step, used = step + 1, used + count
            elapsed = time.monotonic() - started
            share = step / recipe.steps if recipe.steps is not None else elapsed / seconds
            note = ""
            if not on_cuda or step % LOOK_EVERY == 0 or share >= 1:
                value = loss.item()
                if not math.isfinite(value):
                    raise WorkError(f"training: the loss is {value} at step {step}; give a --lr below {recipe.lr:g}")
                note = f"loss {value:.4f}  lr {rate:.1e}"
            progress.scenes = used
            progress.total = recipe.steps or max(step, round(step / share))
            progress.update(1, note)
    return step


def _fill(pool: Pool, source: SampleSource, first: int) -> None:
    with Progress("draw", first, "scenes") as progress:
        while pool.drawn < first:
            source.take(pool.put)
            progress.update(source.chunk)


def held_out_score(folder: Path, tokenizer: Tokenizer, device: torch.device, count: int) -> str:
    """What a written model names right in long captions of scenes it never saw, in two lines."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration
    from transformers.utils import logging

    from tools.base_model import captions

    # a bar of its own for a file that loads at once
    logging.disable_progress_bar()
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model = loaded.to(device).eval()
    examples = [example(HELD_OUT_SEED + number, "heldout") for number in range(count)]
    pictures = torch.from_numpy(np.stack([np.asarray(picture) for _, picture, _, _ in examples]))
    texts = captions(model, tokenizer, pictures, PROMPT)
    verdicts = [score(text, scene, "long") for text, (scene, *_) in zip(texts, examples, strict=True)]
    right = {field: [v[field] for v in verdicts if field in v] for field in LONG_FIELDS}
    every = [verdict for of_field in right.values() for verdict in of_field]
    words = sum(len(text.split()) for text in texts) / count
    fields = ", ".join(f"{field} {np.mean(of_field):.1%}" for field, of_field in right.items() if of_field)
    return f"{count} held-out scenes: {np.mean(every):.1%} of the attributes named, {words:.0f} words a caption\n  {fields}"


def train(recipe: Recipe) -> None:
    """Trains the model, writes it to recipe.to atomically, and prints its score. Raises RequestError, WorkError."""
    began = time.monotonic()
    recipe.check()
    import torch

    from tools.base_model import Pool, new_model, prompt_positions, write_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.steps is None and recipe.minutes * 60 <= SCORING_SECONDS[device.type]:
        kept = duration(SCORING_SECONDS[device.type])
        raise RequestError(f"--minutes {recipe.minutes:g}: {kept} of it is kept for the score; give more, or --steps")
    torch.set_float32_matmul_precision("high")
    first = FIRST[device.type]
    if recipe.steps is not None:
        first = min(first, recipe.steps * recipe.batch_size * TAGS_BATCH)
    chunk = min(CHUNK, first)
    first = -(-first // chunk) * chunk
    try:
        with atomic_folder(recipe.to, what="training") as folder:
            tokenizer = write_processor(folder)
            seed = 1 + recipe.seed * SEEDS_APART
            with SampleSource(folder / "tokenizer.json", first_seed=seed, chunk=chunk, workers=recipe.workers) as source:
                fresh: Any = new_model(recipe.seed)  # transformers' `to` has no types for a device
                model = fresh.to(device).train()
                positions = prompt_positions(model, tokenizer, LONG_TOKENS)
                pool = Pool(POOL[device.type] // chunk * chunk, device, recipe.seed)
                _fill(pool, source, first)
                left = recipe.minutes * 60 - (time.monotonic() - began) - SCORING_SECONDS[device.type]
                if recipe.steps is None and left <= 0:
                    raise WorkError(f"--minutes {recipe.minutes:g}: drawing the first scenes took all of it; give more, or --steps")
                steps = _optimise(recipe, model, positions, source, pool, left)
            write_model(model, folder)
    except torch.OutOfMemoryError as error:
        raise WorkError("training: the device's memory is full; give a smaller --batch-size or free the device") from error
    print(f"{recipe.to}: {steps:,} steps, {pool.drawn:,} scenes drawn, {duration(time.monotonic() - began)} in all", flush=True)
    if recipe.held_out:
        print(held_out_score(recipe.to, tokenizer, device, recipe.held_out))


def read_arguments(arguments: list[str] | None) -> Recipe:
    """The recipe that a command line asks for. Raises RequestError."""
    default = Recipe(Path())
    parser = Parser(
        prog="python -m tools.train_base", allow_abbrev=False,
        description="Train the demo's tiny Qwen3-VL from scratch on freshly drawn scenes. The defaults made the bundled one.",
    )  # fmt: skip
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="Hugging Face folder to write")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument(
        "--minutes",
        type=float,
        default=default.minutes,
        help="time for everything: drawing, training, writing and the score (default %(default)s)",
    )
    how_long.add_argument("--steps", type=int, help="train for so many steps instead")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=default.batch_size,
        help=f"scenes of a step; {TAGS_BATCH} times as many while attributes are learnt (default %(default)s)",
    )
    parser.add_argument("--lr", type=float, default=default.lr, help="highest learning rate (default %(default)s)")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes that draw scenes (default: all CPUs but one)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the weights and the scenes (default %(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=default.held_out,
        metavar="N",
        help="scenes to score at the end; 0 leaves it out (default %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --to holds")
    return Recipe(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 the work failed, 2 the request is invalid, one line on standard error for each."""
    try:
        train(read_arguments(arguments))
    except (RequestError, WorkError) as error:
        print(f"train_base: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_base: stopped; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    except PermissionError as error:
        print(f"train_base: {error.filename}: permission denied; choose a folder that you may write to", file=sys.stderr)
        return EXIT_REQUEST
    except OSError as error:
        reason = "the disk is full" if disk_full(error) else error
        print(f"train_base: {reason}; nothing was written; choose another folder", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
