"""The architecture comes from config.json; the published table only checks it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen3vl_core.errors import RequestError
from qwen3vl_core.sizes import SIZES, Architecture, check_size, size_of

PUBLISHED_4B: dict[str, Any] = {
    "model_type": "qwen3_vl", "tie_word_embeddings": True, "image_token_id": 151655, "video_token_id": 151656,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "text_config": {
        "num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 9728, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "patch_size": 16,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 2560, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}  # fmt: skip


def changed(part: str, **values) -> str:
    """The published config with other values in one of its parts."""
    return json.dumps(PUBLISHED_4B | {part: PUBLISHED_4B[part] | values})


def test_both_formats_of_rope_parameters_are_read():
    old = Architecture.from_config(PUBLISHED_4B)
    new_text = dict(PUBLISHED_4B["text_config"])
    new_text["rope_parameters"] = {"rope_theta": new_text.pop("rope_theta"), **new_text.pop("rope_scaling")}
    assert Architecture.from_config(PUBLISHED_4B | {"text_config": new_text}) == old
    assert (old.rope_theta, old.mrope_section) == (5e6, (24, 20, 20))


def test_a_published_size_is_recognised():
    assert size_of(Architecture.from_config(PUBLISHED_4B)) == "4B"
    check_size("4B", Architecture.from_config(PUBLISHED_4B), "model")


@pytest.mark.parametrize("name", [n for n in SIZES if n != "4B"])
def test_another_size_is_refused_with_both_names(name):
    with pytest.raises(RequestError, match=f"--size {name}: model is size 4B .*use 4B"):
        check_size(name, Architecture.from_config(PUBLISHED_4B), "model")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"model_type": "llama"}', "model_type is 'llama'"),
        ('{"model_type": "qwen3_vl"}', "key 'text_config' is missing"),
        ('{"model_type": "qwen3_vl", "text_config": 1, "vision_config": 2}', "a value has the wrong type"),
        (changed("text_config", rope_parameters={"rope_type": "yarn", "rope_theta": 5e6}), "rope_type is 'yarn'; .* 'default'"),
        (changed("text_config", hidden_act="gelu"), "text_config.hidden_act is 'gelu'; .* 'silu'"),
        (changed("text_config", attention_bias=True), "text_config.attention_bias is True"),
        (changed("vision_config", hidden_act="silu"), "vision_config.hidden_act is 'silu'; .* 'gelu_pytorch_tanh'"),
        (changed("vision_config", deepstack_visual_indexes=None), "a value has the wrong type"),
        (changed("text_config", norm_topk_prob=False), "text_config.norm_topk_prob is False; only True is supported"),
        (changed("vision_config", rope_parameters={"rope_type": "yarn"}), "vision_config.rope_parameters.rope_type is 'yarn'"),
        (changed("vision_config", deepstack_visual_indexes=[11, 5, 17]), "not ascending numbers below the depth, 24"),
        (changed("vision_config", deepstack_visual_indexes=[5, 5]), "not ascending numbers below the depth, 24"),
        (changed("vision_config", deepstack_visual_indexes=[5, 24]), "not ascending numbers below the depth, 24"),
        (changed("text_config", num_hidden_layers=2), "more than the 2 language layers that add one each"),
        (changed("vision_config", out_hidden_size=1024), "out_hidden_size is 1024, the language model's hidden_size is 2560"),
        (changed("text_config", rope_parameters={"rope_theta": 5e6, "mrope_section": [32, 32]}), "not three numbers"),
        (changed("text_config", rope_theta="much"), "a value has the wrong type"),
    ],
)
def test_an_unreadable_config_is_a_one_line_error(tmp_path, text, line):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RequestError, match=line) as caught:
        Architecture.read(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_config_is_a_one_line_error(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        Architecture.read(tmp_path)


def test_a_config_records_its_path(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_4B))
    assert Architecture.read(tmp_path).raw == PUBLISHED_4B
