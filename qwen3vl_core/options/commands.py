"""Options of download, prepare, inspect, convert and compare, and the table of all commands that do work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3vl_core.options import media
from qwen3vl_core.options.declare import option
from qwen3vl_core.options.finetune import FinetuneOptions
from qwen3vl_core.problems import Problem
from qwen3vl_core.sizes import SIZES


@dataclass
class DownloadOptions:
    """Download a model or a dataset from a hub with the hub's own client; the same command resumes an interrupted download."""

    kind: str = option(help="What to download: model or dataset", group="Hub", positional=True, choices=("model", "dataset"))
    name: str = option(help="Name on the hub, OWNER/NAME", group="Hub", positional=True)
    from_: str = option(
        "auto",
        help="The hub; auto: Hugging Face, or ModelScope where that cannot be reached; HF_ENDPOINT and MODELSCOPE_DOMAIN set another address",
        group="Hub",
        choices=("auto", "modelscope", "huggingface"),
    )
    to: str = option(help="Folder to write the files to", group="Files", path="folder")
    revision: str | None = option(None, help="Branch, tag or commit; default: the hub's main branch", group="Hub")
    include: list[str] = option([], help="Only files whose names match one of these patterns, such as '*.json'", group="Files")
    exclude: list[str] = option([], help="Skip files whose names match one of these patterns", group="Files")


@dataclass
class PrepareOptions:
    """Convert pictures and conversations to shards that training reads."""

    source: str = option(
        help="Records: JSON, JSON Lines, CSV, parquet, Arrow, WebDataset shards, or a folder of them",
        group="Data",
        positional=True,
        path="file",
    )
    to: str = option(help="Folder to write the shards and their index to", group="Data", path="folder")
    images: str | None = option(
        None, help="Folder that pictures' and videos' names are relative to; else the JSON's own", group="Data", path="folder"
    )
    columns: str | None = option(None, help="The source's own names of what is read: image=photo,caption=title", group="Data")
    dataset: str | None = option(None, help="Which dataset of a dataset_info.json (LLaMA-Factory's)", group="Data")
    split: str = option("9,1,0", help="Shares of training, validation and test", group="Data")
    check: str = option(
        "header", help="How thoroughly each picture and video is checked", group="Data", choices=("none", "header", "decode")
    )
    shard_size: int = option(500_000_000, help="Largest shard", unit="bytes", group="Data", minimum=10_000)
    skip_missing: bool = option(
        False, help="Leave out records that cannot be used (picture missing or broken, rules broken), and count them", group="Data"
    )
    overwrite: bool = option(False, help="Replace an existing dataset", group="Data")
    json: bool = option(False, help="Print the report as JSON, of a detached run its id and folder", group="Report")
    model: str | None = option(None, help="Count tokens as this model sees them, for the report", group="Report", path="model")
    min_pixels: int | None = media.min_pixels("Report", "With --model: ")
    max_pixels: int | None = media.max_pixels("Report", "With --model: ")
    video_fps: float | None = media.video_fps("Report", "With --model: ")
    video_max_frames: int | None = media.video_max_frames("Report", "With --model: ")
    video_max_pixels: int | None = media.video_max_pixels("Report", "With --model: ")
    max_visual_tokens: int | None = media.max_visual_tokens("Report", "With --model: ")
    workers: int = option(0, help="Processes; 0: one per core. The result does not depend on it", group="Data", minimum=0, maximum=256)


@dataclass
class ConvertOptions:
    """Convert Hugging Face safetensors to Megatron torch_dist, or back; SOURCE determines the direction."""

    source: str = option(help="Model or checkpoint to read", group="Checkpoint", positional=True, path="model")
    target: str = option(help="Folder to write", group="Checkpoint", positional=True, path="folder")
    dtype: str = option("keep", help="Precision to write", group="Checkpoint", choices=("keep", "bf16", "fp16", "fp32"))
    device: str = option("cpu", help="Device that casts to another precision; the result is bitwise the same, and cpu is seldom slower", group="Checkpoint",
                         choices=("cpu", "cuda"))  # fmt: skip
    layout: str = option(
        "bridge", help="Names of the merger's tensors in the Megatron checkpoint", group="Checkpoint", choices=("bridge", "pai")
    )
    size: str | None = option(None, help="Refuse SOURCE unless it is this size", group="Checkpoint", choices=tuple(SIZES))
    hf: str | None = option(None, help="HF folder with config and tokenizer, if SOURCE has none", group="Checkpoint", path="model")
    base: str | None = option(None, help="Base model of a LoRA run or a PEFT adapter, if it was moved", group="Checkpoint", path="model")
    adapter: bool = option(
        False, help="Write the adapters of a LoRA run as a PEFT adapter, instead of the model with them merged in", group="Checkpoint"
    )
    overwrite: bool = option(False, help="Replace an existing checkpoint", group="Checkpoint")
    allow_nan: bool = option(False, help="Convert weights that contain NaN or infinity, too, and count them", group="Checkpoint")
    verify: bool = option(False, help="Read the target again and compare every tensor bitwise, and the logits of one picture where memory allows",
                          group="Checkpoint")  # fmt: skip
    report: str | None = option(None, help="Write a report as JSON", group="Report", path="file")


