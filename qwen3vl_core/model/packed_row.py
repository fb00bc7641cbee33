"""Megatron's description of a packed sequence, which also knows its lengths on the host."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class PackedRow(PackedSeqParams):
    """`lengths`: of each document or frame, for attention that is computed one after the other; the GPU is never asked for them."""

    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, cu_seqlens: Tensor, longest: int, lengths: tuple[int, ...]) -> PackedRow:
        """cu_seqlens int32 [n + 1] on the device; longest: what none of the lengths exceeds."""
        return cls(
            qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens, max_seqlen_q=longest, max_seqlen_kv=longest,
            lengths=lengths,
        )  # fmt: skip
