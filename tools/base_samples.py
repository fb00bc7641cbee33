"""Samples for training the tiny model from scratch: freshly drawn scenes as tokens, made by worker processes.

A picture comes with two answers: its long caption, and a bare list of its attributes ("tags"), which is short and
teaches the vision tower to see long before the model can write prose. Imports no torch: every worker process imports
this module.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qwen3vl_core.demo.captions import LLAVA_PROMPTS, NUMBERS, PROMPT
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.scenes import SIZE, Scene
from qwen3vl_core.errors import WorkError

PATCH, SPATIAL_MERGE, TEMPORAL_PATCH = 16, 2, 2
PATCHES_ACROSS = SIZE // PATCH
PATCHES = PATCHES_ACROSS**2
IMAGE_TOKENS = PATCHES // SPATIAL_MERGE**2

TAGS_PROMPT = "Tags:"
LONG_TOKENS, TAGS_TOKENS = 224, 72
"""Room for a sample's tokens, prompt and answer; the longest that the scenes give are 209 and 48."""

PROMPT_SHARE = 0.6
"""Share of the long captions that answer PROMPT; the others answer one of LLaVA's."""


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A turn with one SIZE x SIZE picture and a prompt, up to where the answer begins, as the chat template renders it."""
    question = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * IMAGE_TOKENS}<|vision_end|>{prompt}<|im_end|>\n"
    return tokenizer.encode(question + "<|im_start|>assistant\n").ids


def tags(scene: Scene) -> str:
    """Every attribute once, no prose: "one red woman sitting, left brown dog, two birds, beach, night"."""
    main = " ".join(filter(None, (NUMBERS[scene.count], scene.colour, scene.main, scene.pose)))
    companion = f"{scene.side} {scene.companion_colour} {scene.companion}" if scene.companion else "nothing"
    sky = " ".join(filter(None, (NUMBERS[scene.sky_count], scene.sky_colour, scene.sky))) if scene.sky else "empty"
    return ", ".join((main, companion, sky, scene.place, scene.time))


@dataclass
class Samples:
    """n samples as arrays. Tokens beyond a sample's end are padding."""

    pictures: np.ndarray
    """uint8 [n, SIZE, SIZE, 3]"""
    long: np.ndarray
    """int16 [n, LONG_TOKENS]: prompt and long caption"""
    tags: np.ndarray
    """int16 [n, TAGS_TOKENS]: prompt and tags"""
    spans: np.ndarray
    """int16 [n, 4]: first token of the answer and end, of `long` and then of `tags`"""

    SHAPES = ((np.uint8, (SIZE, SIZE, 3)), (np.int16, (LONG_TOKENS,)), (np.int16, (TAGS_TOKENS,)), (np.int16, (4,)))

    @classmethod
    def over(cls, buffers: Sequence[Any]) -> Samples:
        """Views of four buffers that `shared_buffers` made."""
        return cls(*(np.frombuffer(b, dtype).reshape(-1, *shape) for b, (dtype, shape) in zip(buffers, cls.SHAPES, strict=True)))

    def rows(self, start: int, stop: int) -> Samples:
        """Views of some samples."""
        return Samples(self.pictures[start:stop], self.long[start:stop], self.tags[start:stop], self.spans[start:stop])


def shared_buffers(context: Any, count: int) -> list[Any]:
    """Memory for `count` samples that the processes of a multiprocessing context share."""
    return [context.RawArray("b", count * np.dtype(dtype).itemsize * int(np.prod(shape))) for dtype, shape in Samples.SHAPES]


class SampleMaker:
    """Draws the scene of a seed and writes it, with both answers, into a row of Samples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._prompt = functools.cache(lambda prompt: prompt_ids(tokenizer, prompt))
        self._padding = tokenizer.token_to_id("<|endoftext|>")
        self._end = tokenizer.token_to_id("<|im_end|>")

    def make(self, into: Samples, row: int, seed: int) -> None:
        scene, picture, long, _ = example(seed, "train")
        # not the scene's own generator: drawing from it would change the scene
        rng = random.Random(f"prompt {seed}")
        prompt = PROMPT if rng.random() < PROMPT_SHARE else rng.choice(LLAVA_PROMPTS)
        into.pictures[row] = picture
        spans = self._write(into.long[row], prompt, long), self._write(into.tags[row], TAGS_PROMPT, tags(scene))
        into.spans[row] = (*spans[0], *spans[1])

    def _write(self, row: np.ndarray, prompt: str, answer: str) -> tuple[int, int]:
        """Fills int16 [room]; returns where the answer begins and where it ends."""
        question = self._prompt(prompt)
        ids = [*question, *self.tokenizer.encode(answer).ids, self._end]
        if len(ids) > len(row):
            raise WorkError(f"scene sample: {len(ids)} tokens; room is for {len(row)}; raise LONG_TOKENS or TAGS_TOKENS")
        row[: len(ids)] = ids
        row[len(ids) :] = self._padding
        return len(question), len(ids)


# what a worker process holds between its tasks: set once when it starts
_maker: SampleMaker
_shared: Samples


def _start_worker(tokenizer_file: str, buffers: list[Any]) -> None:
    global _maker, _shared
    # Ctrl-C is the training's to answer; a training that is killed must not leave its workers behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.nice(5)
    _maker, _shared = SampleMaker(Tokenizer.from_file(tokenizer_file)), Samples.over(buffers)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _make(start: int, stop: int, seed: int) -> None:
    for row in range(start, stop):
        _maker.make(_shared, row, seed + row - start)


class SampleSource:
    """Samples of the scenes first_seed, first_seed + 1, …, in that order whatever the number of worker processes.

    `with SampleSource(…) as source: source.take(receive)`. Drawing runs ahead by two chunks a worker.
    """

    def __init__(self, tokenizer_file: Path, *, first_seed: int, chunk: int, workers: int) -> None:
        # "spawn": the training has threads and perhaps a CUDA context, neither of which survives a fork
        context = multiprocessing.get_context("spawn")
        self.chunk, self._next_seed = chunk, first_seed
        buffers = shared_buffers(context, 2 * workers * chunk)
        self._shared = Samples.over(buffers)
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (str(tokenizer_file), buffers))
        self._pending: deque[tuple[int, Future[None]]] = deque()
        for slot in range(2 * workers):
            self._order(slot)

    def __enter__(self) -> SampleSource:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _order(self, slot: int) -> None:
        start = slot * self.chunk
        self._pending.append((slot, self._executor.submit(_make, start, start + self.chunk, self._next_seed)))
        self._next_seed += self.chunk

    def take(self, receive: Callable[[Samples], None], *, wait: bool = True) -> bool:
        """Hands the next `chunk` samples to `receive`, which copies them: the memory is then drawn into again.

        Without `wait`, returns False at once when they are not drawn yet. Raises WorkError when a worker was killed.
        """
        slot, future = self._pending[0]
        if not wait and not future.done():
            return False
        try:
            future.result()
            self._pending.popleft()
            receive(self._shared.rows(slot * self.chunk, (slot + 1) * self.chunk))
            self._order(slot)
        except BrokenProcessPool as error:
            raise WorkError("drawing scenes: a worker process was killed; memory may be short; try fewer --workers") from error
        return True
