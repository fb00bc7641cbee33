"""The same samples for Energon's own loader: a cooker and two task encoders, for whoever trains with another loop than ours.

    from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset
    from qwen3vl_core.data.task_encoder import PackedTaskEncoder

    encoder = PackedTaskEncoder(ChatProcessor.from_pretrained("Qwen3-VL-4B-Instruct"), seq_length=4096)
    config = WorkerConfig(rank=rank, world_size=world, num_workers=4, data_parallel_group=group)
    dataset = get_train_dataset("data", worker_config=config, batch_size=None, packing_buffer_size=512, task_encoder=encoder,
                                shuffle_buffer_size=100, max_samples_per_sequence=100)
    for given in get_savable_loader(dataset):
        given.micro.model_inputs("cuda", torch.bfloat16), given.skips

Tokens, labels and pixels are those of `loader`; the order is Energon's, which depends on the number of ranks and workers.
A sample that cannot be used is left out, and comes with its reason in `skips` of the batch after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.energon import Batch as EnergonBatch
from megatron.energon import Cooker, DefaultTaskEncoder, Sample, SkipSample, basic_sample_keys, edataclass, stateless

from qwen3vl_core.data.batch import Batch, Encoded, collate, pack
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.micro_batches import Skip
from qwen3vl_core.data.packing import best_fit
from qwen3vl_core.data.processor import ChatProcessor, TokenizedSample
from qwen3vl_core.data.sample_encoder import SampleEncoder


@edataclass
class Stored(Sample):
    """A sample's files, as they are."""

    parts: dict[str, bytes]


@edataclass
class PlannedSample(Sample):
    """A sample whose tokens are known and whose pictures are still files."""

    parts: dict[str, bytes]
    planned: TokenizedSample


@edataclass
class EncodedSample(Sample):
    """One document, decoded."""

    encoded: Encoded


@edataclass
class PackedSample(Sample):
    """The documents of one row."""

    documents: list[Encoded]


@edataclass
class Given(EnergonBatch):
    """What the loader gives out."""

    micro: Batch
    skips: list[Skip]
    """Samples that were left out since the last batch of this worker."""


@stateless
def cook(raw: dict[str, Any]) -> Stored:
    """A crude sample (`CrudeWebdataset`) to its files."""
    return Stored(**basic_sample_keys(raw), parts={name: content for name, content in raw.items() if not name.startswith("__")})


class _ChatTaskEncoder(DefaultTaskEncoder[Stored, Any, Given, Given]):
    # the media are decoded here, when they are needed
    decoder = None
    cookers = [Cooker(cook)]  # noqa: RUF012 - Energon's declaration

    def __init__(self, processor: ChatProcessor, seq_length: int) -> None:
        super().__init__()
        self.encoder = SampleEncoder(processor, seq_length)
        # a note beside the work: no sample depends on it
        self._skips: list[Skip] = []

    def _tried(self, sample: Sample, made: Callable[[str], Any]) -> Any:
        """made(key). Raises SkipSample, and remembers why."""
        key = sample.__key__.rpartition("/")[2]
        try:
            return made(key)
        except DataError as error:
            self._skips.append(Skip(key, error.reason, " ".join(error.detail.split())[:500], sample.__key__.rpartition("/")[0]))
            raise SkipSample from None

    def _given(self, samples: list[Sample], micro: Batch) -> Given:
        skips, self._skips = self._skips, []
        return Given(
            __key__=[sample.__key__ for sample in samples], __restore_key__=tuple(sample.__restore_key__ for sample in samples),
            micro=micro, skips=skips,
        )  # fmt: skip

    def _settings(self) -> tuple[int, Any, Any]:
        processor = self.encoder.processor
        return processor.pad_token_id, processor.rules, processor.video_rules


class PaddedTaskEncoder(_ChatTaskEncoder):
    """A micro batch of rows, padded to its longest sample."""

    @stateless
    def encode_sample(self, sample: Stored) -> EncodedSample:
        """Raises SkipSample for a sample that cannot be used."""
        encoded = self._tried(sample, lambda key: self.encoder(key, sample.parts))
        return EncodedSample.derive_from(sample, encoded=encoded)

    @stateless
    def batch(self, samples: list[EncodedSample]) -> Given:
        """`collate` of the samples."""
        return self._given(samples, collate([sample.encoded for sample in samples], *self._settings()))


class PackedTaskEncoder(_ChatTaskEncoder):
    """A micro batch is one row of documents (`batch_size=1`); only what is chosen for a row is decoded.

    multiple: what each document's length is padded to a multiple of.
    """

    def __init__(self, processor: ChatProcessor, seq_length: int, *, multiple: int = 1) -> None:
        super().__init__(processor, seq_length)
        self.multiple = multiple

    def _padded(self, planned: TokenizedSample) -> int:
        return -(-len(planned.ids) // self.multiple) * self.multiple

    @stateless
    def preencode_sample(self, sample: Stored) -> PlannedSample:
        """Tokens alone: the packing buffer holds files, not pixels. Raises SkipSample."""

        def made(key: str) -> TokenizedSample:
            planned, room = self.encoder.plan(key, sample.parts), self.encoder.seq_length
            if self._padded(planned) > room:
                raise DataError("too_long", f"{len(planned.ids)} tokens, {room // self.multiple * self.multiple} at most in this layout")
            return planned

        return PlannedSample.derive_from(sample, parts=sample.parts, planned=self._tried(sample, made))

    def select_samples_to_pack(self, samples: list[PlannedSample]) -> list[list[PlannedSample]]:
        """Best fit over Energon's packing buffer."""
        groups = best_fit([self._padded(sample.planned) for sample in samples], self.encoder.seq_length)
        return [[samples[place] for place in sorted(group)] for group in groups]

    @stateless
    def postencode_sample(self, sample: PlannedSample) -> EncodedSample:
        """Decode what was chosen. Raises SkipSample."""
        encoded = self._tried(sample, lambda key: self.encoder.finish(sample.planned, sample.parts))
        return EncodedSample.derive_from(sample, encoded=encoded)

    @stateless
    def pack_selected_samples(self, samples: list[EncodedSample]) -> PackedSample:
        """The documents of a row."""
        return PackedSample.derive_from(samples[0], documents=[sample.encoded for sample in samples])

    @stateless
    def batch(self, samples: list[PackedSample]) -> Given:
        """`pack` of the row's documents."""
        documents = [document for sample in samples for document in sample.documents]
        return self._given(samples, pack(documents, *self._settings(), multiple=self.multiple))
