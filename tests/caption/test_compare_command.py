"""`qwen3vl compare` from pictures and two models to its reports, on the bundled demo model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen3vl_core.caption import compare, generate
from qwen3vl_core.caption.compared_models import tuned_names
from qwen3vl_core.caption.pictures import find_pictures
from qwen3vl_core.caption.references import read_references
from qwen3vl_core.checkpoint import convert
from qwen3vl_core.checkpoint.load import load
from qwen3vl_core.cli import main
from qwen3vl_core.demo.examples import example
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import CompareOptions, ConvertOptions
from tests.shared import DEMO


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three drawn scenes, one picture of noise, and files that are not pictures."""
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
    """The demo model with other weights in its last norm, so that it writes other captions."""
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
    head = json.loads((tmp_path / "comparison.json").read_text())
    assert list(head["models"]) == ["base", "tuned"] and len(head["pictures"]) == 4 and head["sampling"]["max_new_tokens"] == 12
    assert "Of course." in printed.out and "words of a caption, average" in printed.out
    progress = [line for line in printed.err.splitlines() if "100%" in line]
    assert [line.split()[0] for line in progress] == ["base", "tuned"]
    page = html_file.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4
    # the model is described wherever captions are shown
    for text in (printed.err, " ".join(printed.out.split()), page, " ".join(made["notes"])):
        assert "bundled demo model" in text and "drawn scenes only" in text and "nonsense" in text
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    done = [row for row in rows if row["done"]]
    assert [(r["model"], Path(r["image"]).name) for r in done] == [
        (model, name) for model in ("base", "tuned") for name in ("a.jpg", "b.png", "c.webp", "photo.JPG")
    ]
    for row in done:
        assert set(row) == {"v", "image", "prompt", "model", "text", "seconds", "done", "whole"}
        assert row["whole"] is False, "twelve tokens are no whole caption"
        assert row["text"] == next(r[row["model"]] for r in made["captions"] if r["image"] == row["image"])
    assert not list(tmp_path.glob("*.tmp"))


def test_the_demo_model_describes_a_scene_and_survives_a_photograph(pictures):
    given = options(pictures, DEMO, max_new_tokens=170, images=[str(pictures / "a.jpg"), str(pictures / "photo.JPG")])
    comparison, _ = compare.compare(given)
    texts = {Path(s.image).name: s.base for s in comparison.samples}
    scene = example(1, "heldout")[0]
    assert scene.place in texts["a.jpg"].text and scene.main in texts["a.jpg"].text
    assert texts["a.jpg"].words > 90 and texts["a.jpg"].whole
    assert texts["photo.JPG"].words > 0
    assert comparison.notes and comparison.models["base"].size == "tiny"
    assert comparison.scores().differ == 0, "a model agrees with itself"


def test_a_checkpoint_of_either_kind_writes_the_same(pictures, other, tmp_path):
    """A torch_dist checkpoint carries its tokenizer and processor files beside its tracker file."""
    convert.run(ConvertOptions(source=str(other), target=str(tmp_path / "megatron")))
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").is_file()
    given = options(pictures, tmp_path / "megatron", temperature=0.7, top_p=0.9, seed=5)
    given.base = str(other)
    comparison, _ = compare.compare(given)
    assert [s.tuned.text for s in comparison.samples] == [s.base.text for s in comparison.samples]


def test_a_sampled_caption_depends_on_its_picture_and_the_seed_only(pictures):
    def captions(names: list[str], **more) -> dict[str, str]:
        given = {"images": [str(pictures / name) for name in names], "max_new_tokens": 8, "temperature": 9.0}
        drawn = options(pictures, DEMO, **given | more)
        return {Path(s.image).name: s.base.text for s in compare.compare(drawn)[0].samples}

    first = captions(["a.jpg", "b.png", "c.webp"], batch_size=3)
    assert captions(["c.webp", "a.jpg"], batch_size=1) == {name: first[name] for name in ("a.jpg", "c.webp")}
    assert captions(["a.jpg"], seed=1)["a.jpg"] != first["a.jpg"]


def test_only_one_model_is_in_memory(pictures, other, monkeypatch):
    living, seen = [], []

    def watched(*args, **kwargs):
        seen.append([reference() is not None for reference in living])
        model = load(*args, **kwargs)
        living.append(weakref.ref(model))
        return model

    monkeypatch.setattr(compare, "load", watched)
    compare.compare(options(pictures, other, limit=1))
    assert seen == [[], [False]]
    assert not living[1]()


