"""The reports of a comparison: a table that fits any terminal, JSON, and one self-contained HTML page."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from qwen3vl_core.caption import report, terminal
from qwen3vl_core.caption.comparison import Comparison, ReportCaption, ReportModel, ReportSample
from qwen3vl_core.caption.data_uri import PAGE_BYTES, PageFit, file_picture
from qwen3vl_core.caption.pictures import find_pictures
from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import write_output

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
EVIL = '<script>alert("1 & 2")</script> http://example.com/a.png \x1b[31mred\x07'


def comparison(prompt: str = "Describe this image.") -> Comparison:
    def sample(image: str, base: ReportCaption, tuned: ReportCaption) -> ReportSample:
        return ReportSample(image, {"base": base, "tuned": tuned})

    samples = [
        sample(
            "pictures/beach.png",
            ReportCaption("Of course. Here is a description.\n\n- **Subjects**: a woman with her dog on the beach.", 1.94, True),
            ReportCaption("a woman sitting on the beach with her dog", 1.8, True),
        ),
        sample(
            "pictures/海滩 <b>.png",
            ReportCaption("一只狗在海滩上奔跑,旁边有一个女人。", 2, True),
            ReportCaption("一只猫在海滩上。", 1, False),
        ),
        sample("c.png", ReportCaption("the same text", 0.1, True), ReportCaption("the same text", 0.1, True)),
        sample("d.png", ReportCaption("", 0.1, True), ReportCaption(EVIL + " " + "x" * 300, 0.1, True)),
    ]
    models = {"base": ReportModel("models/base", "4B"), "tuned": ReportModel("models/<tuned>", None)}
    return Comparison(prompt, models, samples, {"temperature": 0.0, "max_new_tokens": 256}, ["A note."])


def several() -> Comparison:
    """Three checkpoints of a run compared with the base, with references and votes."""
    names = ("base", "step 100", "step 200", "step 300")
    texts = [
        ("A long text of a woman, a dog and the sea.", "a woman", "a woman and a dog", "a woman sitting on the beach with her dog"),
        ("Two horses.", "a horse", "two horses at night", "two black horses in a meadow at night"),
    ]
    references = [("a woman sitting on the beach with her dog", "a lady and her dog"), ("two black horses in a meadow at night",)]
    samples = [
        ReportSample(f"{i}.png", {name: ReportCaption(text, 1.0) for name, text in zip(names, row, strict=True)}, references=references[i])
        for i, row in enumerate(texts)
    ]
    votes = {"0.png": "step 300", "1.png": "same"}
    return Comparison("Describe.", {name: ReportModel(f"run/{name}", None) for name in names}, samples, votes=votes)


PIXEL = "data:image/jpeg;base64,/9j/"


@pytest.mark.parametrize("width", [20, 33, 63, 64, 80, 131, 200])
def test_the_table_fits_the_terminal(width):
    table = terminal.table(comparison(EVIL), width=width, colour=False)
    for line in table.splitlines():
        assert terminal.width_of(line) <= width, line
    words = re.sub(r"\s|│", "", table)
    for word in ("course.", "sitting", "Anote."):
        assert word in words, word


def test_differences_are_marked_and_coloured():
    plain = terminal.table(comparison(), width=100, colour=False)
    coloured = terminal.table(comparison(), width=100, colour=True)
    assert "\x1b" not in plain and ESCAPES.sub("", coloured) == plain
    assert "[-Of course." in plain and "{+sitting on the beach+}" in plain
    assert "\x1b[31m[-Of course." in coloured and "\x1b[32m{+sitting" in coloured
    for line in coloured.splitlines():
        assert not ESCAPES.findall(line) or ESCAPES.findall(line)[-1] == "\x1b[0m", "colour ends with its line"


def test_full_captions_are_printed_side_by_side():
    sample = comparison().samples[0]
    base, tuned = sample.base.text, sample.tuned.text
    left, right = terminal.marked_captions(sample)
    for spans, text, marks in ((left, base, "[-"), (right, tuned, "{+")):
        joined = "".join(part for part, _ in spans)
        assert marks in joined
        assert joined.replace("[-", "").replace("-]", "").replace("{+", "").replace("+}", "") == text


def test_control_characters_in_captions_are_removed():
    table = terminal.table(comparison(EVIL), width=80, colour=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", table)


def test_a_part_of_the_pictures_can_be_shown_with_the_scores_of_all():
    table = terminal.table(comparison(), width=100, colour=False, show=1)
    assert "beach.png" in table and "c.png" not in table and "and 3 more" in table
    assert "75% of 4 pictures with different captions" in table


class Page(HTMLParser):
    """A strict HTML parser: every opened element must be closed in order."""

    EMPTY = ("meta", "img", "input", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.inside[tag][-1] += data


def test_the_html_page_is_well_formed_and_complete():
    made = comparison()
    page = Page(report.to_html(made, [PIXEL] * 4))
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [PIXEL] * 4
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [sample.image for sample in made.samples]
    paragraphs = page.inside["p"]
    for sample in made.samples[:3]:
        assert sample.base.text in paragraphs and sample.tuned.text in paragraphs
    assert "sitting on the beach" in page.inside["ins"] and any(text.startswith("Of course.") for text in page.inside["del"])
    assert "A note." in paragraphs and "no text" in paragraphs
    assert "models/<tuned>" in page.inside["dd"]


def test_html_in_captions_is_escaped():
    text = report.to_html(comparison(EVIL), [PIXEL] * 4)
    page = Page(text)
    assert not {"script", "a", "link", "iframe", "b", "object", "base"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any('<script>alert("1 & 2")</script>' in value for value in page.inside["dd"])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_the_html_page_loads_nothing_from_the_network():
    text = report.to_html(comparison(), [PIXEL] * 4)
    page = Page(text)
    for _, attributes in page.tags:
        assert "href" not in attributes and attributes.get("src", "data:").startswith("data:")
    style = page.inside["style"][0]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "prefers-color-scheme: dark" in style
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0].startswith("default-src 'none'")


def test_pictures_are_embedded_scaled_down_and_upright(tmp_path):
    file = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by its EXIF tag
    Image.radial_gradient("L").resize((1600, 800)).convert("RGB").save(file, exif=exif)
    (found,) = find_pictures([str(file)])
    for picture in (found.open(), file_picture(file)):
        head, data = PageFit(1).uri(picture).split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == "JPEG" and image.size == (256, 512)
    assert PageFit(1).uri(file_picture(tmp_path / "missing.jpg")) == ""


def test_the_pictures_of_a_long_page_are_smaller_so_that_all_fit():
    noise = Image.effect_noise((640, 480), 90).convert("RGB")
    many, shown = PageFit(500), 12
    assert many.side < 400
    sizes = [len(many.uri(noise.copy())) for _ in range(shown)]
    assert sum(sizes) <= PAGE_BYTES * shown / 500 and min(sizes) > 2000
    assert len(PageFit(10).uri(noise.copy())) > 4 * max(sizes)


LONG = (
    "The image shows a red ball on the green grass of a large meadow. In the background there are several tall trees whose leaves are "
    "turning yellow, and the sky above them is overcast. The mood of the scene is calm and quiet."
)


def test_where_one_caption_is_much_longer_what_both_have_is_marked():
    """Struck out would be nearly all of it."""
    first, second = report.marked_html([LONG, "a red ball on the grass"])
    assert first.startswith("The image shows <mark>a red ball on the</mark> green <mark>grass</mark> of") and "<del>" not in first
    assert second == "<mark>a red ball on the</mark> <mark>grass</mark>"
    made = comparison()
    sample = ReportSample("long.jpg", {"base": ReportCaption(LONG, 1.0), "tuned": ReportCaption("a red ball on the grass", 1.0)})
    made = replace(made, samples=[sample])
    page = report.to_html(made, [PIXEL], "run 0007 · 2026-11-30")
    assert "<title>Captions of two models · run 0007 · 2026-11-30</title>" in page
    assert "in both, where one is much longer" in page and "only in base" not in page
    text = terminal.table(made, width=160, colour=False)
    assert "{=a red ball on the=}" in text and "[-" not in text and "{=in both, where one is much longer=}" in text


def test_json_contains_texts_scores_and_differences():
    made = comparison()
    loaded = json.loads(report.to_json(made))
    assert loaded["prompt"] == made.prompt and loaded["models"]["base"] == {"path": "models/base", "size": "4B"}
    assert loaded["scores"]["differ"] == 0.75 and loaded["scores"]["tuned"]["empty"] == 0 and loaded["scores"]["base"]["empty"] == 1
    for row, sample in zip(loaded["captions"], made.samples, strict=True):
        assert (row["image"], row["base"], row["tuned"]) == (sample.image, sample.base.text, sample.tuned.text)
        assert "".join(first for _, first, _ in row["difference"]) == sample.base.text
        assert row["base_words"] == sample.base.words and row["tuned_whole"] == sample.tuned.whole
    assert "海滩" in report.to_json(made)


def test_a_full_disk_keeps_the_old_report(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"a\.json: cannot be written \(the disk is full\); free some space"):
        write_output(file, "new " * 100_000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and file.read_text() == "old"


def test_several_checkpoints_are_compared_with_scores_and_votes():
    made = several()
    table = terminal.table(made, width=160, colour=False)
    heading = next(line for line in table.splitlines() if "step 200 ·" in line)
    assert [name in heading for name in ("base ·", "step 100 ·", "★ step 300 ·")] == [True] * 3 and heading.count("│") == 3
    assert "reference: a lady and her dog" in table and "{+sitting on the beach" in table and "[-" not in table
    rows = {line[:28].strip(): line[28:].split() for line in table.splitlines()}
    assert rows["ROUGE-L, 0 to 1"][-1] == "1.000" and rows["votes"] == ["0", "0", "0", "1"]
    assert float(rows["CIDEr-D, 0 to 10"][-1]) > float(rows["CIDEr-D, 0 to 10"][1])
    assert "1 voted equally good" in table
    narrow = terminal.table(made, width=80, colour=False)
    assert all(terminal.width_of(line) <= 80 for line in narrow.splitlines()) and "│" not in narrow
    loaded = json.loads(report.to_json(made))
    assert loaded["votes"] == {"base": 0, "step 100": 0, "step 200": 0, "step 300": 1, "same": 1}
    assert loaded["captions"][0]["vote"] == "step 300" and loaded["captions"][0]["step 300_rouge_l"] == 1
    assert "step 100_difference" in loaded["captions"][0] and loaded["scores"]["step 300"]["rouge_l"] == 1
    page = Page(report.to_html(made, [PIXEL, ""]))
    assert sum(tag == "section" for tag, _ in page.tags) == 8
    assert any("equally good" in text for text in page.inside["p"])
    assert page.inside["ins"] and not [text for text in page.inside.get("del", []) if "only" not in text]


def test_differences_ignore_the_case_and_keep_every_word():
    marked = report.marked_html
    assert marked(["The red ball.", "the blue ball."]) == ["The <del>red</del> ball.", "the <ins>blue</ins> ball."]
    assert marked(["It leaves a lot.", "It is quite simple."]) == [
        "It <del>leaves a lot</del>.",
        "It <ins>is quite simple</ins>.",
    ]
    assert marked(["", "a"]) == ["", "a"] and marked(["<b>", "<b>"]) == ["&lt;b&gt;"] * 2
    assert marked(["a cat", "a dog", "a big cat"]) == ["a cat", "a <ins>dog</ins>", "a <ins>big</ins> cat"]
