"""Qwen3-VL: vision tower and language tower together, called with the outputs of the Hugging Face processor.

Source: `Qwen3VLForConditionalGeneration` in Hugging Face transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from qwen3vl_core.model.config import vision_config
from qwen3vl_core.model.deepstack import DeepstackLayer, with_gradient
from qwen3vl_core.model.kv_cache import CachedDecoder
from qwen3vl_core.model.language import LanguageModel
from qwen3vl_core.model.mrope import InterleavedMRope
from qwen3vl_core.model.packed_row import PackedRow
from qwen3vl_core.model.router import padding_mask
from qwen3vl_core.model.specs import choose_attention, final_norm, layer_spec
from qwen3vl_core.model.vision import VisionModel

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from qwen3vl_core.layout.adapters import Adapters
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.context_parallel import token_index
from qwen3vl_core.structure.micro_batch import Structure, StructureRules, VisionStructure, build_structure
from qwen3vl_core.structure.picture_shares import own_patches
from qwen3vl_core.structure.positions import mrope_positions


@dataclass(frozen=True)
class PromptFeatures:
    """Vision features of a prompt, reused by every later pass over the prompt and the tokens generated after it."""

    features: list[Tensor] | None
    """Output of `vision_features`; None without pictures, and on stages that have no vision tower."""
    token_indices: Tensor | None
    """`VisionStructure.token_indices`: the token index of each feature."""
    length: int
    """Tokens of the prompt; all later tokens are text, even if they equal a vision token."""


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
        """Run a blank picture with loss weight 0 through the vision tower when a batch has none, so that every weight has a gradient."""
        self._blank: VisionStructure | None = None
        layers = [layer] * get_num_layers_to_build(config, vp_stage)
        self.language_model = LanguageModel(
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
            # vision features are inserted into the full sequence before it is split
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
        """Called by Megatron to sum the gradients of tied weights over the first and last stage."""
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

    def structure(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        *,
        with_vision: bool = True,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Structure:
        """The structure of the Hugging Face processor's outputs, on the device of input_ids; see `build_structure`."""
        size = self.config.context_parallel_size
        rules = StructureRules(self.architecture, cp_size=size, cp_rank=parallel_state.get_context_parallel_rank() if size > 1 else 0)
        return build_structure(
            rules, input_ids.cpu(), _on_host(attention_mask), _on_host(image_grid_thw), _on_host(video_grid_thw),
            labels=_on_host(labels), position_ids=position_ids, cu_seqlens=_on_host(cu_seqlens),
            with_vision=with_vision and self.pre_process,
        ).to(input_ids.device)  # fmt: skip

    def local_index(self, length: int) -> Tensor | None:
        """Sequence indices that this context parallel rank holds, on the host; None without context parallelism."""
        size = self.config.context_parallel_size
        return token_index(length, None, size, parallel_state.get_context_parallel_rank()) if size > 1 else None

    def _own_patches(self, pixel_values: Tensor, grid: Tensor | None) -> Tensor:
        """This context parallel rank's share of the patches of pictures or videos."""
        size = self.config.context_parallel_size
        if size == 1:
            return pixel_values
        return own_patches(pixel_values, _on_host(grid), size, parallel_state.get_context_parallel_rank(), buckets=False)

    def vision_features(self, pixel_values: Tensor, structure: VisionStructure) -> list[Tensor]:
        """[features, deepstack 0, 1, 2], each [shares * patches / merge², h], of all pictures and videos; pixel_values: this rank's."""
        assert self.vision_model is not None  # the first stage has it
        features, deep = self.vision_model(pixel_values, structure, learns=self.training and self.adapted("vision"))
        layers = [features, *deep]
        if structure.shares == 1:
            return layers
        # a token belongs to one rank: where the backward pass sums over the ranks, all but one add zero
        gathered = gather_from_sequence_parallel_region(torch.cat(layers, -1), group=parallel_state.get_context_parallel_group())
        return list(gathered.chunk(len(layers), -1))

    def embed(self, structure: Structure, features: list[Tensor] | None, token_indices: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Token embeddings with the vision features at the vision tokens [s, b, h], and the deepstack features, zero at other
        tokens, concatenated along the sequence [n * s, b, h]; both split for context and for sequence parallelism."""
        embedded_sbh = self.language_model.embedding(input_ids=structure.input_ids, position_ids=None)
        deep_sbh: list[Tensor] = []
        if features is None and self.vision_in_every_batch and torch.is_grad_enabled():
            embedded_sbh = embedded_sbh + self._blank_picture().to(embedded_sbh.dtype)
        if features is not None:
            assert token_indices is not None  # features come with their indices
            layers = [embedded_sbh, *(torch.zeros_like(embedded_sbh) for _ in features[1:])]
            embedded_sbh, *deep_sbh = (_insert(layer, token_indices, part) for layer, part in zip(layers, features, strict=True))
        if structure.local is not None:
            embedded_sbh, *deep_sbh = (layer[structure.local] for layer in (embedded_sbh, *deep_sbh))
        if self.config.sequence_parallel:
            embedded_sbh = scatter_to_sequence_parallel_region(embedded_sbh)
            deep_sbh = [scatter_to_sequence_parallel_region(layer) for layer in deep_sbh]
        return embedded_sbh, torch.cat(deep_sbh) if deep_sbh else None

    def _blank_picture(self) -> Tensor:
        """A zero that depends on every weight of the vision tower and the mergers."""
        assert self.vision_model is not None  # the first stage has it
        v, weight = self.architecture.vision, self.vision_model.patch_embed.proj.weight
        if self._blank is None:
            ids = torch.full((1, 1), self.architecture.image_token_id)
            grid = torch.tensor([[1, v.spatial_merge_size, v.spatial_merge_size]])
            self._blank = self.structure(ids.to(weight.device), image_grid_thw=grid).vision
            assert self._blank is not None  # it has a picture
        features = self.vision_features(weight.new_zeros(v.spatial_merge_size**2, v.patch_dim), self._blank)
        return cast(Tensor, sum(feature.float().sum() for feature in features)) * 0.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inference_context: Any = None,
        cu_seqlens: Tensor | None = None,
        prompt_features: PromptFeatures | None = None,
        hidden_states: bool = False,
        structure: Structure | None = None,
        **unused: Any,
    ) -> Tensor:
        """Logits [b, s, vocabulary]; with `labels` [b, s] (already shifted) the loss of each token [b, s], not masked.

        input_ids and attention_mask [b, s]; pixel_values [patches, 1536]; grids [n, 3] in patches; position_ids [3, b, s]
        if known; cu_seqlens [documents + 1] for a packed row (b = 1): the start of each document, and the end of the last;
        its attention_mask, if any, only marks the tokens that the experts' load balancing ignores. prompt_features: replaces the
        pixels, with position_ids; hidden_states: the last stage too returns hidden states, without the output layer.
        structure: replaces all of these but the pixels, built on the host beforehand; there are then no device synchronizations.
        With context parallelism the result holds this rank's tokens only (`Structure.local`). Other outputs of the processor
        (`mm_token_type_ids`) are ignored. Between pipeline stages: hidden states [s, b, h].
        Raises ValueError without input_ids and structure, and when tokens, pixels and grids do not match.
        """
        if structure is None:
            if input_ids is None:
                raise ValueError("the model needs input_ids, or a structure")
            if position_ids is not None and not any(
                t is not None for t in (attention_mask, pixel_values, pixel_values_videos, cu_seqlens)
            ):  # fmt: skip
                # a generated token: no vision tokens to locate, so no host synchronization
                structure = Structure(input_ids, position_ids, local=self.local_index(input_ids.shape[1]), labels=labels)
            else:
                structure = self.structure(
                    input_ids, attention_mask, image_grid_thw, video_grid_thw, with_vision=prompt_features is None, labels=labels,
                    position_ids=position_ids, cu_seqlens=cu_seqlens,
                )  # fmt: skip
                given = ((pixel_values, image_grid_thw), (pixel_values_videos, video_grid_thw))
                pixels = [self._own_patches(p, grid) for p, grid in given if p is not None]
                pixel_values = torch.cat(pixels) if pixels else None
        output = self._compute(structure, pixel_values, inference_context, prompt_features, hidden_states)
        if structure.right_padding is not None and self.post_process:
            output = structure.right_padding.restore(output)
        return output

    def _compute(
        self, s: Structure, pixel_values: Tensor | None, inference_context: Any, prompt_features: PromptFeatures | None, hidden_states: bool
    ) -> Tensor:  # fmt: skip
        """`forward` with a structure on this device; pixel_values [P, 1536], padded as the structure is."""
        embedded = deepstack = None
        if self.pre_process:
            features, token_indices = None, None
            if prompt_features is not None and prompt_features.features is not None:
                features, token_indices = prompt_features.features, prompt_features.token_indices
            elif s.vision is not None and pixel_values is not None:
                features, token_indices = self.vision_features(pixel_values, s.vision), s.vision.token_indices
            embedded, deepstack = self.embed(s, features, token_indices)
            embedded = with_gradient(embedded, self.config, self.training and self.adapted("language"))
        input_ids, position_ids, labels = s.input_ids, s.position_ids, s.labels
        if s.local is not None:
            input_ids = input_ids[:, s.local]
            labels = None if labels is None else labels[:, s.local]
            position_ids = position_ids[..., s.local]
        only_trained = s.trained is not None and self.post_process
        with _without_output_layer(self.language_model) if hidden_states or only_trained else contextlib.nullcontext():
            output = self.language_model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=None,
                padding_mask=padding_mask(s.mask, s.local, self.config),
                decoder_input=embedded,
                labels=None if labels is None else labels.clamp(min=0),
                inference_context=inference_context,
                packed_seq_params=None if s.cu_seqlens is None else PackedRow.of(s.cu_seqlens, s.max_seqlen, s.documents),
                extra_block_kwargs={"context": deepstack},
                runtime_gather_output=True if inference_context is not None else None,
            )
        return self._losses_of_trained(output, s) if only_trained and not hidden_states else output

    def _losses_of_trained(self, hidden_sbh: Tensor, s: Structure) -> Tensor:
        """[1, n]: the loss of each trained token; the logits of other tokens are not computed."""
        assert s.trained is not None and s.trained_labels is not None
        language = self.language_model
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        if self.config.sequence_parallel:
            # trained tokens may lie in any rank's share; the backward pass sums over the ranks and splits
            hidden_sbh = gather_from_sequence_parallel_region(hidden_sbh, tensor_parallel_output_grad=True)
        with _of_gathered_input(language.output_layer):
            logits, _ = language.output_layer(hidden_sbh.index_select(0, s.trained), weight=weight)
        return language.compute_language_model_loss(s.trained_labels.clamp(min=0), logits)

    def cached_decoder(self, max_sequence_length: int) -> CachedDecoder:
        """A decoder with a key/value cache, for generation; see `CachedDecoder`."""
        return CachedDecoder(self, max_sequence_length)


@contextlib.contextmanager
def _without_output_layer(language: LanguageModel) -> Iterator[None]:
    """Inside this context the language tower returns the output of its final norm instead of logits."""
    saved, language.post_process = language.post_process, False
    try:
        yield
    finally:
        language.post_process = saved


def _on_host(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.cpu()


@contextlib.contextmanager
def _of_gathered_input(layer: ColumnParallelLinear) -> Iterator[None]:
    """A sequence parallel column layer neither gathers its input nor reduces its input's gradient inside."""
    saved = layer.sequence_parallel, layer.disable_grad_reduce
    if layer.sequence_parallel:
        layer.sequence_parallel, layer.disable_grad_reduce = False, True
    try:
        yield
    finally:
        layer.sequence_parallel, layer.disable_grad_reduce = saved


def _insert(layer_sbh: Tensor, token_indices: Tensor, features: Tensor) -> Tensor:
    """[s, b, h] with each feature at its index along the flattened [s, b]; features of padding have index s * b and are dropped."""
    length, batch, hidden = layer_sbh.shape
    rows = torch.cat((layer_sbh.reshape(-1, hidden), layer_sbh.new_zeros(1, hidden)))
    return rows.index_copy(0, token_indices, features.to(layer_sbh.dtype))[:-1].view(length, batch, hidden)
