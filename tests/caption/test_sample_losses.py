"""The loss of each sample under a model: equal to that of its tokens, sorted, with the worst sample shown."""

from __future__ import annotations

import json

import torch

import qwen3vl_core
from qwen3vl_core.cli import main
from qwen3vl_core.data.processor import ChatProcessor
from tests.data import samples
from tests.shared import DEMO


def test_losses_are_written_highest_first_and_the_worst_sample_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "none")
    (tmp_path / "a.jpg").write_bytes(samples.encoded(samples.picture(1)))
    answers = ["a red circle.", "zq jx qz vv xj.", "a blue square.", "x" * 3000]
    rows = [samples.record(n, "a.jpg", answer) for n, answer in enumerate(answers)]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    file = tmp_path / "losses.jsonl"
    command = ["inspect", str(tmp_path / "all.json"), "--model", str(DEMO), "--losses", str(file), "--show", "1", "--seq-length", "512"]
    assert main(command) == 0
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert found[0]["number"] == 1 and found[-1]["number"] == 3 and found[-1]["loss"] is None
    assert "tokens, 512 at most" in found[-1]["problem"]
    processor, model = ChatProcessor.from_pretrained(DEMO), qwen3vl_core.load(DEMO)
    for row in found[:-1]:
        record = rows[row["number"]]
        content = [{"type": "image", "part": "a"}, {"type": "text", "text": samples.QUESTION}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": record["conversations"][1]["value"]}]
        encoded = processor.encode(messages, {"a": (tmp_path / "a.jpg").read_bytes()})
        prompt = processor.prompt([samples.picture(1)], samples.QUESTION)
        assert row["trained"] == int((encoded.labels >= 0).sum())
        inputs = {
            "input_ids": torch.from_numpy(encoded.ids)[None], "attention_mask": torch.ones(1, len(encoded.ids), dtype=torch.long),
            "image_grid_thw": prompt["image_grid_thw"], "pixel_values": _pixels(encoded, processor),
        }  # fmt: skip
        logs = model(**inputs)[0].float().log_softmax(-1)
        trained = [place for place, label in enumerate(encoded.labels) if label >= 0]
        expected = -sum(float(logs[place, encoded.labels[place]]) for place in trained) / len(trained)
        assert abs(row["loss"] - expected) < 1e-4
    shown = capsys.readouterr().out
    assert "zq jx qz vv xj." in shown and f"loss {found[0]['loss']:.4f}" in shown


def _pixels(encoded, processor):
    from qwen3vl_core.data.batch import pixel_values

    return pixel_values(torch.from_numpy(encoded.patches), processor.rules)


def test_losses_need_a_model(tmp_path, capsys):
    (tmp_path / "all.json").write_text(json.dumps([samples.record(0)]))
    assert main(["inspect", str(tmp_path / "all.json"), "--losses", str(tmp_path / "x")]) == 2
    assert "--losses: needs --model" in capsys.readouterr().err
