"""The demo's workspace: drawn pictures as a LLaVA-style dataset, held-out pictures with the truth, and the base model."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core.demo import packed_weights
from qwen3vl_core.demo.captions import LLAVA_PROMPTS, PROMPT
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.scenes import Scene
from qwen3vl_core.files import atomic_folder, write_text
from qwen3vl_core.progress import Progress

BASE = Path(__file__).with_name("base_hf")
TRAIN_SCENES, HELD_OUT_SCENES = 512, 64
# far from the seeds that the base model was trained on, and from each other
TRAIN_SEED, HELD_OUT_SEED, PROMPT_SEED = 900_000_000, 5_000_000_000, 7

# found by search: the fewest steps that change the style but keep the content (accuracy over 64 held-out scenes)
FINETUNE = {
    "precision": "fp32", "micro_batch_size": 8, "global_batch_size": 8, "seq_length": 256, "train_iters": 200, "lr": 5e-4, "min_lr": 2e-5,
    "lr_warmup_iters": 10, "name": "demo",
}  # fmt: skip


@dataclass(frozen=True)
class Workspace:
    """Paths of the demo's files; `make` creates the pictures and the base model."""

    root: Path

    @property
    def base(self) -> Path:
        """The base model, a Hugging Face folder."""
        return self.root / "base-hf"

    @property
    def train_json(self) -> Path:
        return self.root / "train" / "captions.json"

    @property
    def held_out(self) -> Path:
        """Folder of pictures whose combinations of kind, colour, place and time are not in the training data."""
        return self.root / "held-out"

    @property
    def truth_file(self) -> Path:
        return self.held_out / "truth.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def base_megatron(self) -> Path:
        return self.root / "base-mcore"

    @property
    def tuned(self) -> Path:
        """The finetuned model, converted back."""
        return self.root / "tuned-hf"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def description(self) -> Path:
        """`workspace.json`: the paths, for the console's forms."""
        return self.root / "workspace.json"

    def make(self) -> None:
        """Draw the pictures and copy the base model, unless they exist."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.base.exists():
            with atomic_folder(self.base, what="demo") as folder:
                shutil.copytree(BASE, folder, dirs_exist_ok=True)
                packed_weights.unpack(folder)
        if not (self.train_json.exists() and self.truth_file.exists()):
            with Progress("draw", TRAIN_SCENES + HELD_OUT_SCENES, "pictures") as progress:
                self._draw_training(progress)
                self._draw_held_out(progress)
        write_text(self.description, json.dumps(self.describe(), indent=2) + "\n")

    def describe(self) -> dict[str, Any]:
        """Paths and options that the console fills its forms with."""
        return {
            "base": str(self.base), "train_json": str(self.train_json), "data": str(self.data), "base_mcore": str(self.base_megatron),
            "tuned_hf": str(self.tuned), "heldout_images": str(self.held_out), "references": str(self.truth_file), "prompt": PROMPT,
            "finetune": FINETUNE | {"load": str(self.base_megatron), "train_data": str(self.data)},
        }  # fmt: skip

    def _draw_training(self, progress: Progress) -> None:
        prompts = random.Random(PROMPT_SEED)
        records = []
        with atomic_folder(self.train_json.parent, what="demo") as folder:
            (folder / "pictures").mkdir()
            for number in range(TRAIN_SCENES):
                _, picture, _, short = example(TRAIN_SEED + number, "train")
                name = f"pictures/{number:05d}.png"
                picture.save(folder / name)
                question = f"<image>\n{prompts.choice(LLAVA_PROMPTS)}"
                conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": short}]
                records.append({"id": f"scene-{number:05d}", "image": name, "conversations": conversation})
                progress.update()
            (folder / self.train_json.name).write_text(json.dumps(records, indent=1) + "\n")

    def _draw_held_out(self, progress: Progress) -> None:
        truth = {}
        with atomic_folder(self.held_out, what="demo") as folder:
            for number in range(HELD_OUT_SCENES):
                scene, picture, _, short = example(HELD_OUT_SEED + number, "heldout")
                name = f"{number:05d}.png"
                picture.save(folder / name)
                truth[name] = {"scene": asdict(scene), "caption": short}
                progress.update()
            (folder / self.truth_file.name).write_text(json.dumps(truth, indent=1) + "\n")

    def scenes(self) -> dict[str, Scene]:
        """Name of each held-out picture -> what is drawn on it."""
        return {name: Scene(**entry["scene"]) for name, entry in json.loads(self.truth_file.read_text()).items()}
