"""`qwen3vl compare` from pictures and two models to its reports, on the bundled demo model."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import qwen3vl_core
from qwen3vl_core.caption import compare
from qwen3vl_core.caption.pictures import find
from qwen3vl_core.checkpoint import convert
from qwen3vl_core.cli import main
from qwen3vl_core.demo.scenes import example
from qwen3vl_core.errors import WorkError
from qwen3vl_core.options import CompareOptions, ConvertOptions

DEMO = Path(qwen3vl_core.__file__).parent / "demo" / "base_hf"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three drawn scenes, one noise photograph, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("b.png", "a.jpg", "c.webp")):
        example(seed, "heldout")[1].save(folder / name)
    noise = np.random.RandomState(0).randint(0, 255, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 360)).save(folder / "photo.JPG")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The demo model with other numbers in its last norm: it writes other captions."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(DEMO, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("language_model.norm.weight"))
    weight = tensors[name]
    tensors[name] = weight * torch.arange(len(weight)).sin().to(weight.dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


def options(pictures: Path, tuned: Path, **more) -> CompareOptions:
    given = {"images": [str(pictures)], "max_new_tokens": 12, **more}
    return CompareOptions(base=str(DEMO), tuned=str(tuned), **given)


def test_two_models_are_compared_from_pictures_to_reports(pictures, other, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QWEN3VL_RUN_DIR", str(tmp_path))
    json_file, html_file = tmp_path / "out.json", tmp_path / "out.html"
    words = ["compare", "--base", DEMO, "--tuned", other, "--images", pictures, "--max-new-tokens", "12"]
    assert main([*map(str, words), "--json", str(json_file), "--html", str(html_file)]) == 0
    printed = capsys.readouterr()
    made = json.loads(json_file.read_text())
    assert [Path(row["image"]).name for row in made["captions"]] == ["a.jpg", "b.png", "c.webp", "photo.JPG"]
    assert all(row["base"].startswith("Of course. Here is a") and row["tuned"] != row["base"] for row in made["captions"][:3])
    assert made["scores"]["differ"] == 1
    assert "1 of 4" in printed.out and "4 of 4" in printed.out
    assert "Of course." in printed.out and "words of a caption, average" in printed.out
    progress = [line for line in printed.err.splitlines() if "100%" in line]
    assert [line.split()[0] for line in progress] == ["base", "tuned"]
    page = html_file.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4
    # it says what the model is, wherever captions are shown
    for text in (printed.err, " ".join(printed.out.split()), page, " ".join(made["notes"])):
        assert "bundled demo model" in text and "drawn scenes only" in text and "nonsense" in text
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    done = [row for row in rows if row["done"]]
    assert [(r["model"], Path(r["image"]).name) for r in done] == [
        (model, name) for model in ("base", "tuned") for name in ("a.jpg", "b.png", "c.webp", "photo.JPG")
    ]
    for row in done:
        assert set(row) == {"v", "image", "prompt", "model", "text", "seconds", "done"}
        assert row["text"] == next(r[row["model"]] for r in made["captions"] if r["image"] == row["image"])
    assert not list(tmp_path.glob("*.tmp"))


def test_the_demo_model_describes_a_scene_and_survives_a_photograph(pictures):
    comparison, _ = compare.compare(options(pictures, DEMO, max_new_tokens=256, limit=4))
    texts = {Path(s.image).name: s.base for s in comparison.samples}
    scene = example(1, "heldout")[0]
    assert scene.place in texts["a.jpg"].text and scene.main in texts["a.jpg"].text
    assert all(texts[name].words > 90 and texts[name].whole for name in ("a.jpg", "b.png", "c.webp"))
    assert texts["photo.JPG"].words > 0
    assert comparison.notes and comparison.base.size == "tiny"
    assert comparison.scores().differ == 0, "a model agrees with itself"


def test_a_checkpoint_of_either_kind_writes_the_same(pictures, other, tmp_path):
    """A torch_dist checkpoint carries its tokenizer and processor files beside its tracker file."""
    convert.run(ConvertOptions(source=str(other), target=str(tmp_path / "megatron")))
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").is_file()
    given = options(pictures, tmp_path / "megatron", temperature=0.7, top_p=0.9, seed=5)
    given.base = str(other)
    comparison, _ = compare.compare(given)
    assert [s.tuned.text for s in comparison.samples] == [s.base.text for s in comparison.samples]


def test_a_drawn_caption_belongs_to_its_picture_and_the_seed(pictures):
    def captions(names: list[str], **more) -> dict[str, str]:
        given = {"images": [str(pictures / name) for name in names], "max_new_tokens": 30, "temperature": 2.0}
        drawn = options(pictures, DEMO, **given | more)
        return {Path(s.image).name: s.base.text for s in compare.compare(drawn)[0].samples}

    first = captions(["a.jpg", "b.png", "c.webp"], batch_size=3)
    assert captions(["c.webp", "a.jpg"], batch_size=1) == {name: first[name] for name in ("c.webp", "a.jpg")}
    assert captions(["a.jpg"], seed=1)["a.jpg"] != first["a.jpg"]


def test_only_one_model_is_in_memory(pictures, other, monkeypatch):
    load, living, seen = compare.load, [], []

    def watched(*args, **kwargs):
        seen.append([reference() is not None for reference in living])
        model = load(*args, **kwargs)
        living.append(weakref.ref(model))
        return model

    monkeypatch.setattr(compare, "load", watched)
    compare.compare(options(pictures, other, limit=1))
    assert seen == [[], [False]]
    assert not living[1]()


def test_greedy_captions_do_not_depend_on_the_batch_size(pictures):
    texts = []
    for batch_size in (1, 64):
        comparison, _ = compare.compare(options(pictures, DEMO, batch_size=batch_size, max_new_tokens=30))
        texts.append([s.base.text for s in comparison.samples])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_as_many_pictures_are_printed_as_asked_for(pictures, capsys):
    words = ["compare", "--base", DEMO, "--tuned", DEMO, "--images", pictures, "--max-new-tokens", "4", "--show", "1"]
    assert main([*map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "1 of 4" in out and "2 of 4" not in out and "and 3 more; --show 0 prints them all" in out
    assert "0% of 4 pictures with different captions" in out


def test_pictures_are_found_in_order_and_once(pictures, tmp_path):
    names = [str(pictures / "c.webp"), str(pictures), str(pictures / "a.jpg")]
    assert [p.path.name for p in find(names)] == ["c.webp", "a.jpg", "b.png", "photo.JPG"]
    assert [p.path.name for p in find(names, limit=2)] == ["c.webp", "a.jpg"]
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert find([str(tmp_path / "moving.gif")])[0].open().getpixel((5, 5))[0] > 200


def refused(*words: object, capsys) -> str:
    """The one line of a request that is refused with exit code 2."""
    assert main(["compare", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_bad_pictures_are_refused_in_one_line(pictures, tmp_path, capsys):
    models = ["--base", DEMO, "--tuned", DEMO, "--images"]
    assert f"--images {tmp_path / 'none.png'}: no such file or folder; give" in refused(*models, tmp_path / "none.png", capsys=capsys)
    assert "notes.txt: not a picture (" in refused(*models, pictures / "notes.txt", capsys=capsys)
    (tmp_path / "readme.md").write_text("text")
    assert f"{tmp_path}: a folder without pictures (jpg, jpeg, png" in refused(*models, tmp_path, capsys=capsys)
    whole = (pictures / "b.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    line = refused(*models, pictures / "a.jpg", tmp_path / "cut.png", capsys=capsys)
    assert "cut.png" in line and "leave it out or choose another picture" in line
    Image.new("RGB", (2010, 10)).save(tmp_path / "thin.png")
    assert "thin.png: 2010x10: one side is over 200 times the other" in refused(*models, tmp_path / "thin.png", capsys=capsys)


def test_bad_models_are_refused_in_one_line_before_any_caption_is_written(pictures, tmp_path, capsys):
    def line(base: object, tuned: object) -> str:
        return refused("--base", base, "--tuned", tuned, "--images", pictures, capsys=capsys)

    assert f"--tuned {tmp_path / 'none'}: no such file or folder" in line(DEMO, tmp_path / "none")
    assert f"--base {pictures}: neither a Hugging Face folder" in line(pictures, DEMO)
    shutil.copytree(DEMO, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    assert "bare: no tokenizer.json; copy" in line(DEMO, tmp_path / "bare")
    convert.run(ConvertOptions(source=str(DEMO), target=str(tmp_path / "megatron")))
    capsys.readouterr()
    (tmp_path / "megatron" / "config.json").unlink()
    assert "megatron: no config.json beside latest_checkpointed_iteration.txt; copy config.json" in line(DEMO, tmp_path / "megatron")


def test_bad_reports_and_prompts_are_refused_before_any_caption_is_written(pictures, tmp_path, capsys):
    given = ["--base", DEMO, "--tuned", DEMO, "--images", pictures]
    assert f"--html {tmp_path}: a folder; give a file in it" in refused(*given, "--html", tmp_path, capsys=capsys)
    assert "x is no folder; make it first" in refused(*given, "--json", tmp_path / "x" / "a.json", capsys=capsys)
    same = tmp_path / "report"
    assert "the same file as --html" in refused(*given, "--json", same, "--html", same, capsys=capsys)
    assert "--prompt: " in refused(*given, "--prompt", "Describe.<|im_end|>", capsys=capsys)


def test_a_model_that_gives_nan_is_named(pictures, other, tmp_path):
    shutil.copytree(other, tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "model.safetensors")
    for tensor in tensors.values():
        tensor.fill_(torch.nan)
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    with pytest.raises(WorkError, match=r"--tuned .*nan: the model gives numbers that are not finite"):
        compare.compare(options(pictures, tmp_path / "nan", limit=1))
