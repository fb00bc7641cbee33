"""Core attention of the local layer spec, on `torch.nn.functional.scaled_dot_product_attention`.

Replaces Transformer Engine's `DotProductAttention`, which needs a GPU: grouped queries, causal and bidirectional, padded
batches (`sbhd`) and packed sequences (`thd`), context parallelism by gathering keys and values. Needs no CUDA.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model.apply_rope import Rotating
from qwen3vl_core.model.packed_row import PackedRow

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen3vl_core.structure.context_parallel import gathered_order, token_index


class LocalAttention(MegatronModule):
    """softmax(q k^T / sqrt(d)) v for this rank's heads and queries."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def _attend(self, query_bhsd: Tensor, key_bhsd: Tensor, value_bhsd: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            query_bhsd, key_bhsd, value_bhsd, attn_mask=mask, is_causal=causal, scale=self.softmax_scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=query_bhsd.shape[1] != key_bhsd.shape[1],
        )  # fmt: skip

    def _packed(self, query_thd: Tensor, key_thd: Tensor, value_thd: Tensor, packed: PackedRow, causal: bool) -> Tensor:
        """Each segment attends to itself: as one batch if all have the same length (frames, pictures of one size)."""
        lengths = list(packed.lengths)
        tokens, heads, dim = query_thd.shape
        if len(set(lengths)) == 1:
            segments = [t.view(len(lengths), lengths[0], t.shape[1], t.shape[2]) for t in (query_thd, key_thd, value_thd)]
            query_bhsd, key_bhsd, value_bhsd = (t.transpose(1, 2) for t in segments)
            out_bhsd = self._attend(query_bhsd, key_bhsd, value_bhsd, causal)
            return out_bhsd.transpose(1, 2).reshape(tokens, heads * dim)
        outputs = []
        for segment in zip(*(t.split(lengths) for t in (query_thd, key_thd, value_thd)), strict=True):
            query_bhsd, key_bhsd, value_bhsd = (t.transpose(0, 1).unsqueeze(0) for t in segment)
            out_bhsd = self._attend(query_bhsd, key_bhsd, value_bhsd, causal)
            outputs.append(out_bhsd.squeeze(0).transpose(0, 1).reshape(-1, heads * dim))
        return torch.cat(outputs)

    def _split_over_ranks(
        self, group: Any, query_sbhd: Tensor, key_sbhd: Tensor, value_sbhd: Tensor, lengths: tuple[int, ...], causal: bool
    ) -> Tensor:
        """This rank's queries against the keys and values of all ranks of the group, gathered along the sequence."""
        size, rank = group.size(), group.rank()
        key_sbhd, value_sbhd = (gather_from_sequence_parallel_region(t, True, group=group) for t in (key_sbhd, value_sbhd))
        length = key_sbhd.shape[0]
        key_at, query_at = gathered_order(length, lengths, size), token_index(length, lengths, size, rank)
        mask = query_at[:, None] >= key_at[None, :] if causal else torch.ones(len(query_at), length, dtype=torch.bool)
        if lengths:
            ends = torch.tensor(lengths).cumsum(0)
            documents = [torch.bucketize(at, ends, right=True) for at in (query_at, key_at)]
            mask &= documents[0][:, None] == documents[1][None, :]
        query_bhsd, key_bhsd, value_bhsd = (t.permute(1, 2, 0, 3) for t in (query_sbhd, key_sbhd, value_sbhd))
        out_bhsd = self._attend(query_bhsd, key_bhsd, value_bhsd, False, mask.to(query_sbhd.device))
        return out_bhsd.permute(2, 0, 1, 3).flatten(2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
    ) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]; packed: [t, heads, d] -> [t, heads * d].

        attention_mask is ignored: the model moves padding to the end of each row, so the causal mask alone is exact.
        """
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None:
            if self.cp_group is None:
                return self._packed(query, key, value, packed_seq_params, causal)
            query_sbhd, key_sbhd, value_sbhd = (t.unsqueeze(1) for t in (query, key, value))
            return self._split_over_ranks(self.cp_group, query_sbhd, key_sbhd, value_sbhd, packed_seq_params.lengths, causal).squeeze(1)
        if self.cp_group is not None:
            return self._split_over_ranks(self.cp_group, query, key, value, (), causal)
        length, batch, heads, dim = query.shape
        query_bhsd, key_bhsd, value_bhsd = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out_bhsd = self._attend(query_bhsd, key_bhsd, value_bhsd, causal)
        return out_bhsd.permute(2, 0, 1, 3).reshape(length, batch, heads * dim)


class LocalCoreAttention(Rotating, LocalAttention):
    """`LocalAttention` that first rotates query and key."""


class FlashCoreAttention(LocalCoreAttention):
    """The same on PyTorch's flash attention kernels (bf16 or fp16, CUDA), all documents of a packed row in one call.

    For `--attention flash` where the flash-attn package, which Transformer Engine would call, is not installed.
    """

    def _attend(self, query_bhsd: Tensor, key_bhsd: Tensor, value_bhsd: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("flash attention takes no mask, which context parallelism needs here; use --attention fused")
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super()._attend(query_bhsd, key_bhsd, value_bhsd, causal)

    def _packed(self, query_thd: Tensor, key_thd: Tensor, value_thd: Tensor, packed: PackedRow, causal: bool) -> Tensor:
        bounds = packed.cu_seqlens_q
        out_thd = torch.ops.aten._flash_attention_forward(
            query_thd, key_thd, value_thd, bounds, bounds, packed.max_seqlen_q, packed.max_seqlen_q,
            self.dropout if self.training else 0.0, causal, False, scale=self.softmax_scale,
        )[0]  # fmt: skip
        return out_thd.flatten(1)