def test_the_requested_number_of_pictures_is_printed(pictures, capsys):
    words = ["compare", "--base", DEMO, "--tuned", DEMO, "--images", pictures, "--max-new-tokens", "4", "--show", "1"]
    assert main([*map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "1 of 4" in out and "2 of 4" not in out and "and 3 more; --show 0 prints them all" in out
    assert "0% of 4 pictures with different captions" in out


def test_pictures_are_found_in_order_and_once(pictures, tmp_path):
    names = [str(pictures / "c.webp"), str(pictures), str(pictures / "a.jpg")]
    assert [p.path.name for p in find_pictures(names)] == ["c.webp", "a.jpg", "b.png", "photo.JPG"]
    assert [p.path.name for p in find_pictures(names, limit=2)] == ["c.webp", "a.jpg"]
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert find_pictures([str(tmp_path / "moving.gif")])[0].open().getpixel((5, 5))[0] > 200


def refused(*words: object, capsys) -> str:
    """The one-line message of a request that is refused with exit code 2."""
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
    # found in a folder: the others are compared, and it is reported; if none is left, the request is refused
    assert "cut.png" in refused(*models, tmp_path, capsys=capsys)
    (tmp_path / "whole.png").write_bytes(whole)
    left_out: list[str] = []
    assert [p.path.name for p in find_pictures([str(tmp_path)], 0, left_out)] == ["whole.png"]
    assert len(left_out) == 1 and left_out[0].startswith(str(tmp_path / "cut.png"))
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
    assert "x is not a folder; create it first" in refused(*given, "--json", tmp_path / "x" / "a.json", capsys=capsys)
    same = tmp_path / "report"
    assert "the same file as --html" in refused(*given, "--json", same, "--html", same, capsys=capsys)
    assert "--prompt: " in refused(*given, "--prompt", "Describe.<|im_end|>", capsys=capsys)


def test_duplicate_and_missing_pictures_are_refused(pictures, capsys):
    models = ["--base", DEMO, "--tuned", DEMO]
    assert "--images: required; pictures or folders of pictures, or a dataset as --data" in refused(*models, capsys=capsys)
    assert "give one of the two" in refused(*models, "--images", pictures, "--data", "x", capsys=capsys)
    assert "--own-questions: only a dataset has" in refused(*models, "--images", pictures, "--own-questions", capsys=capsys)
    assert "a dataset has its own" in refused(*models, "--data", "x", "--references", "y", capsys=capsys)
    assert f"--data {pictures}: no dataset; give a folder" in refused(*models, "--data", pictures, capsys=capsys)
    assert "--data nowhere: no such file or folder" in refused(*models, "--data", "nowhere", capsys=capsys)


SHAPES: dict[str, Any] = {
    "by name": {"a.jpg": "one", "b.png": ["two", "three"]},
    "with more beside": {"a.jpg": {"caption": "one", "scene": {}}, "b.png": {"captions": ["two", "three"]}},
    "rows": [{"image": "a.jpg", "caption": "one"}, {"file_name": "b.png", "text": "two"}, {"image": "b.png", "caption": "three"}],
    "LLaVA": [
        {"id": i, "image": f"pictures/{name}", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": text}]}
        for i, (name, text) in enumerate([("a.jpg", "one"), ("b.png", "two"), ("b.png", "three")])
    ],
    "COCO": {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 8, "caption": "two"}, {"image_id": 8, "caption": " three "}],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_references_are_read_in_all_formats(shape, tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(SHAPES[shape]))
    found = read_references(str(file))
    assert found.of(Path("/x/pictures/a.jpg")) == ("one",) and found.of(Path("b.png")) == ("two", "three") and found.of(Path("c.png")) == ()
    if isinstance(SHAPES[shape], list):
        file.write_text("".join(json.dumps(row) + "\n" for row in SHAPES[shape]))
        assert read_references(str(file)).of(Path("a.jpg")) == ("one",)


@pytest.mark.parametrize("text, said", [
    ("no json", "not JSON \\(line 1"), ("[1, 2]", "holds no caption of a picture"), ('"text"', "neither a JSON object nor a list"),
    ('{"a.jpg": ""}', "holds no caption"),
])  # fmt: skip
def test_files_without_references_are_refused_in_one_line(text, said, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RequestError, match=rf"--references .*r\.json: {said}") as caught:
        read_references(str(tmp_path / "r.json"))
    assert "\n" not in str(caught.value)


def test_a_split_of_a_dataset_has_questions_and_references(tmp_path, monkeypatch, capsys):
    """Of LLaVA JSON, and of the shards that prepare makes of it."""
    records = []
    for number in range(4):
        example(number, "heldout")[1].save(tmp_path / f"{number}.png")
        talk = [{"from": "human", "value": f"<image>\nQuestion {number}?"}, {"from": "gpt", "value": f"answer {number}"}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    records.insert(1, {"id": "talk", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    (tmp_path / "c.json").write_text(json.dumps(records))
    assert main(["prepare", str(tmp_path / "c.json"), "--to", str(tmp_path / "data"), "--split", "0,1,0"]) == 0
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("QWEN3VL_RUN_DIR", str(run))
    capsys.readouterr()
    words = ["compare", "--base", DEMO, "--tuned", DEMO, "--limit", "2", "--max-new-tokens", "2", "--own-questions", "--json", "-"]
    for data in (tmp_path / "c.json", tmp_path / "data"):
        assert main([*map(str, words), "--data", str(data)]) == 0
        out = capsys.readouterr().out
        made = json.loads(out)
        assert len(made["captions"]) == 2
        for row in made["captions"]:
            # prepare shuffles: the question identifies the record
            number = row["prompt"].removeprefix("Question ").removesuffix("?")
            assert row["references"] == [f"answer {number}"] and Path(row["image"]).parent == run / "pictures"
            assert Path(row["image"]).read_bytes() == (tmp_path / f"{number}.png").read_bytes()
        assert made["scores"]["references"] == 2 and made["scores"]["base"]["rouge_l"] is not None
        if data.suffix:
            assert any("1 of 3" in note and "not one picture" in note for note in made["notes"])


def test_several_checkpoints_of_one_run_are_named_by_their_steps(pictures, other, tmp_path):
    run = tmp_path / "0007-demo" / "checkpoints"
    convert.run(ConvertOptions(source=str(other), target=str(run)))
    (last,) = [path.parent for path in run.glob("*/.metadata")]
    shutil.copytree(last, run / "iter_0000100")
    shutil.copytree(last, run / "iter_0000200")
    (run / "latest_checkpointed_iteration.txt").write_text("200")
    given = options(pictures, other, limit=1, max_new_tokens=3)
    given.tuned = [str(run / "iter_0000100"), str(run.parent), str(DEMO)]
    comparison, _ = compare.compare(given)
    assert comparison.names == ["base", "step 100", "step 200", "base_hf"]
    assert comparison.models["step 200"].path == str(run / "iter_0000200"), "what a run's tracker named is what was compared"
    texts = {name: caption.text for name, caption in comparison.samples[0].captions.items()}
    assert texts["step 100"] == texts["step 200"] != texts["base"] == texts["base_hf"]


def test_model_names_are_unique():
    def names(*paths: str) -> list[str]:
        return tuned_names([Path(path) for path in paths])

    assert names("anything") == ["tuned"]
    assert names("r/1-a/checkpoints/iter_0000010", "r/2-b/checkpoints/iter_0000010") == ["1-a step 10", "2-b step 10"]
    assert names("x/base", "y/model", "z/model", "same") == ["base (2)", "model", "model (2)", "same (2)"]
    assert all(len(name) <= 32 for name in names("x" * 90, "y" * 90))


def test_an_interrupted_comparison_reports_the_complete_pictures(pictures, tmp_path, monkeypatch, capsys):
    """Ctrl-C, or a supervisor's stop request, while the second model writes its second batch."""
    wrote = generate.CaptionWriter._write_batch
    batches = []

    def interrupted(writer, group):
        batches.append(len(group))
        if len(batches) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return wrote(writer, group)

    monkeypatch.setattr(generate.CaptionWriter, "_write_batch", interrupted)
    page, data = tmp_path / "page.html", tmp_path / "data.json"
    words = ["compare", "--base", DEMO, "--tuned", DEMO, "--images", *(pictures / n for n in ("a.jpg", "b.png")), "--batch-size", "1"]
    assert main([*map(str, words), "--max-new-tokens", "2", "--html", str(page), "--json", str(data)]) == 130
    said = capsys.readouterr()
    made = json.loads(data.read_text())
    assert [Path(row["image"]).name for row in made["captions"]] == ["a.jpg"] and page.is_file()
    assert "Stopped early: 1 of 2 pictures have all captions." in said.err and "Stopped early" in made["notes"][-1]
    assert "Traceback" not in said.err


def test_a_model_with_nan_logits_is_named(pictures, other, tmp_path):
    shutil.copytree(other, tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "model.safetensors")
    for tensor in tensors.values():
        tensor.fill_(torch.nan)
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    with pytest.raises(WorkError, match=r"--tuned .*nan: the model.s logits are NaN or infinite"):
        compare.compare(options(pictures, tmp_path / "nan", limit=1))
