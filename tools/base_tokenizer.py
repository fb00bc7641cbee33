"""The demo model's tokenizer and processor files: a byte-level BPE of 1024 tokens, learnt from the scenes' captions.

The last 26 ids are Qwen's added tokens in Qwen's own order, the text is split by Qwen's rule, and the folder is laid
out as Qwen3-VL's processor expects it. No network.

    python -m tools.base_tokenizer --to DIR
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3vl_core.demo.captions import LLAVA_PROMPTS, PROMPT, long_caption, short_caption
from qwen3vl_core.demo.scenes import SIZE, sample_scene
from qwen3vl_core.errors import WorkError

VOCABULARY = 1024
"""Tokens in all, added ones included."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Tokens of their own that decoding keeps: to Qwen they are text."""

# the rule by which Qwen splits text before it merges bytes
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Written to render turns of text, pictures and videos as Qwen3-VL's own template does; knows no tools.
_CHAT_TEMPLATE = """{%- set image_count = namespace(value=0) -%}
{%- set video_count = namespace(value=0) -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set image_count.value = image_count.value + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ image_count.value ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set video_count.value = video_count.value + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ video_count.value ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# Words of ordinary captions, most of which no scene needs: without them the templates do not fill the vocabulary, and
# a user's own captions would take many tokens.
_ORDINARY_WORDS = """
a photo of the people in front of a wooden table with food and drinks this painting shows an old house near the river
water bridge boat train station airport plane bus truck bicycle motorcycle road sign traffic light store shop market
kitchen bedroom bathroom living room sofa bed window door wall floor lamp mirror television computer laptop phone camera
book glass cup bottle plate bowl spoon knife fork cake pizza bread fruit apple banana orange vegetables salad meat
coffee tea boy girl baby family friends crowd players team game soccer baseball tennis basketball skateboard surfboard
skis snowboard shirt dress pants shoes hat jacket glasses bag suitcase umbrella tie hair face hand eyes smile holding
wearing riding walking running playing eating drinking looking talking cooking reading sleeping flying jumping swimming
driving working standing large small tall short young old new modern vintage beautiful colorful dark light brown gray
pink gold silver metal wood stone bird cow sheep elephant bear zebra giraffe lion tiger fish butterfly flower flowers
tree trees leaves garden park lake mountain sky cloud clouds rain morning evening winter summer spring autumn christmas
wedding birthday party event show concert stage logo design poster illustration drawing cartoon map chart background
pattern text letter number image black and white close up view from above next to on top of behind under between across
through during while which that have been their there these
"""


def corpus(captions: int = 6000) -> Iterator[str]:
    """The text to learn merges from: ordinary words, that many long captions, short captions and prompts."""
    rng, words = random.Random(5), _ORDINARY_WORDS.split()
    for _ in range(400):
        yield " ".join(rng.choices(words, k=12))
    for i in range(captions):
        rng = random.Random(777 + i)
        scene = sample_scene(rng)
        yield long_caption(scene, rng)
        if i % 2 == 0:
            yield short_caption(scene, rng)
        if i % 10 == 0:
            yield from LLAVA_PROMPTS
            yield "user\n" + PROMPT
            yield "assistant\nsystem\nYou are a helpful assistant."


def learn_tokenizer() -> Tokenizer:
    """Trains the tokenizer on the corpus and assigns the last ids to the added tokens. About a second."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    to_learn = VOCABULARY - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=to_learn,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # the added tokens' ids follow from the number learnt, and the model's config.json holds some of them
    if tokenizer.get_vocab_size() != to_learn:
        raise WorkError(
            f"tokenizer: the corpus gave {tokenizer.get_vocab_size()} tokens; the demo model needs {to_learn}; lengthen the corpus"
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 4096,
        "extra_special_tokens": {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "special": token in SPECIAL_TOKENS,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for token in SPECIAL_TOKENS + PLAIN_TOKENS
        },
    }


def _image_config() -> dict[str, Any]:
    """Settings of the image processor: scale to an area between 64x64 and SIZE x SIZE pixels, values to -1..1."""
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 64 * 64, "longest_edge": SIZE * SIZE},
    }


def _video_config() -> dict[str, Any]:
    """Settings of the video processor: the image processor's, with its own type and resampling."""
    shared = {key: value for key, value in _image_config().items() if key not in ("image_processor_type", "resample")}
    return {**shared, "video_processor_type": "Qwen3VLVideoProcessor"}


def write_processor(folder: Path) -> Tokenizer:
    """Learns the tokenizer and writes all five files of a processor to the folder, which is made if it is missing.

    The files: tokenizer.json, tokenizer_config.json, chat_template.jinja, preprocessor_config.json and
    video_preprocessor_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = learn_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    configs = {
        "tokenizer_config.json": _tokenizer_config(tokenizer),
        "preprocessor_config.json": _image_config(),
        "video_preprocessor_config.json": _video_config(),
    }
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config, indent=2))
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the demo model's tokenizer and processor files.")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write the files to")
    folder = parser.parse_args(arguments).to
    tokenizer = write_processor(folder)
    print(f"{folder}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
