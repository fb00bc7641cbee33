"""Metadatasets: the shares that they ask for, read as Energon reads them, with exact resume; and data under msc://."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.cli import main
from qwen3vl_core.data.blend import BLOCK, Blend, BlendOrder, open_split
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.storage import Remote
from qwen3vl_core.errors import RequestError
from tests.data import energon_loader, samples

SETTINGS = {"micro_batch_size": 1, "global_batch_size": 4, "seq_length": 256, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets a (8 with pictures), b (5 of text) and c (4, one of them broken), each with keys that the others have too."""
    folder = tmp_path_factory.mktemp("blend")
    picture = samples.encoded(samples.picture(0, 64, 64), "PNG")

    def stored(name, number):
        pictures = name != "b"
        parts = {"json": samples.conversation(f"{name} {number}", pictures=int(pictures))}
        if pictures:
            parts["img0.jpg"] = picture if (name, number) != ("c", 2) else picture[:200]
        return f"{number:08d}", parts

    for name, count in (("a", 8), ("b", 5), ("c", 4)):
        samples.raw_dataset(folder / name, [stored(name, number) for number in range(count)])
    return folder


def write(folder, name, train, **more):
    path = folder / f"{name}.yaml"
    made = {"__module__": "megatron.energon", "__class__": "MetadatasetV2", "splits": {"train": train}} | more
    path.write_text(yaml.safe_dump(made))
    return path


def blend(**weights):
    return {"blend": [{"weight": weight, "path": name} for name, weight in weights.items()]}


def read(source, number):
    """(dataset, number in it) of a sample."""
    parts = source.read(number)[1]
    name, own = json.loads(parts["json"])["messages"][1]["content"][0]["text"].split()
    return name, int(own)


def stream(source, count, seed=1):
    order = source.order(seed)
    return [read(source, order.sample(place)) for place in range(count)]


orders = st.lists(st.tuples(st.integers(1, 60), st.floats(1e-4, 50)), min_size=1, max_size=6)


@samples.many(40)
@given(orders, st.booleans(), st.integers(0, 2**40), st.integers(0, 5000))
def test_any_place_is_a_function_of_seed_and_place(datasets, epochs, seed, place):
    sizes, weights = [size for size, _ in datasets], [min(weight, 4) if epochs else weight for _, weight in datasets]
    order = BlendOrder(sizes, weights, seed, epochs=epochs)
    walked = [order.sample(number) for number in range(place, place + 40)]
    assert [BlendOrder(sizes, weights, seed, epochs=epochs).sample(number) for number in range(place, place + 40)] == walked
    assert all(0 <= number < sum(sizes) for number in walked)
    assert sorted([order.sample(place), *order.stand_ins(place)]) == list(range(sum(sizes)))


@samples.many(40)
@given(orders)
def test_shares_are_as_near_to_the_weights_as_whole_samples_allow(datasets):
    sizes, weights = [size for size, _ in datasets], [weight for _, weight in datasets]
    order = BlendOrder(sizes, weights, 3, epochs=False)
    begins = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    for blocks in (1, 2, 3):
        seen = Counter(order.sample(place) for place in range(blocks * BLOCK))
        for number, weight in enumerate(weights):
            counts = [seen[sample] for sample in range(begins[number], begins[number + 1])]
            assert abs(sum(counts) - blocks * BLOCK * weight / sum(weights)) <= len(weights)
            # nobody comes a second time before everybody has come once
            assert max(counts) - min(counts) <= 1


def test_an_epochized_blend_is_what_energon_makes_of_it(folder):
    entries = [{"repetitions": 2, "path": "a"}, {"repetitions": 1, "path": "b"}, {"repetitions": 0.5, "path": "c"}]
    path = write(folder, "epochs", {"blend_epochized": entries})
    ours = Blend(path, "train")
    order = ours.order(1)
    assert (len(ours), order.size) == (17, 23)
    epochs = [Counter(stream(ours, 46)[begin : begin + 23]) for begin in (0, 23)]
    theirs: Counter = Counter()
    for _, sample in zip(range(23), energon_loader.loader(path), strict=False):
        name, own = json.loads(sample.parts["json"])["messages"][1]["content"][0]["text"].split()
        theirs[name, int(own)] += 1
    for name in "ab":
        mine = {key: count for key, count in epochs[0].items() if key[0] == name}
        assert mine == {key: count for key, count in theirs.items() if key[0] == name}
    # half of c in an epoch, which half is each one's own choice; all of it in two
    assert sum(count for (name, _), count in theirs.items() if name == "c") == 2
    assert [sum(count for (name, _), count in epoch.items() if name == "c") for epoch in epochs] == [2, 2]
    assert {key for epoch in epochs for key in epoch if key[0] == "c"} == {("c", number) for number in range(4)}


