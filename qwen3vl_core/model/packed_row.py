"""Megatron's description of a packed sequence, with its lengths on the host."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class PackedRow(PackedSeqParams):
    """`lengths`: of each document or frame, so that attention can be computed one by one without reading them from the GPU."""

    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int, lengths: tuple[int, ...]) -> PackedRow:
        """cu_seqlens int32 [n + 1] on the device; max_seqlen: an upper bound of the lengths."""
        return cls(
            qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens, max_seqlen_q=max_seqlen, max_seqlen_kv=max_seqlen,
            lengths=lengths,
        )  # fmt: skip
