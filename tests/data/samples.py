"""Small pictures, LLaVA-style JSON and datasets made from them, and Hugging Face's processor to compare with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from PIL import Image

import qwen3vl_core
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.data.tar import TarWriter
from qwen3vl_core.options import PrepareOptions

CHECKPOINT = Path(qwen3vl_core.__file__).parent / "demo" / "base_hf"
QUESTION = "Describe this image."


def many(examples: int = 100) -> settings:
    """Settings of a property test: no deadline, since the first example pays for imports and machines are shared."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(seed: int = 0, width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """Coarse blots with fine noise: resizing changes every value."""
    random = np.random.RandomState(seed)
    coarse = Image.fromarray(random.randint(0, 255, (8, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, dtype=np.int16) + random.randint(-20, 20, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def record(number: int, image: Any = None, answer: str | None = None, **more: Any) -> dict[str, Any]:
    """One LLaVA record; `image` is a name, a list of names or None."""
    names = [] if image is None else image if isinstance(image, list) else [image]
    made: dict[str, Any] = {"id": f"scene-{number}"} | ({} if image is None else {"image": image})
    made["conversations"] = [
        {"from": "human", "value": "<image>\n" * len(names) + QUESTION},
        {"from": "gpt", "value": answer or f"Picture number {number} has a dog on the beach."},
    ]
    return made | more


def write_source(folder: Path, count: int, extra: list[dict[str, Any]] | None = None, text_only: int = 0) -> Path:
    """`folder`/captions.json with `count` records of one picture each, then `text_only` without, then `extra` ones."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        name = f"pictures/{number}.{('jpg', 'png')[number % 2]}"
        (folder / name).write_bytes(encoded(picture(number, 64 + 16 * (number % 4), 64), ("JPEG", "PNG")[number % 2]))
        records.append(record(number, name))
    records += [record(count + i) for i in range(text_only)]
    source = folder / "captions.json"
    source.write_text(json.dumps(records + (extra or [])))
    return source


def dataset(folder: Path, count: int, split: str = "1,0,0", extra: list[dict[str, Any]] | None = None, **options: Any) -> Path:
    """A prepared dataset of `count` samples with a picture and a few without."""
    source = write_source(folder, count, extra, text_only=options.pop("text_only", 2))
    target = folder / "dataset"
    prepare.run(PrepareOptions(source=str(source), to=str(target), split=split, **options))
    return target


def raw_dataset(folder: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """A dataset of (key, {part: content}) as they are, good or bad, indexed by Energon."""
    folder.mkdir(parents=True)
    with TarWriter(folder / "train-00000.tar") as tar:
        for key, parts in samples:
            for part, content in parts.items():
                tar.add(f"{key}.{part}", content)
    energon_index(folder, ["train-00000.tar"])
    return folder


def energon_index(folder: Path, shards: list[str]) -> None:
    """The index as Energon itself makes it from the shards, which begin with their splits' names."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    from qwen3vl_core.data import energon

    patterns = [(split, f"{split}-[0-9]+[.]tar") for split in energon.SPLITS]
    BaseWebdatasetFactory.prepare_dataset(
        EPath(folder.absolute()), shards, split_parts_patterns=patterns, tar_index_only=False, shuffle_seed=None, workers=1
    )
    (folder / energon.FOLDER / "dataset.yaml").write_text(energon.DATASET_YAML)


def conversation(answer: str = "A dog on the beach.", pictures: int = 1) -> bytes:
    """The JSON of one stored sample."""
    content: list[dict[str, str]] = [{"type": "image", "part": f"img{i}.jpg"} for i in range(pictures)]
    content.append({"type": "text", "text": QUESTION})
    answers = [{"type": "text", "text": answer}]
    return json.dumps({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answers}]}).encode()


def hugging_face_processor(folder: Path = CHECKPOINT):
    """`Qwen3VLProcessor` with the Pillow backend and without the video processor, which needs torchvision."""
    from transformers import AutoTokenizer, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideo(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, name, argument):
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    return WithoutVideo(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        video_processor=None,
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
