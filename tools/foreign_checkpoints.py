"""Writes a small Qwen3-VL checkpoint with whatever Megatron-Core is on the path, as other programs do.

    PYTHONPATH=another/megatron python tools/foreign_checkpoints.py HF_FOLDER TARGET [--vision swift] [--keys single]

The language tower is that core's own `GPTModel`, filled from the Hugging Face folder and saved by its own `sharded_state_dict` and
`dist_checkpointing.save`; the vision tower is saved under the names of one of the programs. It imports nothing of this package: the
names and the order of the rows are written down here a second time, so that a wrong name map cannot agree with itself.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import inspect
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from safetensors import safe_open

if not hasattr(numpy, "product"):
    numpy.product = numpy.prod  # type: ignore[attr-defined]  # cores up to 0.13 use its name of numpy 1

LANGUAGE, VISION = "model.language_model.", "model.visual."
# Hugging Face's vision names -> Megatron-Bridge's since 0.4
BRIDGE = (
    (r"blocks\.(\d+)\.norm1\.", r"decoder.layers.\1.self_attention.linear_qkv.layer_norm_"),
    (r"blocks\.(\d+)\.norm2\.", r"decoder.layers.\1.mlp.linear_fc1.layer_norm_"),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"decoder.layers.\1.self_attention.linear_qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"decoder.layers.\1.self_attention.linear_proj."),
    (r"blocks\.(\d+)\.mlp\.", r"decoder.layers.\1.mlp."),
    (r"^merger\.norm\.", "merger.patch_norm."),
    (r"^deepstack_merger_list\.(\d+)\.norm\.", r"decoder.deepstack_merger_list.\1.patch_norm."),
    (r"^deepstack_merger_list\.", "decoder.deepstack_merger_list."),
)
# Bridge's -> Pai's
PAI = (
    (r"^merger\.patch_norm\.", "decoder.final_layernorm."),
    (r"^merger\.", "projection.encoder."),
    (r"^decoder\.deepstack_merger_list\.(\d+)\.patch_norm\.", r"decoder.deepstack_norm_list.\1."),
    (r"^decoder\.deepstack_merger_list\.(\d+)\.linear", r"decoder.deepstack_merger_list.\1.encoder.linear"),
)


def hf_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def expert_count(text: dict[str, Any]) -> int:
    return text.get("num_experts") or text.get("num_local_experts") or 0


def language_tower(text: dict[str, Any], tied: bool, listed: bool) -> Any:
    """This core's GPTModel of plain layers."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    experts = expert_count(text)
    kind: dict[str, Any] = {}
    if experts:
        kind = dict(
            num_moe_experts=experts, moe_router_topk=text["num_experts_per_tok"], moe_ffn_hidden_size=text["moe_intermediate_size"],
            moe_token_dispatcher_type="allgather", moe_layer_freq=[1] * text["num_hidden_layers"] if listed else 1,
        )  # fmt: skip
    config = TransformerConfig(
        num_layers=text["num_hidden_layers"], hidden_size=text["hidden_size"], num_attention_heads=text["num_attention_heads"],
        num_query_groups=text["num_key_value_heads"], kv_channels=text["head_dim"], ffn_hidden_size=text["intermediate_size"],
        normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False,
        qk_layernorm=True, use_cpu_initialization=True, bias_activation_fusion=False, params_dtype=torch.float32, **kind,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(experts or None, False, True, normalization="RMSNorm")
    return GPTModel(
        config, spec, text["vocab_size"], 64, position_embedding_type="rope", share_embeddings_and_output_weights=tied,
    )  # fmt: skip


def fill(model: Any, hf: dict[str, torch.Tensor], text: dict[str, Any]) -> None:
    """The language tower's parameters, from Hugging Face's."""
    values = dict(model.named_parameters())
    left = set(values)

    def put(name: str, value: torch.Tensor) -> None:
        assert values[name].shape == value.shape, (name, values[name].shape, value.shape)
        values[name].data = value.clone()
        left.discard(name)

    put("embedding.word_embeddings.weight", hf[LANGUAGE + "embed_tokens.weight"])
    put("decoder.final_layernorm.weight", hf[LANGUAGE + "norm.weight"])
    if "output_layer.weight" in left:
        put("output_layer.weight", hf["lm_head.weight"])
    groups = text["num_key_value_heads"]
    for i in range(text["num_hidden_layers"]):
        theirs, ours = f"{LANGUAGE}layers.{i}.", f"decoder.layers.{i}."
        q, k, v = (hf[f"{theirs}self_attn.{p}_proj.weight"] for p in "qkv")
        together = torch.cat([t.view(groups, -1, t.shape[-1]) for t in (q, k, v)], dim=1)
        put(ours + "self_attention.linear_qkv.weight", together.reshape(-1, q.shape[-1]))
        put(ours + "self_attention.linear_proj.weight", hf[theirs + "self_attn.o_proj.weight"])
        put(ours + "self_attention.q_layernorm.weight", hf[theirs + "self_attn.q_norm.weight"])
        put(ours + "self_attention.k_layernorm.weight", hf[theirs + "self_attn.k_norm.weight"])
        put(ours + "input_layernorm.weight", hf[theirs + "input_layernorm.weight"])
        put(ours + "pre_mlp_layernorm.weight", hf[theirs + "post_attention_layernorm.weight"])
        if not expert_count(text):
            gate, up = (hf[f"{theirs}mlp.{p}_proj.weight"] for p in ("gate", "up"))
            put(ours + "mlp.linear_fc1.weight", torch.cat([gate, up]))
            put(ours + "mlp.linear_fc2.weight", hf[theirs + "mlp.down_proj.weight"])
            continue
        put(ours + "mlp.router.weight", hf[theirs + "mlp.gate.weight"])
        gate_up, down = hf[theirs + "mlp.experts.gate_up_proj"], hf[theirs + "mlp.experts.down_proj"]
        for e in range(expert_count(text)):
            straight = gate_up.shape[1] == 2 * text["moe_intermediate_size"]
            put(f"{ours}mlp.experts.local_experts.{e}.linear_fc1.weight", gate_up[e] if straight else gate_up[e].t().contiguous())
            put(f"{ours}mlp.experts.local_experts.{e}.linear_fc2.weight", down[e] if straight else down[e].t().contiguous())
    assert not left, left


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, by in rules:
        name = re.sub(pattern, by, name)
    return name


def by_head(value: torch.Tensor, heads: int) -> torch.Tensor:
    """All queries, all keys, all values -> head by head."""
    return value.view(3, heads, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape).contiguous()


def vision_tower(hf: dict[str, torch.Tensor], vision: dict[str, Any], names: str, stacked: bool) -> dict[str, Any]:
    from megatron.core.dist_checkpointing import ShardedTensor

    state: dict[str, Any] = {}
    for name, value in hf.items():
        if not name.startswith(VISION):
            continue
        name = name.removeprefix(VISION)
        if names in ("hf", "swift"):
            key = ("vision_model." if names == "hf" else "visual.visual.") + name
            state[key] = ShardedTensor.from_rank_offsets(key, value)
            continue
        if ".attn.qkv." in name:
            value = by_head(value, vision["num_heads"])
        key = renamed(name, BRIDGE)
        key = "vision_model." + (renamed(key, PAI) if names == "pai" else key)
        layer = re.search(r"decoder\.(layers|deepstack_merger_list)\.(\d+)\.", key)
        if layer is None or not stacked or (names == "pai" and layer[1] != "layers"):
            state[key] = ShardedTensor.from_rank_offsets(key, value)
            continue
        count = vision["depth"] if layer[1] == "layers" else len(vision["deepstack_visual_indexes"])
        on_disk = key.replace(f".{layer[2]}.", ".", 1)
        state[key] = ShardedTensor.from_rank_offsets(on_disk, value, (0, int(layer[2]), count), prepend_axis_num=1)
    return state


def extras(model: Any) -> dict[str, Any]:
    """What training programs save beside the weights: an optimizer's state in pieces, random numbers, their own classes."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.transformer.enums import AttnBackend

    moment = torch.zeros(24)
    key = "optimizer.state.exp_avg.language_model.decoder.final_layernorm.weight"
    try:
        optimizer = {"one": ShardedTensor.from_rank_offsets_flat(key, moment, (24,), flattened_range=slice(0, 24))}
    except (TypeError, AttributeError, AssertionError):
        # later cores have no flattened tensors
        optimizer = {"one": ShardedTensor.from_rank_offsets(key, moment)}
    args = argparse.Namespace(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, expert_model_parallel_size=1,
        attention_backend=AttnBackend.auto, params_dtype=torch.bfloat16, num_experts=model.config.num_moe_experts,
        activation_func=torch.nn.functional.gelu,
    )  # fmt: skip
    return {
        "optimizer": optimizer, "args": args, "checkpoint_version": 3.0, "iteration": 7, "num_floating_point_operations_so_far": 0,
        "opt_param_scheduler": {"max_lr": 1e-5, "num_steps": 7},
        "rng_state": ShardedObject("rng_state", [{"torch": torch.get_rng_state()}], (1, 1), (0, 0), replica_id=0),
        "rerun_state_machine_state": {"mode": "disabled", "sharded": {}},
    }  # fmt: skip


def _accept_this_torch() -> None:
    """Cores up to 0.12 call a function of torch that has one more argument now: the format of a record, which was the same then."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    own = filesystem_async._write_item
    if "serialization_format" in inspect.signature(own).parameters:
        bound = functools.partial(own, serialization_format=SerializationFormat.TORCH_SAVE)
        filesystem_async._write_item = lambda *values: own(*values) if len(values) > 5 else bound(*values)


def write(source: Path, target: Path, vision: str, keys: str, with_extras: bool) -> None:
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "0"))
    if not torch.cuda.is_available():
        # nothing here computes on a GPU, but saving waits for one
        cuda: Any = torch.cuda
        cuda.synchronize, cuda.current_device = lambda *_: None, lambda: "cpu"
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    from megatron.core import dist_checkpointing, parallel_state

    parallel_state.initialize_model_parallel()
    _accept_this_torch()
    config = json.loads((source / "config.json").read_text())
    text, tied = config["text_config"], bool(config.get("tie_word_embeddings"))
    hf = hf_tensors(source)
    model = language_tower(text, tied, keys == "listed")
    fill(model, hf, text)
    metadata = {"singleton_local_shards": keys == "single", "non_homogeneous_layers": keys != "stacked"}
    state: dict[str, Any] = dict(model.sharded_state_dict(prefix="language_model.", metadata=metadata))
    state |= vision_tower(hf, config["vision_config"], vision, keys == "stacked")
    folder = target / "iter_0000007"
    folder.mkdir(parents=True)
    dist_checkpointing.save({"model": state} | (extras(model) if with_extras else {}), str(folder))
    (target / "latest_checkpointed_iteration.txt").write_text("7")
    shutil.copyfile(source / "config.json", target / "config.json")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a small Hugging Face model, safetensors")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--vision", choices=("bridge", "pai", "hf", "swift"), default="bridge", help="whose names the vision tower has")
    parser.add_argument(
        "--keys", choices=("stacked", "listed", "single"), default="stacked", help="one tensor for all layers, each, or each expert"
    )
    parser.add_argument("--extras", action="store_true", help="with an optimizer, random numbers and the program's own values")
    values = parser.parse_args()
    write(values.source, values.target, values.vision, values.keys, values.extras)
    print(f"{values.target}: written by megatron-core {importlib.metadata.version('megatron-core')}")


if __name__ == "__main__":
    main()