@dataclass
class InspectOptions:
    """Show what a path is and what it contains: a Hugging Face model, a Megatron checkpoint, a run, a dataset."""

    path: str = option(help="Folder to inspect, or a file of data: JSON, JSON Lines, a shard", group="Path", positional=True, path="folder")
    base: str | None = option(None, help="Base model of a LoRA run or a PEFT adapter, if it was moved", group="Path", path="model")
    json: str | None = option(None, help="Write the report as JSON", group="Report", path="file")
    model: str | None = option(None, help="Data: count and mark tokens as this model sees them", group="Data", path="model")
    seq_length: int = option(2048, help="Data: longer samples are counted as left out", unit="tokens", group="Data", minimum=16)
    split: str | None = option(None, help="Data: inspect this split only", group="Data", choices=("train", "val", "test"))
    min_pixels: int | None = media.min_pixels("Data", "Data: ")
    max_pixels: int | None = media.max_pixels("Data", "Data: ")
    video_fps: float | None = media.video_fps("Data", "Data: ")
    video_max_frames: int | None = media.video_max_frames("Data", "Data: ")
    video_max_pixels: int | None = media.video_max_pixels("Data", "Data: ")
    max_visual_tokens: int | None = media.max_visual_tokens("Data", "Data: ")
    images: str | None = option(
        None, help="Data: folder that the media's names in a JSON are relative to; else its own", group="Data", path="folder"
    )
    columns: str | None = option(None, help="Data: the source's own names of what is read: image=photo,caption=title", group="Data")
    show: int = option(3, help="Data: show N samples, evenly spread", group="Data", minimum=0, maximum=1000)
    limit: int = option(20_000, help="Data: inspect at most N samples, evenly spread; 0: all", group="Data", minimum=0)
    html: str | None = option(None, help="Data: write one self-contained page with the samples shown", group="Report", path="file")
    losses: str | None = option(
        None,
        help="Data: write the loss of each sample under --model, JSON Lines, the highest first, and show those samples",
        group="Report",
        path="file",
    )


@dataclass
class CompareOptions:
    """Captions of two models side by side, or of one model and several checkpoints."""

    base: str = option(help="First model: HF folder or torch_dist checkpoint", group="Models", path="model")
    tuned: list[str] = option(
        help="Second model: HF folder, torch_dist checkpoint, its iter_… folder, a run's folder, or adapters, whose model is --base if it was moved; several are compared side by side",
        group="Models",
        path="model",
    )
    precision: str = option(
        "auto", help="Precision of the models; auto: fp32 on a CPU, bf16 on a GPU", group="Models", choices=("auto", "fp32", "bf16")
    )
    prompt: str = option("Describe this image.", help="Prompt for the models", group="Pictures")
    images: list[str] = option([], help="Pictures, or folders of pictures", group="Pictures", path="pictures")
    data: str | None = option(
        None,
        help="Instead: the pictures of a prepared dataset, a shard or LLaVA JSON; their answers are the references",
        group="Pictures",
        path="dataset",
    )
    split: str = option("val", help="Split of the dataset", group="Pictures", choices=("train", "val", "test"))
    own_questions: bool = option(False, help="Use the dataset's own questions instead of the prompt", group="Pictures")
    references: str | None = option(
        None,
        help="Reference captions by picture: JSON or JSON Lines, LLaVA or COCO; gives ROUGE-L and CIDEr",
        group="Pictures",
        path="captions",
    )
    limit: int = option(0, help="Use the first N pictures only; 0: all", group="Pictures", minimum=0)
    min_pixels: int | None = media.min_pixels("Pictures")
    max_pixels: int | None = media.max_pixels("Pictures")
    temperature: float = option(0.0, help="Sampling temperature; 0: greedy", group="Sampling", minimum=0.0, maximum=10.0)
    top_p: float = option(
        1.0, help="Sample from the most likely tokens with this total probability", group="Sampling", minimum=0.01, maximum=1.0
    )
    top_k: int = option(0, help="Sample from the N most likely tokens; 0: all", group="Sampling", minimum=0)
    seed: int = option(0, help="Seed of the sampling", group="Sampling", minimum=0)
    max_new_tokens: int = option(256, help="Maximum length of a caption", unit="tokens", group="Sampling", minimum=1, maximum=32768)
    batch_size: int = option(16, help="Captions written at once", group="Sampling", minimum=1)
    show: int = option(8, help="Print the captions of the first N pictures; 0: of all", group="Report", minimum=0)
    json: str | None = option(
        None, help="Write the captions as JSON; - writes them to standard output instead of the table", group="Report", path="file"
    )
    html: str | None = option(None, help="Write one self-contained page with pictures and differences", group="Report", path="file")

    def __post_init__(self) -> None:
        tuned: object = self.tuned  # a caller may give one path
        if isinstance(tuned, str):
            self.tuned = [tuned]

    def problems(self) -> Iterator[Problem]:
        """Broken rules between options: the pictures come from one place."""
        if self.data and self.images:
            yield Problem("data-beside-images", "data", self.data, {"image": self.images[0]}, ({"data": None}, {"images": None}))
        if not self.data and not self.images:
            yield Problem("no-pictures", "images")
        if self.own_questions and not self.data:
            yield Problem("questions-without-data", "own_questions", True, remedies=({"own_questions": None},))
        if self.references and self.data:
            yield Problem("references-beside-data", "references", self.references, remedies=({"references": None},))


COMMANDS: dict[str, type] = {
    "download": DownloadOptions,
    "prepare": PrepareOptions,
    "inspect": InspectOptions,
    "convert": ConvertOptions,
    "finetune": FinetuneOptions,
    "compare": CompareOptions,
}
