"""Options of prepare, convert and compare, and the table of all commands that do work."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.options.declare import option
from qwen3vl_core.options.finetune import FinetuneOptions


@dataclass
class PrepareOptions:
    """Pictures and conversations to shards that training reads."""

    source: str = option(help="LLaVA-style JSON list: {id, image, conversations}", group="Data", positional=True, path="file")
    to: str = option(help="Folder that gets the shards and their index", group="Data", path="folder")
    images: str | None = option(None, help="Folder that the pictures' names are relative to; else the JSON's own", group="Data", path="folder")
    split: str = option("9,1,0", help="Shares of training, validation and test", group="Data")
    check: str = option("header", help="How far each picture is checked", group="Data", choices=("none", "header", "decode"))
    shard_size: int = option(500_000_000, help="Largest shard", unit="bytes", group="Data", minimum=10_000)
    skip_missing: bool = option(False, help="Leave out samples whose picture is missing or broken, and count them", group="Data")
    overwrite: bool = option(False, help="Replace a dataset that is already there", group="Data")


@dataclass
class ConvertOptions:
    """Hugging Face safetensors to Megatron torch_dist, or back; the direction is found from SOURCE."""

    source: str = option(help="Model or checkpoint to read", group="Checkpoint", positional=True, path="model")
    target: str = option(help="Folder to write", group="Checkpoint", positional=True, path="folder")
    dtype: str = option("keep", help="Precision to write", group="Checkpoint", choices=("keep", "bf16", "fp16", "fp32"))
    layout: str = option("bridge", help="Names of the merger's tensors in the Megatron checkpoint", group="Checkpoint", choices=("bridge", "pai"))
    size: str | None = option(None, help="Refuse SOURCE unless it is this size", group="Checkpoint", choices=("2B", "4B", "8B", "32B", "A3B", "A22B", "tiny"))
    hf: str | None = option(None, help="HF folder that gives config and tokenizer where SOURCE has none", group="Checkpoint", path="model")
    overwrite: bool = option(False, help="Replace a checkpoint that is already there", group="Checkpoint")
    verify: bool = option(False, help="Read the target again and compare every tensor bitwise", group="Checkpoint")


@dataclass
class CompareOptions:
    """Captions of two models side by side."""

    base: str = option(help="First model: HF folder or torch_dist checkpoint", group="Models", path="model")
    tuned: str = option(help="Second model: HF folder or torch_dist checkpoint", group="Models", path="model")
    images: list[str] = option(help="Pictures, or folders of pictures", group="Pictures", path="file")
    prompt: str = option("Describe this image.", help="What the models are asked", group="Pictures")
    limit: int = option(0, help="Use the first N pictures only; 0: all", group="Pictures", minimum=0)
    max_new_tokens: int = option(256, help="Longest caption", unit="tokens", group="Sampling", minimum=1, maximum=32768)
    temperature: float = option(0.0, help="Sharpness of the sampling; 0 is greedy", group="Sampling", minimum=0.0, maximum=10.0)
    top_p: float = option(1.0, help="Sample from the likeliest tokens that hold this share", group="Sampling", minimum=0.01, maximum=1.0)
    top_k: int = option(0, help="Sample from the N likeliest tokens; 0: all", group="Sampling", minimum=0)
    seed: int = option(0, help="Seed of the sampling", group="Sampling", minimum=0)
    batch_size: int = option(16, help="Captions written at once", group="Sampling", minimum=1)
    precision: str = option("auto", help="Precision of the models; auto: fp32 on a CPU, bf16 on a GPU", group="Models", choices=("auto", "fp32", "bf16"))
    show: int = option(8, help="Print the captions of the first N pictures; 0: of all", group="Report", minimum=0)
    json: str | None = option(None, help="Write the captions as JSON", group="Report", path="file")
    html: str | None = option(None, help="Write one self-contained page with pictures and differences", group="Report", path="file")


COMMANDS: dict[str, type] = {
    "prepare": PrepareOptions,
    "convert": ConvertOptions,
    "finetune": FinetuneOptions,
    "compare": CompareOptions,
}
