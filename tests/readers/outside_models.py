"""Models read from outside: checkpoints, adapters and processors, as small sound files, and what reads them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.shared import DEMO

# checkpoints, and the dataset that the state of a run's loader belongs to


def _tiny(folder: Path, **shape: Any) -> Path:
    from tests import tiny

    tiny.save(tiny.hf_model(layers=2, vision_layers=2, deepstack=(0,), **shape).bfloat16(), folder)
    return folder


def make_hf(folder: Path) -> None:
    _tiny(folder / "model")


def make_sharded(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = _tiny(folder / "model")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, model / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def make_dataset(folder: Path) -> None:
    from qwen3vl_core.data.prepare import command as prepare
    from qwen3vl_core.options import PrepareOptions
    from tests.data import samples

    source = samples.write_source(folder / "source", 6)
    for name in ("one", "two"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare.run(PrepareOptions(source=str(source), to=str(folder / name), split="2,1,0", workers=1))
    shutil.rmtree(folder / "source")
    (folder / "blend.yaml").write_text(
        "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
        "    - {weight: 3, path: one}\n    - {weight: 1, path: two, subset: {range: [0%, 50%]}}\n  val:\n    path: one\n"
        "  test:\n    blend_epochized:\n    - {repetitions: 2, path: one, split_part: train}\n"
        "    - {repetitions: 1, path: two, split_part: val}\n"
    )


def make_checkpoint(folder: Path) -> None:
    """As a run of an older version writes it: without digests, which would tell of any damage before it is read."""
    from qwen3vl_core.checkpoint.torch_dist import load_plain
    from tests.checkpoint import conversions

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        conversions.run(_tiny(folder / "hf"), folder / "checkpoints")
    shutil.rmtree(folder / "hf")
    data = folder / "checkpoints" / "iter_0000003"
    os.rename(folder / "checkpoints" / "release", data)
    (data / "digests.json").unlink(missing_ok=True)
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3\n")
    common = load_plain(io.BytesIO((data / "common.pt").read_bytes()))
    group = {"lr": 1e-5, "step": 3, "betas": (0.9, 0.95), "params": [0, 1]}
    common |= {
        "optimizer": {"optimizer": {"param_groups": [group], "state": {"common_step": torch.tensor(3)}}, "grad_scaler": {"scale": 1.0}},
        "opt_param_scheduler": {"max_lr": 1e-5, "num_steps": 24, "lr_decay_style": "cosine"},
        "args": argparse.Namespace(tensor_model_parallel_size=1, num_experts=None), "iteration": 3,
    }  # fmt: skip
    torch.save(common, data / "common.pt")
    make_dataset(folder / "datasets")
    loader = _loader(folder)
    next(loader)
    guard = {"losses": [2.5, 2.25, 2.0], "bad": 0, "content": True}
    (data / "extra.json").write_text(json.dumps({"data": loader.state_dict(), "guard": guard}))


def _loader(folder: Path) -> Any:
    from qwen3vl_core.data.loader import build_loader
    from qwen3vl_core.data.processor import ChatProcessor

    processor = ChatProcessor.from_pretrained(DEMO)
    return build_loader(folder / "datasets" / "one", "train", processor, micro_batch_size=1, global_batch_size=2, seq_length=2048)


def _every_tensor(source: Any) -> None:
    """Open, check and read all of it, as convert does before it writes."""
    source.check()
    for region in source.regions():
        for name in region.hf:
            if source.hf is not None and name in source.hf.entries:
                source.hf.read(name)
    if source.megatron is not None:
        for key in source.megatron.tensors:
            source.megatron.read(key)


def read_model(folder: Path) -> None:
    from qwen3vl_core.checkpoint.inspect import inspect
    from qwen3vl_core.checkpoint.source import open_source

    inspect(folder / "model").rows()
    _every_tensor(open_source(folder / "model"))


_LOADERS: dict[Path, Any] = {}


def read_checkpoint(folder: Path) -> None:
    """As inspect, convert and a resume read it."""
    read_state(folder, tensors=True)


def read_state(folder: Path, *, tensors: bool = False) -> None:
    """The same without the tensors, which other files than these cannot change."""
    from qwen3vl_core.checkpoint import retention
    from qwen3vl_core.checkpoint.inspect import inspect
    from qwen3vl_core.checkpoint.saved_arguments import read_arguments
    from qwen3vl_core.checkpoint.source import open_source
    from qwen3vl_core.errors import RequestError
    from qwen3vl_core.training.guard import Guard

    root = folder / "checkpoints"
    inspect(root).rows()
    failure: RequestError | None = None
    try:
        read_arguments(root / "iter_0000003")
    except RequestError as error:
        failure = error
    try:
        checkpoint, lines = retention.newest(root, ("data",))
        assert all("\n" not in line for line in lines)
        if checkpoint is not None:
            extra = json.loads((checkpoint.data / "extra.json").read_text())
            if folder not in _LOADERS:
                _LOADERS[folder] = _loader(folder)
            _LOADERS[folder].load_state_dict(extra["data"])
            if "guard" in extra:
                Guard(10.0).load_state_dict(extra["guard"])
    except RequestError as error:
        failure = error
    retention.is_good(root / "iter_0000003")
    source = open_source(root)
    if tensors:
        _every_tensor(source)
    else:
        source.check()
    if failure is not None:
        raise failure


def read_config(folder: Path) -> None:
    """As inspect, plan and the start of a finetune read it."""
    from qwen3vl_core.layout.verdict import judge
    from qwen3vl_core.options import FinetuneOptions
    from qwen3vl_core.options.planning import PlanOptions

    for problem in judge(FinetuneOptions(load=str(folder / "model"), train_data=""), PlanOptions(), disk=False).problems:
        assert "\n" not in str(problem)
    read_model(folder)


def make_adapter(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = _tiny(folder / "base")
    weights, made = load_file(base / "model.safetensors"), {}
    for layer in range(2):
        for name in ("q_proj", "o_proj"):
            out, into = weights[f"model.language_model.layers.{layer}.self_attn.{name}.weight"].shape
            prefix = f"base_model.model.model.language_model.layers.{layer}.self_attn.{name}"
            made |= {f"{prefix}.lora_A.weight": torch.zeros(4, into), f"{prefix}.lora_B.weight": torch.zeros(out, 4)}
    (folder / "model").mkdir()
    save_file(made, folder / "model" / "adapter_model.safetensors")
    (folder / "model" / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "use_rslora": False, "rank_pattern": {},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 3}, "modules_to_save": None, "target_parameters": None, "use_dora": False,
        "base_model_name_or_path": "../base", "fan_in_fan_out": False, "bias": "none", "task_type": None,
    }))  # fmt: skip


def read_adapter(folder: Path) -> None:
    from qwen3vl_core.checkpoint.inspect import inspect
    from qwen3vl_core.checkpoint.lora_merge import MergedSource
    from qwen3vl_core.checkpoint.source import open_source, side_folder

    inspect(folder / "model").rows()
    side_folder(folder / "model")
    source = open_source(folder / "model")
    source.check()
    assert isinstance(source, MergedSource)
    for region in source.regions():
        for number in range(len(region.hf)):
            source.factors(region, number)


# the processor


def make_processor(folder: Path) -> None:
    for file in DEMO.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    (folder / "tokenizer_config.json").write_text(json.dumps(json.loads((folder / "tokenizer_config.json").read_text()), indent=1))


_PICTURE: list[bytes] = []


def read_processor(folder: Path) -> None:
    """As the loader and the captions of a run use it."""
    from qwen3vl_core.data.errors import DataError
    from qwen3vl_core.data.processor import ChatProcessor
    from tests.data import samples

    if not _PICTURE:
        _PICTURE.append(samples.encoded(samples.picture(0, 48, 32)))
    processor = ChatProcessor.from_pretrained(folder)
    content = [{"type": "image", "part": "img0"}, {"type": "text", "text": "Describe this image."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A dog."}]
    with contextlib.suppress(DataError):
        processor.encode(messages, {"img0": _PICTURE[0]}, key="0", limit=2048)
    processor.prompt([samples.picture(0, 48, 32)], "Describe this image.")
