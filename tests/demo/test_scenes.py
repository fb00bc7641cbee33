"""The demo's scenes: pictures, captions and scores follow from a seed and never change, and the splits stay apart."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path

import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import qwen3vl_core.demo
from qwen3vl_core.demo import scenes
from qwen3vl_core.demo.captions import long_caption, short_caption
from qwen3vl_core.demo.drawing import draw
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.scenes import Scene, is_held_out, palette, sample_scene, sample_split
from qwen3vl_core.demo.scoring import LONG_FIELDS, SHORT_FIELDS, parse, score
from qwen3vl_core.errors import RequestError
from tools.base_tokenizer import PLAIN_TOKENS, SPECIAL_TOKENS, VOCABULARY, write_processor

SEEDS = st.integers(0, 2**63)
SPLITS = st.sampled_from(scenes.SPLITS)
SCENES = SEEDS.map(lambda seed: sample_scene(random.Random(seed)))
STYLES = {"long": (long_caption, LONG_FIELDS), "short": (short_caption, SHORT_FIELDS)}

# (seed, split) -> sha256 of the picture's RGB bytes, sha256 of "long caption, newline, short caption". Between them
# they show every place, time, kind, pose, side and flyer. The shipped model learnt from scenes drawn and described
# exactly like this: when one of these fails, the code is to be corrected and not the digest.
PINNED = {
    (2, "heldout"): (
        "9fb9e69c233919d8345d34e86b0fad7594195b97d436e2f11b0fd755b909100b",
        "ef20806e6f65af5d29863e4f87d04deb4f9d6bcd81288d705961b97c0833c918",
    ),
    (81, "train"): (
        "79f028461674bea9f39397f8cb0ad109ca1928a7efbef97158301f9e3b3ec3ae",
        "204bb0f6c530d59637fe6e16eff78379a79789f1934f32d82c2d461fe3902b10",
    ),
    (19, "heldout"): (
        "e52fa939b459939608d8dbdfec0680b6db51edd9fb6f1a3fff745f6840f00e33",
        "ce48f273a2649e88b4b7e9b8d53fd2865482d2a64e205f07cb2a7107c10f8fd6",
    ),
    (0, "heldout"): (
        "fee13946a0ec2d018622b2e68aff0e526f8804a62c665f85c58a0efc1b1060f4",
        "0decb7e9f43370d86688e32c3d41e638d6d690f79c55aa13558c65f2359f04a6",
    ),
    (12, "heldout"): (
        "dbe7ed2a01db512e7fac7994b07ab8d5e80e8ad1d50c8d1ef8a726f35264b119",
        "231c87ff6256cf3e0c3d96af3d303de7501674a1cb9155bde6784e789d60da4a",
    ),
    (49, "train"): (
        "8114c655179c1884f0a3a12f6feab46df8c1d0e17bc5904e6e26d15d982af3a5",
        "a9251aa4cfa2800481463eed591ac8f99dbd105a5c01c8e881e88a3aa6a3a68e",
    ),
    (3, "train"): (
        "b83eb9f03382623488587bece4f937bd13b0ce62e4b5ebc96f2033163c1bd28e",
        "7a2556daa6f36ec421912f71af8eb7d4869bd1396c39bdcea9987fc287eb92f9",
    ),
    (11, "heldout"): (
        "8b312f7dd7f95eea60fb17d7b280d80a29e37ee08e671618da0d95cb2b9e768d",
        "2f6dcee14f1010e1be3ee6c20e617fe18587c3e88bc54b79c76288adbb684ddf",
    ),
}


def captions(scene: Scene, seed: int) -> dict[str, str]:
    return {style: write(scene, random.Random(seed)) for style, (write, _) in STYLES.items()}


@pytest.mark.skipif(tuple(map(int, PIL.__version__.split(".")[:2])) < (11, 1), reason="Pillow 11.0 draws a cat one to three pixels off")
@pytest.mark.parametrize(("seed", "split"), PINNED)
def test_pictures_match_the_shipped_models_training(seed, split):
    picture = example(seed, split)[1]
    assert hashlib.sha256(picture.tobytes()).hexdigest() == PINNED[seed, split][0]


@pytest.mark.parametrize(("seed", "split"), PINNED)
def test_captions_match_the_shipped_models_training(seed, split):
    _, _, long, short = example(seed, split)
    assert hashlib.sha256(f"{long}\n{short}".encode()).hexdigest() == PINNED[seed, split][1]


def test_the_pinned_examples_cover_every_attribute():
    shown = [example(seed, split)[0] for seed, split in PINNED]
    kinds = {scene.main for scene in shown} | {scene.companion for scene in shown}
    assert kinds >= {*scenes.PEOPLE, *scenes.ANIMALS, *scenes.THINGS}
    tables = {"place": scenes.PLACES, "time": scenes.TIMES, "pose": scenes.POSES, "side": scenes.SIDES}
    for field, table in {**tables, "sky": scenes.FLYERS}.items():
        assert {getattr(scene, field) for scene in shown} >= set(table), field


@given(seed=SEEDS, split=SPLITS)
@settings(deadline=None)
def test_a_seed_determines_everything(seed, split):
    first = example(seed, split)
    random.seed(seed + 1)  # whatever others do with the shared generator has no say
    second = example(seed, split)
    assert first[0] == second[0] and first[2:] == second[2:]
    assert first[1].tobytes() == second[1].tobytes()
    assert first[1].size == (scenes.SIZE, scenes.SIZE) and first[1].mode == "RGB"


@given(scene=SCENES, seeds=st.tuples(SEEDS, SEEDS).filter(lambda pair: pair[0] != pair[1]))
@settings(deadline=None)
def test_a_scene_has_many_pictures(scene, seeds):
    assert draw(scene, seeds[0]).tobytes() != draw(scene, seeds[1]).tobytes()


@given(scene=SCENES)
def test_scenes_use_only_values_of_the_tables(scene):
    is_person = scene.main in scenes.PEOPLE
    assert scene.place in scenes.PLACES and scene.time in scenes.TIMES
    assert scene.main in (*scenes.PEOPLE, *scenes.ANIMALS, *scenes.THINGS)
    assert scene.colour in palette(scene.main)
    assert scene.count in ((1,) if is_person else (1, 2, 3))
    assert (scene.pose in scenes.POSES) if is_person else scene.pose is None
    if scene.companion:
        assert scene.count == 1 and scene.companion != scene.main and scene.companion not in scenes.PEOPLE
        assert scene.companion_colour in palette(scene.companion) and scene.side in scenes.SIDES
    else:
        assert scene.companion_colour is None and scene.side is None
    assert (scene.sky in scenes.FLYERS and 1 <= scene.sky_count <= 4) if scene.sky else scene.sky_count == 0
    assert (scene.sky_colour in scenes.COLOURS) if scene.sky in ("balloons", "kites") else scene.sky_colour is None


@given(seed=SEEDS)
def test_held_out_combinations_never_appear_in_training(seed):
    rng = random.Random(seed)
    training = [sample_split(rng, "train") for _ in range(20)]
    held_out = [sample_split(rng, "heldout") for _ in range(5)]
    assert not any(map(is_held_out, training)) and all(map(is_held_out, held_out))

    def combinations(split: list[Scene]) -> set[tuple[str, ...]]:
        return {(scene.main, scene.colour, scene.place, scene.time) for scene in split}

    assert not combinations(training) & combinations(held_out)


@given(scene=SCENES, other=SCENES)
def test_only_kind_colour_place_and_time_decide_what_is_held_out(scene, other):
    same = dataclasses.replace(other, main=scene.main, colour=scene.colour, place=scene.place, time=scene.time)
    assert is_held_out(same) == is_held_out(scene)


def test_about_one_scene_in_sixteen_is_held_out():
    rng = random.Random(0)
    held_out = sum(is_held_out(sample_scene(rng)) for _ in range(20_000))
    assert 0.05 < held_out / 20_000 < 0.075


def test_an_unknown_split_is_refused():
    with pytest.raises(RequestError, match="'test'; scenes come from train and heldout"):
        example(0, "test")


@given(scene=SCENES, seed=SEEDS)
def test_captions_score_full_marks_against_their_own_scene(scene, seed):
    for style, text in captions(scene, seed).items():
        verdicts = score(text, scene, style)
        assert all(verdicts.values()), (text, verdicts)
        assert set(verdicts) == {field for field in STYLES[style][1] if getattr(scene, field)}


@given(scene=SCENES, seed=SEEDS)
def test_parse_reads_back_what_a_caption_names(scene, seed):
    truth = dataclasses.asdict(scene)
    texts = captions(scene, seed)
    assert parse(texts["long"]) == truth
    unnamed = {"side": None, "sky": None, "sky_count": 0, "sky_colour": None}
    assert parse(texts["short"]) == truth | unnamed


@given(scene=SCENES, other=SCENES, seed=SEEDS)
def test_another_scenes_caption_is_wrong_exactly_where_the_scenes_differ(scene, other, seed):
    for style, text in captions(other, seed).items():
        wrong = {field for field, right in score(text, scene, style).items() if not right}
        assert wrong == {field for field in STYLES[style][1] if getattr(scene, field) != getattr(other, field)}


@given(text=st.text(), scene=SCENES)
def test_any_text_can_be_scored(text, scene):
    for style, (_, fields) in STYLES.items():
        assert set(score(text, scene, style)) >= {field for field in fields if getattr(scene, field)}


def test_an_empty_answer_scores_nothing():
    scene = sample_scene(random.Random(0))
    assert not any(score("", scene, "long").values())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("processor")
    write_processor(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_tokenizer_is_the_shipped_models(tokenizer):
    shipped = Path(qwen3vl_core.demo.__file__).parent / "base_hf" / "tokenizer.json"
    assert tokenizer.get_vocab() == Tokenizer.from_file(str(shipped)).get_vocab()


def test_the_added_tokens_have_the_last_ids_in_qwens_order(tokenizer):
    added = SPECIAL_TOKENS + PLAIN_TOKENS
    ids = [tokenizer.token_to_id(token) for token in added]
    assert ids == list(range(VOCABULARY - len(added), VOCABULARY)) and tokenizer.get_vocab_size() == VOCABULARY


@given(scene=SCENES, seed=SEEDS)
def test_captions_survive_the_tokenizer(tokenizer, scene, seed):
    for text in captions(scene, seed).values():
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
