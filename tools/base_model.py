"""The tiny model: its shape, and what training it from scratch needs, in plain PyTorch on Hugging Face's class.

Every picture here is SIZE x SIZE pixels and stands first in the prompt, so patches, positions and attention of a batch
are computed at once; the weights that come out are an ordinary Qwen3-VL's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, apply_rotary_pos_emb_vision

from qwen3vl_core.structure.micro_batch import IGNORED
from tools.base_samples import PATCH, PATCHES, PATCHES_ACROSS, SPATIAL_MERGE, TEMPORAL_PATCH, Samples, prompt_ids
from tools.base_tokenizer import PLAIN_TOKENS, SPECIAL_TOKENS, VOCABULARY

TOKEN_IDS = {token: number for number, token in enumerate(SPECIAL_TOKENS, VOCABULARY - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS))}
PAD, END, IMAGE = TOKEN_IDS["<|endoftext|>"], TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|image_pad|>"]

# larger than the usual 0.02: a model this narrow trains faster with it
INITIALIZER_RANGE = 0.05
PUBLISHED_INITIALIZER_RANGE = 0.02
"""What the written config.json says, as every Qwen3-VL's does: for layers that somebody adds."""

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True,
    "bos_token_id": PAD, "eos_token_id": END, "pad_token_id": PAD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
}  # fmt: skip
_VISION = {
    "depth": 6, "hidden_size": 128, "num_heads": 4, "intermediate_size": 384, "hidden_act": "gelu_pytorch_tanh", "in_channels": 3,
    "patch_size": PATCH, "temporal_patch_size": TEMPORAL_PATCH, "spatial_merge_size": SPATIAL_MERGE, "out_hidden_size": 192,
    "num_position_embeddings": PATCHES, "deepstack_visual_indexes": [1, 2, 4],
}  # fmt: skip


