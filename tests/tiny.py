"""Random small models with the real architecture, as Hugging Face makes and saves them, and batches to call them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

IMAGE, VIDEO, VISION_START, VISION_END, VOCABULARY = 190, 191, 192, 193, 200


def hf_config(
    *,
    tied: bool = True,
    layers: int = 4,
    vision_layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 64,
    head_dim: int = 16,
    ffn: int = 96,
    deepstack: tuple[int, ...] = (0, 1, 2),
):
    """A `Qwen3VLConfig` of a few thousand parameters."""
    from transformers import Qwen3VLConfig

    rotated = head_dim // 2
    section = [rotated - 2 * (rotated // 3), rotated // 3, rotated // 3]
    rope = dict(rope_type="default", rope_theta=10000.0, mrope_section=section, mrope_interleaved=True)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-6, tie_word_embeddings=tied, rope_parameters=rope,
        max_position_embeddings=512,
    )  # fmt: skip
    vision = dict(
        depth=vision_layers, hidden_size=32, num_heads=2, intermediate_size=48, deepstack_visual_indexes=list(deepstack),
        out_hidden_size=hidden, num_position_embeddings=64, patch_size=16, temporal_patch_size=2, spatial_merge_size=2,
        in_channels=3, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, tie_word_embeddings=tied,
    )  # fmt: skip


def hf_model(seed: int = 0, **shape):
    """`Qwen3VLForConditionalGeneration` in fp32 whose every weight, norms and biases too, is random."""
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    return randomised(Qwen3VLForConditionalGeneration(hf_config(**shape)).float().eval())


def hf_moe_model(seed: int = 0, *, experts: int = 8, chosen: int = 2, expert_ffn: int = 24, **shape):
    """`Qwen3VLMoeForConditionalGeneration` in fp32 with random weights, every layer of experts."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    values = hf_config(**({"tied": False} | shape)).to_dict()
    text = values["text_config"] | {
        "num_experts": experts, "num_experts_per_tok": chosen, "moe_intermediate_size": expert_ffn, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": True, "router_aux_loss_coef": 0.001, "model_type": "qwen3_vl_moe_text",
    }  # fmt: skip
    vision = values["vision_config"] | {"model_type": "qwen3_vl_moe_vision"}
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    torch.manual_seed(seed)
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision, **{k: values[k] for k in keys}))
    return randomised(model.float().eval())


def randomised(model):
    """Every weight random, norms and biases too."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(model, folder: Path) -> Path:
    """As a Hugging Face directory, in fp32."""
    model.save_pretrained(folder)
    return folder


@dataclass
class Conversations:
    """Builds a batch: rows of tokens with pictures and videos."""

    seed: int = 0
    rows: list[list[int]] = field(default_factory=list)
    pictures: list[tuple[int, int, int]] = field(default_factory=list)
    videos: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def _words(self, count: int) -> list[int]:
        return torch.randint(1, 180, (count,), generator=self.random).tolist()

    def row(self, *parts) -> Conversations:
        """One row: a number is that many words, ("image", h, w) a picture, ("video", t, h, w) a video, in patches."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens += self._words(part)
            elif part[0] == "image":
                _, h, w = part
                self.pictures.append((1, h, w))
                tokens += [VISION_START, *[IMAGE] * (h * w // 4), VISION_END]
            else:
                _, t, h, w = part
                self.videos.append((t, h, w))
                for _ in range(t):
                    tokens += [*self._words(3), VISION_START, *[VIDEO] * (h * w // 4), VISION_END]
        self.rows.append(tokens)
        return self

    def inputs(self, *, pad_left: bool = False) -> dict[str, torch.Tensor]:
        """The processor's output for this batch."""
        longest = max(map(len, self.rows))
        ids, mask = [], []
        for row in self.rows:
            empty = [0] * (longest - len(row))
            ids.append(empty + row if pad_left else row + empty)
            ones = [1] * len(row)
            mask.append(empty + ones if pad_left else ones + empty)
        made = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        for grids, pixels, grid in (
            (self.pictures, "pixel_values", "image_grid_thw"),
            (self.videos, "pixel_values_videos", "video_grid_thw"),
        ):
            if grids:
                patches = sum(t * h * w for t, h, w in grids)
                made[pixels] = torch.randn(patches, 1536, generator=self.random)
                made[grid] = torch.tensor(grids)
        return made


def token_types(input_ids: torch.Tensor) -> torch.Tensor:
    """`mm_token_type_ids`, which Hugging Face's model requires, too."""
    return (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()


BATCHES = {
    "one picture": lambda: Conversations().row(3, ("image", 4, 6), 7),
    "three pictures of different sizes": lambda: Conversations(1).row(3, ("image", 4, 6), ("image", 8, 4), 2, ("image", 2, 2), 7),
    "two rows with different pictures": lambda: Conversations(2).row(3, ("image", 4, 6), 7).row(1, ("image", 6, 6), 12),
    "text only": lambda: Conversations(3).row(9).row(5),
    "text-only and picture rows mixed": lambda: Conversations(4).row(30).row(1, ("image", 6, 6), 12).row(4),
    "a video": lambda: Conversations(5).row(3, ("video", 3, 4, 6), 7),
    "video and pictures mixed": lambda: Conversations(6).row(3, ("video", 2, 4, 6), 5, ("image", 4, 4), 2).row(2, ("image", 6, 4), 4),
}
