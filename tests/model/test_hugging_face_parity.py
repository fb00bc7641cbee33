"""The model equals `Qwen3VLForConditionalGeneration` in fp32: logits, vision features, deepstack features, gradients."""

from __future__ import annotations

import pytest
import torch

import qwen3vl_core
from tests import tiny
from tests.model.parity import TOLERANCE, cached_beside_full, check_gradients, reference_logits


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path_factory):
    """(Hugging Face model, ours loaded from the directory that Hugging Face saved)."""
    reference = tiny.hf_model(seed=int(request.param), tied=request.param)
    folder = tiny.save(reference, tmp_path_factory.mktemp("hf"))
    return reference, qwen3vl_core.load(folder)


@pytest.mark.parametrize("pad_left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("name", tiny.BATCHES)
def test_logits_equal_hugging_face(pair, name, pad_left):
    reference, model = pair
    inputs = tiny.BATCHES[name]().inputs(pad_left=pad_left)
    with torch.no_grad():
        expected, logits = reference_logits(reference, inputs), model(**inputs)
    assert logits.shape == expected.shape == (*inputs["input_ids"].shape, tiny.VOCABULARY)
    real = inputs["attention_mask"].bool()
    assert (logits - expected)[real].abs().max() < TOLERANCE


def test_vision_and_each_deepstack_feature_equal_hugging_face(pair):
    reference, model = pair
    inputs = tiny.BATCHES["three pictures of different sizes"]().inputs()
    with torch.no_grad():
        expected = reference.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        structure = model.structure(inputs["input_ids"], inputs["attention_mask"], inputs["image_grid_thw"])
        features, deepstack = model.vision_model(inputs["pixel_values"], structure.vision)
    assert (features - expected.pooler_output).abs().max() < TOLERANCE
    assert len(deepstack) == len(expected.deepstack_features) == 3
    for ours, theirs in zip(deepstack, expected.deepstack_features, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", tiny.BATCHES)
def test_every_gradient_equals_hugging_face(pair, name, tmp_path):
    check_gradients(pair, tiny.BATCHES[name]().inputs(), tmp_path, least=20)


def test_all_hyperparameters_come_from_the_config(tmp_path):
    """A model whose config.json differs from every published size in every number."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = tiny.hf_config(layers=5, vision_layers=3, deepstack=(0, 2)).to_dict()
    config["text_config"] |= {"rms_norm_eps": 1e-2, "rope_parameters": config["text_config"]["rope_parameters"] | {
        "rope_theta": 777.5, "mrope_section": [2, 3, 3]}}  # fmt: skip
    config["vision_config"] |= {"patch_size": 6, "temporal_patch_size": 1, "spatial_merge_size": 3, "num_position_embeddings": 49,
                                "rope_parameters": {"rope_type": "axial", "rope_theta": 321.0}}  # fmt: skip
    config |= {"image_token_id": 11, "video_token_id": 12, "vision_start_token_id": 13, "vision_end_token_id": 14}
    torch.manual_seed(1)
    reference = tiny.randomised(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).float().eval())
    model = qwen3vl_core.load(tiny.save(reference, tmp_path))
    ids = torch.tensor([[5, 13, *[11] * 6, 14, 7, 8, 9, 13, 12, 12, 14, 20, 21]])
    grids = {"image_grid_thw": torch.tensor([[1, 6, 9]]), "video_grid_thw": torch.tensor([[1, 3, 6]])}
    pixels = {"pixel_values": torch.randn(54, 108), "pixel_values_videos": torch.randn(18, 108)}
    with torch.no_grad():
        expected = reference(input_ids=ids, **grids, **pixels, mm_token_type_ids=(ids == 11).int() + 2 * (ids == 12).int()).logits
        assert (model(ids, **grids, **pixels) - expected).abs().max() < TOLERANCE


def test_cached_generation_has_the_logits_of_one_full_pass(pair):
    _, model = pair
    for cached, full in cached_beside_full(model, tiny.BATCHES["one picture"]().inputs(), steps=5):
        assert (cached - full).abs().max() < TOLERANCE


def test_mismatched_vision_tokens_are_reported(pair):
    _, model = pair
    inputs = tiny.BATCHES["one picture"]().inputs()
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 8]])
    with pytest.raises(ValueError, match="row 0: 6 image tokens at 4, but its grid has 2 x 4 = 8"):
        model(**inputs)


def test_a_picture_without_tokens_is_refused(pair):
    _, model = pair
    inputs = tiny.BATCHES["one picture"]().inputs()
    inputs["input_ids"] = torch.full_like(inputs["input_ids"], 5)
    with pytest.raises(ValueError, match="1 pictures and 0 video frames given"):
        model(**inputs)


def test_a_call_without_tokens_is_refused(pair):
    _, model = pair
    inputs = tiny.BATCHES["one picture"]().inputs()
    del inputs["input_ids"]
    with pytest.raises(ValueError, match="the model needs input_ids, or a structure"):
        model(**inputs)


def test_transformers_own_loading_works_in_the_same_process(pair, tmp_path):
    """What is patched for Megatron must not reach `from_pretrained`, which builds on the meta device first."""
    from transformers import Qwen3VLForConditionalGeneration

    reference, _ = pair
    again = Qwen3VLForConditionalGeneration.from_pretrained(tiny.save(reference, tmp_path)).eval()
    for (name, ours), (_, theirs) in zip(again.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    inputs = tiny.BATCHES["one picture"]().inputs()
    with torch.no_grad():
        assert torch.equal(reference_logits(again, inputs), reference_logits(reference, inputs))