def base_config(initializer_range: float = INITIALIZER_RANGE) -> Qwen3VLConfig:
    """The tiny model's shape (`--size tiny`): 5.5 M parameters, every part of a Qwen3-VL."""
    return Qwen3VLConfig(
        text_config=_TEXT | {"initializer_range": initializer_range},
        vision_config=_VISION | {"initializer_range": initializer_range},
        image_token_id=IMAGE,
        video_token_id=TOKEN_IDS["<|video_pad|>"],
        vision_start_token_id=TOKEN_IDS["<|vision_start|>"],
        vision_end_token_id=TOKEN_IDS["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> Qwen3VLForConditionalGeneration:
    """The model with the random weights of a seed, fp32, with attention in the vision tower for a batch of pictures."""
    torch.manual_seed(seed)
    return batch_pictures(Qwen3VLForConditionalGeneration(base_config()).float())


class _PictureAttention(Qwen3VLVisionAttention):
    """The vision tower's attention where every picture has PATCHES patches: all pictures in one call, not one by one."""

    def forward(
        self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor | None = None, position_embeddings: Any = None,
        max_seqlen: int | None = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """hidden_states, and what is returned: [pictures * PATCHES, hidden size]."""
        rows = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).reshape(rows, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (x.reshape(rows // PATCHES, PATCHES, self.num_heads, -1).transpose(1, 2) for x in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(rows, -1))


def batch_pictures(model: Qwen3VLForConditionalGeneration) -> Qwen3VLForConditionalGeneration:
    """The same model and weights; its vision tower attends in all pictures at once and takes SIZE x SIZE pictures only."""
    for block in model.model.visual.blocks:
        attention = _PictureAttention(block.attn.config)
        attention.load_state_dict(block.attn.state_dict())
        block.attn = attention
    return model


def patchify(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [b, SIZE, SIZE, 3] -> float32 [b * PATCHES, 1536], values -1..1: what the image processor makes of them."""
    count, across = pictures.shape[0], PATCHES_ACROSS // SPATIAL_MERGE
    values = pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    values = values.reshape(count, 3, across, SPATIAL_MERGE, PATCH, across, SPATIAL_MERGE, PATCH)
    # patches of one merged token lie together; a still picture is its own second frame
    values = values.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1)
    return values.reshape(count * PATCHES, 3 * TEMPORAL_PATCH * PATCH * PATCH)


def grid_of(count: int, device: torch.device) -> torch.Tensor:
    """[1, 3]: `count` pictures as the frames of one clip, which the vision tower sees alike and handles without a loop."""
    return torch.tensor([[count, PATCHES_ACROSS, PATCHES_ACROSS]], device=device)


def prompt_positions(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, length: int) -> torch.Tensor:
    """[3, 1, length]: the rotary positions that every sample shares, since all have the picture at the same place."""
    ids = torch.tensor([prompt_ids(tokenizer, "")[:length]])
    ids = functional.pad(ids, (0, length - ids.shape[1]), value=PAD)
    grid = torch.tensor([[1, PATCHES_ACROSS, PATCHES_ACROSS]])
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=grid)
    return positions.to(model.device)


class Pool:
    """Ring buffer of samples on the training device: the newest replace the oldest."""

    def __init__(self, size: int, device: torch.device, seed: int) -> None:
        self.size, self.device = size, device
        self.drawn = 0
        """Samples put in so far, replaced ones included."""
        # not zeroed: pages that hold no sample yet take no memory on a CPU
        self._rows = [torch.empty((size, *shape), dtype=torch.from_numpy(np.empty(0, kind)).dtype, device=device)
                      for kind, shape in Samples.SHAPES[:3]]  # fmt: skip
        # stays on the host: the length of a batch is known without waiting for the device
        self._spans = torch.empty((size, 4), dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)

    def put(self, samples: Samples) -> None:
        """Copies samples in; as many at a time as divide the pool's size."""
        start = self.drawn % self.size
        stop = start + len(samples.spans)
        for rows, new in zip((*self._rows, self._spans), (samples.pictures, samples.long, samples.tags, samples.spans), strict=True):
            rows[start:stop] = torch.from_numpy(new).to(rows.device)
        self.drawn += stop - start

    def batch(self, count: int, long: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures uint8 [b, SIZE, SIZE, 3], ids [b, s] and labels [b, s] (not shifted) of randomly chosen samples."""
        indices = torch.randint(min(self.drawn, self.size), (count,), generator=self._generator)
        first, end = self._spans[indices][:, : 2 if long else 4][:, -2:].to(self.device, non_blocking=True).unbind(1)
        # a few lengths only, against fragmentation of device memory
        length = -(-int(self._spans[indices, 1 if long else 3].max()) // 8) * 8
        indices = indices.to(self.device)
        pictures, ids = self._rows[0][indices], self._rows[1 if long else 2][indices, :length].long()
        place = torch.arange(ids.shape[1], device=self.device)[None]
        labels = torch.where((place >= first[:, None]) & (place < end[:, None]), ids, IGNORED)
        return pictures, ids, labels


def caption_loss(
    model: Qwen3VLForConditionalGeneration, pictures: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the trained tokens, a scalar in fp32; bf16 products where there is CUDA.

    pictures: uint8 [b, SIZE, SIZE, 3]; ids, labels: [b, s], labels not shifted; positions: of at least s tokens.
    """
    count, length = ids.shape
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        output = model(
            input_ids=ids, pixel_values=patchify(pictures), image_grid_thw=grid_of(count, ids.device),
            position_ids=positions[:, :, :length].expand(3, count, length), use_cache=False,
        )  # fmt: skip
    logits = output.logits[:, :-1].reshape(-1, output.logits.shape[-1])
    return functional.cross_entropy(logits.float(), labels[:, 1:].reshape(-1), ignore_index=IGNORED)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """For AdamW: matrices decay; norms, biases and embeddings do not."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim < 2 or "norm" in name or "embed" in name]["params"].append(parameter)
    return groups


def write_model(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors: bf16, the tied embedding once."""
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors creates files with mode 0600
    (folder / "model.safetensors").chmod(0o644)
    config = base_config(PUBLISHED_INITIALIZER_RANGE).to_dict()
    config["architectures"] = ["Qwen3VLForConditionalGeneration"]
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "bfloat16"
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = GenerationConfig(bos_token_id=PAD, eos_token_id=[END, PAD], pad_token_id=PAD, do_sample=False)
    generation.save_pretrained(folder)


@torch.no_grad()
def captions(
    model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, pictures: torch.Tensor, prompt: str, *,
    longest: int = 190, batch_size: int = 256,
) -> list[str]:  # fmt: skip
    """The model's most likely answer to a prompt for each picture (uint8 [n, SIZE, SIZE, 3]), at most `longest` tokens."""
    texts = []
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size].to(model.device)
        rows = ids.expand(len(batch), -1)
        generated = model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), mm_token_type_ids=(rows == IMAGE).int(),
            pixel_values=patchify(batch), image_grid_thw=torch.cat([grid_of(1, model.device)] * len(batch)),
            max_new_tokens=longest, do_sample=False, eos_token_id=[END, PAD], pad_token_id=PAD,
        )  # fmt: skip
        # what follows the end of a short answer is padding, which decoding leaves out as it does the end itself
        texts += tokenizer.decode_batch(generated[:, ids.shape[1] :].tolist(), skip_special_tokens=True)
    return texts
