"""The vision tower: patches -> transformer -> one token for each merge x merge block, and the deepstack features.

Source: `Qwen3VLVisionModel` in Hugging Face transformers.
"""

from __future__ import annotations

from typing import Any, cast

from qwen3vl_core.model.config import merger_config
from qwen3vl_core.model.deepstack import CollectingLayer, with_gradient
from qwen3vl_core.model.mrope import vision_angles
from qwen3vl_core.model.norm import LocalNorm
from qwen3vl_core.model.packed_row import PackedRow
from qwen3vl_core.model.process_groups import vision_groups
from qwen3vl_core.model.specs import choose_attention, layer_spec, parallel_linears

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.micro_batch import VisionStructure


class PatchProjection(torch.nn.Conv3d):
    """A convolution whose kernel is one patch, computed as a matrix product."""

    def forward(self, patches: Tensor) -> Tensor:
        """[patches, channels * frames * height * width] -> [patches, hidden]."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class PatchEmbed(torch.nn.Module):
    """Patches of pixels to hidden states."""

    def __init__(self, architecture: Architecture, config: TransformerConfig) -> None:
        super().__init__()
        vision = architecture.vision
        kernel = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        self.proj = PatchProjection(vision.in_channels, vision.hidden_size, kernel, stride=kernel, bias=True, dtype=config.params_dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """[patches, channels * frames * height * width] -> [patches, hidden]."""
        return self.proj(patches)


class Merger(MegatronModule):
    """Norm, then a two-layer perceptron over each block of merge x merge patches.

    The last merger normalizes each patch before they are concatenated, the deepstack mergers normalize the concatenated block.
    """

    def __init__(self, config: TransformerConfig, patch_hidden: int, *, norm_joined: bool) -> None:
        super().__init__(config=config)
        column, row = parallel_linears()
        joined = config.ffn_hidden_size
        self.joined, self.norm_joined = joined, norm_joined
        self.patch_norm = LocalNorm(config, joined if norm_joined else patch_hidden, eps=1e-6)
        shared = dict(config=config, bias=True, is_expert=False)
        self.linear_fc1 = build_module(
            column, joined, joined, init_method=config.init_method, gather_output=False, skip_bias_add=False, **shared
        )
        self.linear_fc2 = build_module(
            row, joined, config.hidden_size, init_method=config.output_layer_init_method, input_is_parallel=True,
            skip_bias_add=False, **shared,
        )  # fmt: skip

    def forward(self, hidden: Tensor) -> Tensor:
        """[patches, 1, vision hidden] -> [tokens, 1, language hidden]."""
        if self.norm_joined:
            hidden = self.patch_norm(hidden.reshape(-1, 1, self.joined))
        else:
            hidden = self.patch_norm(hidden).reshape(-1, 1, self.joined)
        hidden, _ = self.linear_fc1(hidden)
        hidden, _ = self.linear_fc2(F.gelu(hidden))
        return hidden


class VisionBlock(TransformerBlock):
    """Megatron's block, which also holds the deepstack mergers: their names in a checkpoint begin with the block's."""

    def __init__(self, config: TransformerConfig, architecture: Architecture, **kwargs: Any) -> None:
        attention = choose_attention(config.attention_backend)
        spec = layer_spec(CollectingLayer, causal=False, qk_layernorm=False, core_attention=attention)
        layers = TransformerBlockSubmodules(layer_specs=[spec] * config.num_layers, layer_norm=LocalNorm)
        super().__init__(
            config, layers, post_layer_norm=False, pre_process=True, post_process=True, pg_collection=vision_groups(), **kwargs
        )
        mergers = merger_config(architecture, config)
        self.deepstack_merger_list = torch.nn.ModuleList(
            Merger(mergers, config.hidden_size, norm_joined=True) for _ in architecture.vision.deepstack_layers
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """The mergers are stacked like the layers: one key, with a leading merger axis (layout `bridge`)."""
        mergers = self.deepstack_merger_list
        del self.deepstack_merger_list
        try:
            state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        finally:
            self.deepstack_merger_list = mergers
        base = f"{prefix}deepstack_merger_list."
        stacked = not (metadata or {}).get("non_homogeneous_layers", False)
        for index, merger in enumerate(cast("list[Merger]", mergers)):
            local = f"{base}{index}."
            offsets = ((0, index, len(mergers)),) if stacked else ()
            merger_state = merger.sharded_state_dict(local, offsets, metadata)
            if stacked:
                for tensor in merger_state.values():
                    tensor.key = tensor.key.replace(local, base, 1)
            state.update(merger_state)
        return state


class VisionModel(MegatronModule):
    """Qwen3-VL's vision tower on Megatron's transformer block."""

    def __init__(self, config: TransformerConfig, architecture: Architecture) -> None:
        super().__init__(config=config)
        vision = architecture.vision
        # read by the layers, which only have access to their config and layer number
        config.deepstack_layers = vision.deepstack_layers
        self.vision = vision
        self.patch_embed = PatchEmbed(architecture, config)
        self.pos_embed = torch.nn.Embedding(vision.num_position_embeddings, vision.hidden_size, dtype=config.params_dtype)
        self.decoder = VisionBlock(config, architecture)
        self.merger = Merger(merger_config(architecture, config), vision.hidden_size, norm_joined=False)

    def position_embeddings(self, coordinates: Tensor, sizes: Tensor) -> Tensor:
        """The learned square grid, resized to each picture's grid by bilinear interpolation: [patches, hidden].

        coordinates and sizes [patches, 2] as in `VisionStructure`.
        """
        side = int(self.vision.num_position_embeddings**0.5)
        # corners aligned: patch 0 is at entry 0, the last patch at the last entry
        at = coordinates.float() * (side - 1) / (sizes - 1).clamp(min=1).float()
        low = at.floor().long().clamp(max=side - 1)
        high = (low + 1).clamp(max=side - 1)
        share = at - low.float()
        (row_low, col_low), (row_high, col_high) = low.unbind(-1), high.unbind(-1)
        row_share, col_share = share.unbind(-1)
        indices = torch.stack(
            (row_low * side + col_low, row_low * side + col_high, row_high * side + col_low, row_high * side + col_high), -1
        )
        weights = torch.stack(
            (
                (1 - row_share) * (1 - col_share),
                (1 - row_share) * col_share,
                row_share * (1 - col_share),
                row_share * col_share,
            ),
            -1,
        )
        table = self.pos_embed(indices)
        return (table * weights[..., None].to(table.dtype)).sum(1)

    def forward(self, patches: Tensor, structure: VisionStructure, *, learns: bool = False) -> tuple[Tensor, list[Tensor]]:
        """patches [n, channels * frames * height * width], padded as their structure is ->
        features [n / merge², language hidden] and one such tensor for each deepstack layer.

        Each frame attends to itself only. learns: adapters of this tower are trained while its embeddings are frozen. Raises
        ValueError when patches and structure differ in their number.
        """
        if structure.coordinates.shape[0] != patches.shape[0]:
            raise ValueError(f"grid_thw counts {structure.coordinates.shape[0]} patches, but {patches.shape[0]} are given")
        hidden = self.patch_embed(patches)
        embedded = self.position_embeddings(structure.coordinates, structure.sizes)
        hidden = (hidden + embedded.to(hidden.dtype)).unsqueeze(1)
        hidden = with_gradient(hidden, self.config, learns)
        angles = vision_angles(structure.coordinates, self.config.kv_channels, self.vision.rope_theta)
        packed = PackedRow.of(structure.cu_seqlens, structure.max_seqlen, structure.frames)
        outputs = self.decoder(
            hidden_states=hidden, attention_mask=None, context=hidden[:0], rotary_pos_emb=angles, packed_seq_params=packed
        )
        *deep, last = outputs.split(hidden.shape[0])
        features = self.merger(last).squeeze(1)
        mergers = self.decoder.deepstack_merger_list
        return features, [merge(output).squeeze(1) for merge, output in zip(mergers, deep, strict=True)]