def test_blends_of_blends_parts_and_other_splits(folder):
    write(folder, "inner", {"blend": [{"weight": 1, "path": "a", "subset": {"range": ["50%", "100%"]}}, {"weight": 3, "path": "b"}]})
    rest = {"weight": 1, "path": "c", "subset": {"range": [1, "end"]}}
    path = write(folder, "outer", {"blend": [{"weight": 1, "path": "inner.yaml"}, rest]})
    ours = Blend(path, "train")
    assert [(share.shards.path.name, len(share), round(share.weight, 4)) for share in ours.shares] == [
        ("a", 4, 0.125), ("b", 5, 0.375), ("c", 3, 0.5),
    ]  # fmt: skip
    assert {read(ours, number) for number in range(len(ours))} == {
        *(("a", n) for n in range(4, 8)), *(("b", n) for n in range(5)), *(("c", n) for n in range(1, 4)),
    }  # fmt: skip
    lines = ours.lines()
    assert lines[2].startswith("50.0%: ") and lines[2].endswith("c, split train, 3 samples")
    other = write(folder, "other", blend(a=1), splits={"val": {"path": "b", "split_part": "train"}})
    assert len(open_split(other, "val")) == 5


@pytest.mark.parametrize("packing", [False, True])
def test_resume_is_exact_and_pictures_and_text_mix_on_every_rank(processor, folder, packing):
    path = write(folder, f"mixed{packing}", blend(a=2, b=2, c=1))

    def loader(**options):
        return build_loader(path, "train", processor, packing=packing, **(SETTINGS | options))

    whole = loader()
    expected, states = [], []
    for _ in range(7):
        states.append(json.loads(json.dumps(whole.state_dict())))
        expected.append([batch.input_ids.tolist() for batch in next(whole)])
    for done in (1, 3):
        for world in (1, 2):
            ranks = [loader(rank=rank, world_size=world, num_workers=done == 3) for rank in range(world)]
            for rank in ranks:
                rank.load_state_dict(states[done])
            for wanted in expected[done : done + 2]:
                parts = [next(rank) for rank in ranks]
                assert [parts[m % world][m // world].input_ids.tolist() for m in range(4)] == wanted
            for rank in ranks:
                rank.close()
    assert set(whole.skipped) == {"broken_picture"}
    # other weights are other data
    write(folder, path.stem, blend(a=2, b=2, c=2))
    with pytest.raises(RequestError, match="not the dataset that the run started with"):
        loader().load_state_dict(states[1])


def test_a_skipped_sample_is_written_with_its_dataset_shard_and_key(processor, folder, tmp_path):
    path = write(folder, "skips", blend(a=1, c=3))
    file = tmp_path / "skipped.jsonl"
    source = build_loader(path, "train", processor, skipped_file=file, **SETTINGS)
    used = [key for _ in range(6) for batch in next(source) for key in batch.keys]
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert row["key"] == "00000002" and row["reason"] == "broken_picture" and row["shard"].startswith(f"{folder}/c/train-00000.tar@")
    assert len(used) == 24 and source.skipped["broken_picture"] >= 4
    again = build_loader(path, "train", processor, skipped_file=file, **SETTINGS)
    next(again), next(again)
    assert len(file.read_text().splitlines()) == 1


BAD = {
    "no YAML": ("{", "not YAML"),
    "a list": ("[1]", "not a metadataset"),
    "another class": ({"__class__": "Thing", "splits": {"train": {}}}, "__class__ is Thing; must be one of Metadataset, MetadatasetV2"),
    "no splits": ({"splits": {}}, "splits must name train, val or test"),
    "another split": ({"splits": {"val": {"path": "a"}}}, "no split train; there are: val"),
    "an empty list": ({"splits": {"train": {"blend": []}}}, "must hold one of blend, blend_epochized"),
    "a join": ({"splits": {"train": {"join": [{"path": "a"}]}}}, "join is not supported"),
    "no path": ({"splits": {"train": {"blend": [{"weight": 1}]}}}, "entry 0: must hold path and weight"),
    "a path that is none": ({"splits": {"train": {"blend": [{"weight": 1, "path": 3}]}}}, "path and split_part must be text"),
    "weight 0": ({"splits": {"train": blend(a=0)}}, "weight 0: must be a number above 0"),
    "weight NaN": ({"splits": {"train": blend(a=float("nan"))}}, "weight nan: must be"),
    "a missing dataset": ({"splits": {"train": blend(nowhere=1)}}, "nowhere: no such folder"),
    "a subset beyond": ({"splits": {"train": {"blend": [{"path": "a", "subset": {"range": [0, 99]}}]}}}, "must lie within the 8 samples"),
    "an empty subset": ({"splits": {"train": {"blend": [{"path": "a", "subset": {"range": ["0%", "0%"]}}]}}}, "holds no sample"),
    "a subset that is none": ({"splits": {"train": {"blend": [{"path": "a", "subset": ["0%"]}]}}}, "subset must be"),
    "itself": ({"splits": {"train": {"path": "bad.yaml"}}}, "includes itself"),
    "aux": ({"splits": {"train": {"blend": [{"path": "a", "aux": {"x": "b"}}]}}}, "aux is not supported"),
    "both kinds": ({"splits": {"train": {"blend_epochized": [{"path": "skips.yaml"}]}}}, "cannot be mixed"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_metadataset_gets_one_line(folder, name):
    content, words = BAD[name]
    (folder / "bad.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    if name == "both kinds":
        write(folder, "skips", blend(a=1, c=3))
    with pytest.raises(RequestError, match=words.replace("(", r"\(")) as refused:
        open_split(folder / "bad.yaml", "train")
    assert "\n" not in str(refused.value) and "bad.yaml" in str(refused.value)


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    """The same datasets as the profile `shop` of the Multi-Storage Client."""
    provider = {"type": "file", "options": {"base_path": str(folder)}}
    config = {"profiles": {"shop": {"storage_provider": provider}}}
    (tmp_path / "msc.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("MSC_CONFIG", str(tmp_path / "msc.yaml"))
    return "msc://shop"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_of_a_store_is_the_same_dataset(processor, folder, store, workers):
    here = build_loader(folder / "a", "train", processor, **SETTINGS)
    there = build_loader(f"{store}/a", "train", processor, num_workers=workers, **SETTINGS)
    there.load_state_dict(here.state_dict())
    for _ in range(3):
        assert [b.input_ids.tolist() for b in next(here)] == [b.input_ids.tolist() for b in next(there)]
    there.close()


def test_commands_that_take_a_dataset_take_one_of_a_store(folder, store, tmp_path, capsys):
    write(folder, "shop", {"blend": [{"weight": 3, "path": "a"}, {"weight": 1, "path": f"{store}/b"}]})
    assert main(["inspect", f"{store}/a", "--model", str(samples.CHECKPOINT), "--html", str(tmp_path / "page.html")]) == 0
    assert "msc://shop/a: a prepared dataset, 8 samples" in capsys.readouterr().out
    assert main(["inspect", f"{store}/shop.yaml"]) == 0
    out = capsys.readouterr().out
    assert "msc://shop/shop.yaml: a blend of datasets, 13 samples" in out
    assert "train: 75.0%: msc://shop/a, split train, 8 samples" in out
    for words, line in (
        (["inspect", f"{store}/nowhere"], "msc://shop/nowhere: no dataset"),
        (["inspect", "msc://elsewhere/a"], "cannot use the profile elsewhere"),
        (["inspect", "s3://bucket/a"], "remote data is named msc://PROFILE/PATH"),
        (["prepare", f"{store}/list.json", "--to", str(tmp_path / "x")], "SOURCE msc://shop/list.json: must be a path of this machine"),
        (["prepare", str(tmp_path / "l.json"), "--to", f"{store}/x"], "--to msc://shop/x: must be a path of this machine"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert line in err and err.count("\n") == 1
    assert not list(Path.cwd().glob("msc:*"))


def test_places_of_a_store_are_put_together_as_paths_are():
    place = Remote("msc://shop/data/../data/train-00000.tar")
    assert str(place) == "msc://shop/data/train-00000.tar" and place.suffix == ".tar" and place.name == "train-00000.tar"
    assert str(place.with_suffix(".tar.idx")) == "msc://shop/data/train-00000.tar.idx" and str(place.parent / "a") == "msc://shop/data/a"
