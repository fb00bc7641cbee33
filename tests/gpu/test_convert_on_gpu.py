"""`qwen3vl convert --device cuda` writes the same bytes as on the CPU."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3vl_core.cli import main
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_cast_on_the_gpu_equal_those_cast_on_the_cpu(tmp_path, dtype):
    source = tiny.save(tiny.hf_model(), tmp_path / "hf")
    values = load_file(source / "model.safetensors")
    # halves of the last place, and numbers that are subnormal in fp16: where rounding could differ
    odd = values["model.language_model.embed_tokens.weight"]
    odd.view(-1)[:4096] = (torch.arange(4096, dtype=torch.int32) * 4099 + (100 << 23)).view(torch.float32)
    save_file(values, source / "model.safetensors", metadata={"format": "pt"})
    for device in ("cpu", "cuda"):
        words = ["--dtype", dtype, "--device", device, "--verify", "--report", str(tmp_path / f"{device}.json")]
        assert main(["convert", str(source), str(tmp_path / device), *words]) == 0
        assert json.loads((tmp_path / f"{device}.json").read_text())["verified"] > 0
        assert main(["convert", str(tmp_path / device), str(tmp_path / f"{device} back")]) == 0
    ours, theirs = (load_file(tmp_path / f"{device} back" / "model.safetensors") for device in ("cuda", "cpu"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
