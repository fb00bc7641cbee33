"""Captions of a few fixed pictures while the model is trained, so that a person sees what the loss means."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch

from qwen3vl_core.caption.generate import Prompt, Writer
from qwen3vl_core.caption.pictures import Picture, find
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import FinetuneOptions

SAMPLES = "samples.jsonl"
VERSION = 1
MOST_PICTURES = 16
LONGEST = 256
"""Tokens of a caption."""
TOGETHER = 4
"""Captions written at once: the caches take memory beside the optimizer's."""


def left_out(options: FinetuneOptions) -> str | None:
    """Why this layout writes no captions, or None. A caption is written by one rank alone, which must hold the whole model."""
    for flag, size in (("--tp", options.tp), ("--pp", options.pp), ("--cp", options.cp), ("--ep", options.ep)):
        if size > 1:
            return f"--sample-interval is left out: captions are written by one process, and {flag} {size} splits the model over several"
    return None


def pictures(options: FinetuneOptions) -> list[Picture]:
    """The pictures of `--sample-images`. Raises RequestError that names the option for what is no picture."""
    try:
        return find(options.sample_images, MOST_PICTURES)
    except RequestError as error:
        raise RequestError(str(error).replace("--images", "--sample-images")) from None


class Sampler:
    """Writes captions with the model that is being trained, greedily, into `samples.jsonl`. On the first rank only."""

    def __init__(self, run_dir: Path, options: FinetuneOptions, processor: ChatProcessor) -> None:
        self.file = run_dir / SAMPLES
        self.prompt, self.processor = options.sample_prompt, processor
        self.pictures = pictures(options)

    def write(self, model: Any, step: int) -> list[str]:
        """Captions after `step`, in the order of the pictures; each is a row as `compare` writes them, model `tuned`, with
        its step. The model, its mode and the random numbers are afterwards as they were."""
        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                writer = Writer(
                    model, self.processor.decode, self.processor.eos_token_ids, Sampling(LONGEST), batch_size=TOGETHER
                )  # fmt: skip
                prompts = (Prompt(self.processor.prompt([picture.open()], self.prompt)) for picture in self.pictures)
                captions = writer.write(prompts)
        finally:
            model.train(training)
        rows = [
            {
                "v": VERSION, "step": step, "image": picture.name, "prompt": self.prompt, "model": "tuned", "text": caption.text,
                "seconds": round(caption.seconds, 3), "done": True,
            }
            for picture, caption in zip(self.pictures, captions, strict=True)
        ]  # fmt: skip
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, lines)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WorkError(f"{self.file}: cannot be written ({error.strerror}); mend that and resume the run") from error
        return [caption.text for caption in captions]
