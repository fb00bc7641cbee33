"""The recipe of the bundled base model: its shape, its samples, and a short training that writes a model or nothing."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

import qwen3vl_core.demo
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.demo.captions import LLAVA_PROMPTS, PROMPT
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.scenes import SIZE, sample_scene
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, WorkError
from qwen3vl_core.sizes import Architecture, size_of
from qwen3vl_core.structure.micro_batch import IGNORED
from tools import base_model
from tools.base_samples import LONG_TOKENS, TAGS_TOKENS, SampleMaker, Samples, SampleSource, prompt_ids, tags
from tools.train_base import Recipe, held_out_score, main, read_arguments

SHIPPED = Path(qwen3vl_core.demo.__file__).parent / "base_hf"
SMALL = ["--steps", "3", "--batch-size", "2", "--lr", "3e-3"]


def shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def drawn(tokenizer: Tokenizer, seeds: range) -> Samples:
    samples = Samples(*(np.zeros((len(seeds), *shape), kind) for kind, shape in Samples.SHAPES))
    for row, seed in enumerate(seeds):
        SampleMaker(tokenizer).make(samples, row, seed)
    return samples


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def pool(tokenizer) -> base_model.Pool:
    pool = base_model.Pool(4, torch.device("cpu"), seed=0)
    pool.put(drawn(tokenizer, range(4)))
    return pool


@pytest.fixture(scope="module")
def shipped() -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The output of three steps on the CPU."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    assert main(["--to", str(folder), *SMALL, "--workers", "1", "--held-out", "0"]) == EXIT_DONE
    return folder


def test_the_defaults_are_those_of_the_bundled_model():
    recipe = read_arguments(["--to", "model"])
    assert (recipe.minutes, recipe.steps, recipe.batch_size, recipe.lr, recipe.seed) == (7.8, None, 256, 1.5e-3, 0)
    tags_part = [recipe.is_long(step, 0.2) for step in range(16)]
    assert tags_part.count(True) == 2 and all(recipe.is_long(step, 0.35) for step in range(16))
    assert recipe.rate(0, 0.0) == pytest.approx(1.5e-3 / 200) and recipe.rate(1000, 0.34) == 1.5e-3
    later = [recipe.rate(1000, share / 100) for share in range(35, 101)]
    assert later == sorted(later, reverse=True) and later[0] == pytest.approx(1.5e-3, rel=1e-2) and later[-1] == pytest.approx(1e-6)


def test_a_short_training_reaches_its_learning_rate():
    assert max(Recipe(Path(), steps=3).rate(step, step / 3) for step in range(3)) == 1.5e-3


def test_tags_name_every_attribute_in_few_tokens(tokenizer):
    for seed in range(300):
        scene = sample_scene(random.Random(seed))
        text = tags(scene)
        words = [scene.colour, scene.main, scene.pose, scene.side, scene.companion_colour, scene.companion, scene.sky_colour, scene.sky]
        assert all(word in text for word in [*words, scene.place, scene.time] if word)
        assert ("nothing" in text) == (scene.companion is None) and ("empty" in text) == (scene.sky is None)
        assert len(prompt_ids(tokenizer, "Tags:")) + len(tokenizer.encode(text).ids) < TAGS_TOKENS


def test_a_sample_is_prompt_and_answer_with_the_answer_trained(tokenizer, pool):
    for long, room in ((True, LONG_TOKENS), (False, TAGS_TOKENS)):
        pictures, ids, labels = pool.batch(16, long)
        assert pictures.shape == (16, SIZE, SIZE, 3) and ids.shape == labels.shape and ids.shape[1] <= room
        answers = {example(seed)[2] if long else tags(example(seed)[0]) for seed in range(4)}
        prompts = {PROMPT, *LLAVA_PROMPTS} if long else {"Tags:"}
        for row, trained_ids in zip(ids.tolist(), labels.tolist(), strict=True):
            answer = [i for i in trained_ids if i != IGNORED]
            begin = next(place for place, label in enumerate(trained_ids) if label != IGNORED)
            assert answer[-1] == base_model.END and tokenizer.decode(answer) in answers
            assert row[begin : begin + len(answer)] == answer
            assert row[:begin] in [prompt_ids(tokenizer, prompt) for prompt in prompts]
            assert set(row[begin + len(answer) :]) <= {base_model.PAD}


def test_the_ring_keeps_the_newest_samples(tokenizer):
    pool = base_model.Pool(4, torch.device("cpu"), seed=0)
    for first in (0, 2, 4):
        pool.put(drawn(tokenizer, range(first, first + 2)))
    pictures, _, _ = pool.batch(64, long=False)
    newest = {np.asarray(example(seed)[1]).tobytes() for seed in range(2, 6)}
    assert pool.drawn == 6 and {picture.numpy().tobytes() for picture in pictures} == newest


def test_a_batch_is_what_the_processor_and_the_model_make_of_each_picture(tokenizer, shipped):
    """The short cuts of the training (patches, positions, attention of a whole batch) change no number."""
    processor = ChatProcessor.from_pretrained(SHIPPED)
    pictures = [example(seed, "heldout")[1] for seed in range(2)]
    alone = [processor.prompt([picture], PROMPT) for picture in pictures]
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    ids = torch.tensor([prompt_ids(tokenizer, PROMPT)] * 2)
    assert torch.equal(ids, torch.cat([one["input_ids"] for one in alone]))
    patches = base_model.patchify(stacked)
    assert (patches - torch.cat([one["pixel_values"] for one in alone])).abs().max() < 1e-6

    batched = Qwen3VLForConditionalGeneration(shipped.config)
    batched.load_state_dict(shipped.state_dict())
    base_model.batch_pictures(batched.eval())
    positions = base_model.prompt_positions(batched, tokenizer, LONG_TOKENS)[:, :, : ids.shape[1]].expand(3, 2, -1)
    with torch.no_grad():
        wanted = torch.cat([shipped(**one, mm_token_type_ids=(one["input_ids"] == base_model.IMAGE).int()).logits for one in alone])
        made = batched(
            input_ids=ids, pixel_values=patches, image_grid_thw=base_model.grid_of(2, ids.device), position_ids=positions, use_cache=False
        )
    assert (made.logits - wanted).abs().max() < 1e-4


def test_the_bundled_model_knows_these_samples(tokenizer, pool, shipped):
    positions = base_model.prompt_positions(shipped, tokenizer, LONG_TOKENS)
    batched = Qwen3VLForConditionalGeneration(shipped.config)
    batched.load_state_dict(shipped.state_dict())
    with torch.no_grad():
        loss = base_model.caption_loss(base_model.batch_pictures(batched), *pool.batch(8, long=True), positions=positions)
    # the paraphrases are random
    assert loss < 0.1


def test_the_config_is_the_bundled_models(trained):
    made, bundled = (Architecture.read(folder) for folder in (trained, SHIPPED))
    assert made == bundled and size_of(made) == "tiny"
    assert made.raw.keys() == bundled.raw.keys()
    assert shapes(trained) == shapes(SHIPPED)


def test_a_short_training_writes_a_model_that_loads_and_learns(trained, tokenizer, pool):
    assert {file.name for file in trained.iterdir()} == {file.name for file in SHIPPED.iterdir()}
    assert [path.name for path in trained.parent.iterdir()] == ["model"]
    model = Qwen3VLForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    assert not torch.equal(model.state_dict()["lm_head.weight"], base_model.new_model(0).state_dict()["lm_head.weight"])
    positions = base_model.prompt_positions(model, tokenizer, LONG_TOKENS)
    base_model.batch_pictures(model)
    batch = pool.batch(4, long=False)
    optimizer = torch.optim.AdamW(base_model.parameter_groups(model, 0.05), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = base_model.caption_loss(model, *batch, positions=positions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


def test_a_seed_and_a_number_of_steps_give_one_model_whatever_the_workers(trained, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["--to", str(other), *SMALL, "--workers", "2", "--held-out", "1"]) == EXIT_DONE
    assert (other / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    shown = capsys.readouterr()
    assert f"{other}: 3 steps" in shown.out and "\n1 held-out scenes: " in shown.out
    last = [line for line in shown.err.splitlines() if line.startswith("train")][-1]
    assert re.fullmatch(r"train 100%  step 3 of 3  loss \d+\.\d{4}  lr \d\.\de-0\d  [\d,]+ scenes/s  in \d:\d\d", last)


def test_the_score_counts_what_the_captions_name(tokenizer):
    text = held_out_score(SHIPPED, tokenizer, torch.device("cpu"), 2)
    assert text.startswith("2 held-out scenes: 100.0% of the attributes named, 1") and "sky_colour" in text


def test_a_diverging_training_leaves_nothing(tmp_path, capsys):
    arguments = ["--steps", "3", "--batch-size", "1", "--lr", "1e30", "--workers", "1"]
    assert main(["--to", str(tmp_path / "model"), *arguments]) == EXIT_FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_base: training: the loss is ") and last.endswith("give a --lr below 1e+30")
    assert not list(tmp_path.iterdir())


def test_a_worker_that_dies_ends_the_training_with_a_reason(tmp_path):
    with (
        SampleSource(tmp_path / "missing.json", first_seed=0, chunk=1, workers=1) as source,
        pytest.raises(WorkError, match="a worker process was killed"),
    ):
        source.take(lambda samples: None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--to: required; Hugging Face folder to write"),
        (["--lr", "-1"], "--lr -1.0: must be a number above 0"),
        (["--lr", "nan"], "--lr nan: must be a number above 0"),
        (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--steps", "0"], "--steps 0: must be 1 or more"),
        (["--minutes", "inf"], "--minutes inf: must be a number above 0"),
        (["--minutes", "0.1"], "--minutes 0.1: "),
        (["--minutes", "1", "--steps", "2"], "not allowed with argument"),
        (["--batch-size", "0"], "--batch-size 0: must be 1 or more"),
        (["--workers", "0"], "--workers 0: must be 1 to 256 processes"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--epochs", "1"], "--epochs 1: no such option"),
    ],
)
def test_a_wrong_option_is_a_one_line_error_with_exit_code_2(arguments, said, tmp_path, capsys):
    to = ["--to", str(tmp_path / "model")] if arguments else []
    assert main([*to, *arguments]) == EXIT_REQUEST
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_nonempty_folder_is_not_replaced_without_overwrite(tmp_path, capsys):
    Image.new("RGB", (1, 1)).save(tmp_path / "mine.png")
    assert main(["--to", str(tmp_path), "--steps", "1"]) == EXIT_REQUEST
    assert "not empty; add --overwrite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.png"]
