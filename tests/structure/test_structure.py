"""The structure of a micro batch: built on the host with fixed shapes; losses and gradients are the same in every form."""

from __future__ import annotations

import pickle
from dataclasses import replace

from qwen3vl_core.model import process_groups

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from qwen3vl_core.checkpoint.load import load
from qwen3vl_core.data.batch import Batch, Encoded, collate, pack
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.buckets import LEAST_ROW, bucket, packed_row
from qwen3vl_core.structure.micro_batch import IGNORED, StructureRules
from qwen3vl_core.training.token_loss import token_loss
from tests import tiny

RULES = PictureRules()
VIDEO_RULES = PictureRules()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    process_groups.initialize()
    model = load(tiny.save(tiny.hf_model(), tmp_path_factory.mktemp("tiny")))
    # logits stay as a training step makes them
    model.language_model.output_layer.gather_output = False
    return model


def sample(seed: int, *parts) -> Encoded:
    """A sample whose last third is trained; parts as in `tiny.Conversations.row`."""
    made = tiny.Conversations(seed).row(*parts)
    noise = np.random.default_rng(seed)
    ids = np.array(made.rows[0])
    labels = np.full_like(ids, IGNORED)
    first = len(ids) * 2 // 3
    labels[first:-1] = ids[first + 1 :]

    def media(grids, width):
        count = sum(t * h * w for t, h, w in grids)
        return noise.integers(0, 256, (count, width), dtype=np.uint8), np.array(grids, dtype=np.int64).reshape(-1, 3)

    return Encoded(str(seed), ids, labels, *media(made.pictures, 768), *media(made.videos, 1536))


SAMPLES = {
    "pictures": [sample(1, 5, ("image", 4, 6), 9), sample(2, 2, ("image", 2, 4), 2, ("image", 8, 4), 7)],
    "text alone": [sample(3, 12), sample(4, 30)],
    "videos and pictures": [sample(5, 3, ("video", 2, 4, 4), 6), sample(6, 14), sample(7, 1, ("image", 4, 4), 2, ("video", 1, 2, 6), 8)],
    "one sample": [sample(8, 4, ("image", 6, 6), 11)],
}


def batches(name: str) -> dict[str, Batch]:
    made = SAMPLES[name]
    return {"rows": collate(made, 0, RULES, VIDEO_RULES), "packed": pack(made, 0, RULES, VIDEO_RULES)}


def rules(buckets: bool) -> StructureRules:
    return StructureRules(Architecture.from_config(tiny.hf_config().to_dict()), buckets=buckets, seq_length=1024)


def loss_and_gradients(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    inputs = batch.step_inputs("cpu", torch.float32)
    total, count, _ = token_loss(inputs["structure"].loss_labels, model(**inputs))
    total.backward()
    return total.detach(), count, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["rows", "packed"])
@pytest.mark.parametrize("name", SAMPLES)
def test_bucketed_rows_have_the_loss_and_gradients_of_unpadded_rows(model, name, form):
    batch = batches(name)[form]
    plain, joined = batch.structured(rules(False)), batch.structured(rules(True))
    assert joined.structure.input_ids.shape[1] % LEAST_ROW == 0 and joined.structure.input_ids.shape[0] == 1
    assert joined.structure.trained is not None
    (total, count, gradients), (other, same_count, others) = (loss_and_gradients(model, b) for b in (plain, joined))
    assert count == same_count == batch.tokens
    assert float(other) == pytest.approx(float(total), rel=1e-5)
    assert gradients.keys() == others.keys()
    for key, value in gradients.items():
        assert float((value - others[key]).norm()) <= 2e-4 * float(value.norm()) + 1e-6, key


@pytest.mark.parametrize("form", ["rows", "packed", "rows in buckets", "packed in buckets"])
@pytest.mark.parametrize("name", SAMPLES)
def test_forward_and_backward_read_no_value_on_the_host(model, name, form):
    """Fake tensors have no values: reading one (`nonzero`, `item`, `tolist`, a branch on a tensor) raises."""
    batch = batches(name)[form.split()[0]].structured(rules("buckets" in form))
    real = batch.step_inputs("cpu", torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        structure = real["structure"].mapped(mode.from_tensor)
        pixels = None if real["pixel_values"] is None else mode.from_tensor(real["pixel_values"])
        total, _, _ = token_loss(structure.loss_labels, model(structure=structure, pixel_values=pixels))
        total.backward()
        model.zero_grad()
        with pytest.raises(DataDependentOutputException):
            total.item()


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_batch_survives_the_transfer_from_a_loader_process(name, buckets):
    batch = batches(name)["packed"].structured(rules(buckets))
    other = pickle.loads(pickle.dumps(batch))  # as between a loader process and this one
    assert other.structure.shape() == batch.structure.shape() and other.keys == batch.keys
    pairs = zip(batch.structure.tensors().items(), other.structure.tensors().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert torch.equal(other.patches, batch.patches) and torch.equal(other.video_patches, batch.video_patches)


def test_batches_of_one_bucket_have_one_shape():
    """The number of documents, pictures and tokens may differ within a bucket, but not the shapes."""
    one, two = (
        [sample(seed, 5 + seed % 3, ("image", 4, 2 + 2 * (seed % 2)), words) for seed in range(n)] for n, words in ((5, 24), (6, 20))
    )
    shapes = {pack(samples, 0, RULES, VIDEO_RULES).structured(rules(True)).structure.shape() for samples in (one, two)}
    assert len(shapes) == 1


def test_pixels_that_do_not_fit_their_structure_are_refused(model):
    batch = batches("pictures")["packed"].structured(rules(True))
    inputs = batch.step_inputs("cpu", torch.float32)
    with pytest.raises(ValueError, match="patches, but"):
        model(structure=inputs["structure"], pixel_values=inputs["pixel_values"][:-4])
    broken = replace(batch, structure=None, image_grid_thw=batch.image_grid_thw[:-1])
    with pytest.raises(ValueError, match=r"(vision|image) tokens"):
        broken.structured(rules(True))


@given(st.integers(1, 1 << 20), st.sampled_from([1, 8, 64, 512]))
def test_a_bucket_is_at_least_its_size_and_little_more(size, least):
    rounded = bucket(size, least)
    assert size <= rounded <= size + max(size / 16, least)
    assert bucket(rounded, least) == rounded


@given(st.integers(1, 8192), st.sampled_from([512, 1024, 4096, 8192]))
def test_packed_rows_have_few_distinct_lengths(tokens, seq_length):
    length = packed_row(tokens, seq_length, 256)
    assert length >= tokens and length % 256 == 0
    if tokens <= seq_length:
        assert length in {max(256, seq_length >> shift) for shift in range(8)}
        assert packed_row(tokens, seq_length, 256, whole=True) == seq_length
    else:
        with pytest.raises(ValueError, match=f"a packed row of {tokens} tokens, more than the {seq_length} that every rank expects"):
            packed_row(tokens, seq_length, 256, whole=True)
