"""Qwen3-VL: vision tower and language tower together, called with what the Hugging Face processor gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from qwen3vl_core.model.config import vision_config
from qwen3vl_core.model.context_parallel import token_index
from qwen3vl_core.model.deepstack import DeepstackLayer, with_gradient
from qwen3vl_core.model.mrope import InterleavedMRope, mrope_positions, packed_positions
from qwen3vl_core.model.right_padding import RightPadding
from qwen3vl_core.model.router import padding_mask
from qwen3vl_core.model.specs import choose_attention, final_norm, layer_spec
from qwen3vl_core.model.vision import VisionModel

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from qwen3vl_core.layout.adapters import Adapters
from qwen3vl_core.sizes import Architecture


@dataclass(frozen=True)
class PromptFeatures:
    """What the vision tower made of a prompt, kept for every further pass over the prompt and what was written after it."""

    features: tuple[list[Tensor], list[Tensor]] | None
    """Of `vision_features`; None without pictures, and on stages that have no vision tower."""
    length: int
    """Tokens of the prompt; what follows is text, whatever its tokens are."""


class Qwen3VLModel(MegatronModule):
    """One pipeline stage of Qwen3-VL, or the whole of it.

    The first stage holds the vision tower, the embeddings and the deepstack layers, the last one the output layer.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: TransformerConfig,
        *,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
        parallel_output: bool = True,
    ) -> None:
        super().__init__(config=config)
        self.architecture = architecture
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = architecture.tied
        self.adapters: Adapters | None = None
        """Set by `lora.attach`."""
        self.vision_model = VisionModel(vision_config(architecture, config), architecture) if pre_process else None
        attention = choose_attention(config.attention_backend)
        layer = layer_spec(DeepstackLayer, causal=True, qk_layernorm=True, num_experts=architecture.num_experts, core_attention=attention)
        self.vision_in_every_batch = False
        """Put a blank picture of no weight through the vision tower where a batch has none, so that every weight has a gradient."""
        layers = [layer] * get_num_layers_to_build(config, vp_stage)
        self.language_model = GPTModel(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(layer_specs=layers, layer_norm=final_norm()),
            vocab_size=architecture.vocab_size,
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            parallel_output=parallel_output,
            share_embeddings_and_output_weights=architecture.tied,
            position_embedding_type="mrope",
            rotary_base=int(architecture.rope_theta),
            # pictures are laid into the whole sequence first, then it is cut
            scatter_embedding_sequence_parallel=False,
            vp_stage=vp_stage,
        )
        self.language_model.rotary_pos_emb = InterleavedMRope(architecture.head_dim, architecture.rope_theta)
        self.model_type = self.language_model.model_type

    def adapted(self, part: str) -> bool:
        """Whether adapters are trained in a part of the model."""
        return self.adapters is not None and part in self.adapters.parts

    def set_input_tensor(self, input_tensor: list[Tensor] | Tensor) -> None:
        """Called by Megatron's pipeline schedule with the previous stage's output."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """Called by Megatron to add up the gradients of tied weights on the first and last stage."""
        return self.language_model.shared_embedding_or_output_weight()

    def positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """mRoPE positions [3, b, s], and the next position of each row [b]."""
        return mrope_positions(
            input_ids, attention_mask, image_grid_thw, video_grid_thw,
            image_token_id=self.architecture.image_token_id, video_token_id=self.architecture.video_token_id,
            merge_size=self.architecture.vision.spatial_merge_size,
        )  # fmt: skip

    def vision_features(
        self,
        pixel_values: Tensor | None,
        image_grid_thw: Tensor | None,
        pixel_values_videos: Tensor | None,
        video_grid_thw: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """([features, deepstack 0, 1, 2] of all pictures, the same of all videos), from one pass of the vision tower."""
        patches = [p for p in (pixel_values, pixel_values_videos) if p is not None]
        if not patches:
            return None
        grids = [g for g in (image_grid_thw, video_grid_thw) if g is not None]
        features, deep = self.vision_model(torch.cat(patches), torch.cat(grids), learns=self.training and self.adapted("vision"))
        merge = self.architecture.vision.spatial_merge_size**2
        pictures = 0 if pixel_values is None else pixel_values.shape[0] // merge
        everything = [features, *deep]
        return [t[:pictures] for t in everything], [t[pictures:] for t in everything]

    def local_index(self, length: int, cu_seqlens: Tensor | None = None) -> Tensor | None:
        """Places along a sequence that this context parallel rank holds; None where there is one such rank."""
        size = self.config.context_parallel_size
        if size == 1:
            return None
        return token_index(length, cu_seqlens, size, parallel_state.get_context_parallel_rank())

    def embed(
        self,
        input_ids: Tensor,
        vision: tuple[list[Tensor], list[Tensor]] | None,
        index: Tensor | None = None,
        prompt: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Token embeddings with the vision features in their places [s, b, h], and the deepstack features, zero
        elsewhere, one after the other along the sequence [n * s, b, h]; both cut for context parallelism (`index`:
        the places that this rank holds) and for sequence parallelism. prompt: features belong into so many first places."""
        embedded_sbh = self.language_model.embedding(input_ids=input_ids, position_ids=None)
        deep_sbh: list[Tensor] = []
        if vision is None and self.vision_in_every_batch and torch.is_grad_enabled():
            embedded_sbh = embedded_sbh + self._blank_picture().to(embedded_sbh.dtype)
        if vision is not None:
            ids_sb = input_ids[:, :prompt].transpose(0, 1)
            places = [ids_sb == self.architecture.image_token_id, ids_sb == self.architecture.video_token_id]
            # rows of the batch follow each other in the features, so places are counted along [b, s]
            placed = [place.transpose(0, 1).nonzero(as_tuple=True) for place in places]
            layers = [embedded_sbh, *(torch.zeros_like(embedded_sbh) for _ in vision[0][1:])]
            for (rows, columns), features in zip(placed, vision, strict=True):
                if rows.numel() != features[0].shape[0]:
                    raise ValueError(f"{rows.numel()} vision tokens in input_ids, but {features[0].shape[0]} features")
                if rows.numel():
                    layers = [layer.index_put((columns, rows), part.to(layer.dtype)) for layer, part in zip(layers, features, strict=True)]
            embedded_sbh, *deep_sbh = layers
        if index is not None:
            embedded_sbh, *deep_sbh = (layer[index] for layer in (embedded_sbh, *deep_sbh))
        if self.config.sequence_parallel:
            embedded_sbh = scatter_to_sequence_parallel_region(embedded_sbh)
            deep_sbh = [scatter_to_sequence_parallel_region(layer) for layer in deep_sbh]
        return embedded_sbh, torch.cat(deep_sbh) if deep_sbh else None

    def _blank_picture(self) -> Tensor:
        """0, which depends on every weight of the vision tower and the mergers."""
        v = self.architecture.vision
        grid = torch.tensor([[1, v.spatial_merge_size, v.spatial_merge_size]])
        weight = self.vision_model.patch_embed.proj.weight
        features, deep = self.vision_model(weight.new_zeros(v.spatial_merge_size**2, v.patch_dim), grid)
        return sum(part.float().sum() for part in (features, *deep)) * 0.0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inference_context=None,
        cu_seqlens: Tensor | None = None,
        prompt_features: PromptFeatures | None = None,
        hidden_states: bool = False,
        **unused,
    ) -> Tensor:
        """Logits [b, s, vocabulary]; with `labels` [b, s] (already shifted) the loss of each token [b, s], not masked.

        input_ids and attention_mask [b, s]; pixel_values [patches, 1536]; grids [n, 3] in patches; position_ids [3, b, s]
        if known; cu_seqlens [documents + 1] for a packed row (b = 1): where each document begins, and the end of the last;
        its attention_mask, if any, only marks what the experts' load balancing leaves out. prompt_features: in place of the pixels, with
        position_ids; hidden_states: of the last stage too, not multiplied by the output layer.
        With context parallelism the result holds this rank's tokens only (`local_index`). What the processor gives
        beyond these (`mm_token_type_ids`) is not needed. Between pipeline stages: hidden states [s, b, h].
        Raises ValueError when tokens, pixels and grids do not fit together.
        """
        tokens = attention_mask
        if cu_seqlens is not None:
            attention_mask = None
            grids = {"image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}
            position_ids = packed_positions(input_ids, cu_seqlens, partial(self.positions, **grids))
        right_padding = RightPadding.of(attention_mask)
        if right_padding is not None:
            # positions need the mask; afterwards no later step does
            if position_ids is None:
                position_ids, _ = self.positions(input_ids, attention_mask, image_grid_thw, video_grid_thw)
            position_ids = right_padding.apply(position_ids)
            input_ids, tokens = right_padding.apply(input_ids), right_padding.apply(attention_mask)
            labels = None if labels is None else right_padding.apply(labels)
        elif position_ids is None:
            position_ids, _ = self.positions(input_ids, None if inference_context else attention_mask, image_grid_thw, video_grid_thw)
        index = self.local_index(input_ids.shape[1], cu_seqlens)
        embedded = deepstack = None
        if self.pre_process:
            if prompt_features is None:
                vision = self.vision_features(pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
            else:
                vision = prompt_features.features
            embedded, deepstack = self.embed(input_ids, vision, index, prompt_features.length if prompt_features else None)
            embedded = with_gradient(embedded, self.config, self.training and self.adapted("language"))
        if index is not None:
            input_ids = input_ids[:, index]
            labels = None if labels is None else labels[:, index]
            # a packed row's angles are cut by Megatron, document by document
            position_ids = position_ids if cu_seqlens is not None else position_ids[..., index]
        with _without_output_layer(self.language_model) if hidden_states else contextlib.nullcontext():
            output = self.language_model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=None,
                padding_mask=padding_mask(tokens, index, self.config),
                decoder_input=embedded,
                labels=labels,
                inference_context=inference_context,
                packed_seq_params=None if cu_seqlens is None else _packed(cu_seqlens, input_ids.device),
                extra_block_kwargs={"context": deepstack},
                runtime_gather_output=True if inference_context is not None else None,
            )
        if right_padding is not None and self.post_process:
            output = right_padding.restore(output)
        return output

    def cached_decoder(self, max_sequence_length: int):
        """A key/value cache to write captions with; see `CachedDecoder`."""
        from qwen3vl_core.model.kv_cache import CachedDecoder

        return CachedDecoder(self, max_sequence_length)


@contextlib.contextmanager
def _without_output_layer(language: GPTModel) -> Iterator[None]:
    """The language tower ends with its last norm inside."""
    kept, language.post_process = language.post_process, False
    try:
        yield
    finally:
        language.post_process = kept


def _packed(cu_seqlens: Tensor, device: torch.device) -> PackedSeqParams:
    """Megatron's description of a packed row."""
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    bounds = cu_seqlens.to(device=device, dtype=torch.int32)
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
