"""Videos: tokens, timestamps and pixels of `Qwen3VLProcessor`, from files and from folders of frames."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from qwen3vl_core.data import video as plans
from qwen3vl_core.data import video_decode
from qwen3vl_core.data.batch import collate, pack
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.media_limits import MediaLimits
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError
from qwen3vl_core.structure.micro_batch import IGNORED
from tests.data import samples, videos

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of the video files that conversations show."""
    folder = tmp_path_factory.mktemp("video_files")
    videos.write_pool(folder)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory, files):
    return videos.run_hugging_face(tmp_path_factory.mktemp("hugging_face"), files)


def answers(ids: list[int], processor: ChatProcessor) -> list[int]:
    """Labels by walking over the turns' own tokens."""
    start, end = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    opening = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
    labels, learning, place = [IGNORED] * len(ids), False, 0
    while place < len(ids):
        if ids[place] == start:
            learning = ids[place : place + len(opening)] == opening
            place += len(opening) if learning else 1
            continue
        if learning:
            labels[place - 1] = ids[place]
            learning = ids[place] != end
        place += 1
    return labels


def test_generated_conversations_equal_hugging_face(processor, expected, files):
    """Text, pictures, video files and folders of frames; ids, labels and grids are equal, pixels too."""
    kinds, every = set(), ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    for number in range(videos.CONVERSATIONS):
        stored, _, media, _, _ = videos.conversation(number, files)
        found = processor.encode(stored, media)
        ids = expected[f"{number}.input_ids"][0].tolist()
        assert found.ids.tolist() == ids, number
        assert found.labels.tolist() == answers(ids, processor), number
        inputs = collate([found], processor.pad_token_id, processor.rules, processor.video_rules).model_inputs("cpu", torch.float32)
        names = {name for name in every if f"{number}.{name}" in expected}
        assert names == set(inputs) - {"input_ids", "attention_mask"}, number
        for name in names:
            theirs = torch.from_numpy(expected[f"{number}.{name}"])
            assert inputs[name].shape == theirs.shape
            assert (inputs[name] - theirs).abs().max() <= (0 if name.endswith("thw") else TOLERANCE), (number, name)
        kinds |= names or {"text only"}
    assert len(kinds) >= 4


def test_generated_video_files_are_the_same_in_every_process(files, tmp_path):
    """Also where new memory holds something else than here: an encoder may read what nobody wrote."""
    for filled in ("1", "77", "200"):
        folder = tmp_path / filled
        folder.mkdir()
        code = "import sys, pathlib; from tests.data import videos; videos.write_pool(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=os.environ | {"MALLOC_PERTURB_": filled})
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {file.name: file.read_bytes() for file in files.iterdir()}


CLIPS = {
    "H.264 with B frames": {},
    "key frames only": {"gop": 1},
    "one key frame": {"gop": 250},
    "MPEG-4": {"codec": "mpeg4"},
    "AVI without timestamps": {"codec": "mpeg4", "format": "avi"},
    "VP9 in WebM": {"codec": "libvpx-vp9", "format": "webm"},
    "Matroska": {"format": "matroska"},
    "a transport stream": {"format": "mpegts"},
    "one frame": {"frames": 1},
}


@pytest.mark.parametrize("name", CLIPS)
def test_seeking_and_streaming_give_the_same_frames(name):
    data = videos.video(**({"frames": 60} | CLIPS[name]))
    whole = videos.all_frames(data)
    header = video_decode.header(data, "it")
    assert header == video_decode.VideoHeader(len(whole), 12.0, 48, 64)
    last = len(whole) - 1
    for wanted in ([0], [last], [0, last, last], list(range(0, last + 1, 17)), [last // 2], list(range(last + 1))):
        found = video_decode.frames(data, np.array(wanted), "it")
        assert all(np.array_equal(frame, whole[number]) for frame, number in zip(found, wanted, strict=True)), wanted


def test_sparse_frames_are_sought(monkeypatch):
    data, shown = videos.video(240, gop=12), []
    real = video_decode._walk

    class Counted:
        def __init__(self, container):
            self.container = container

        def decode(self, stream):
            for frame in self.container.decode(stream):
                shown.append(frame.pts)
                yield frame

        def seek(self, *place, **how):
            self.container.seek(*place, **how)

    monkeypatch.setattr(video_decode, "_walk", lambda container, *rest: real(Counted(container), *rest))
    video_decode.frames(data, np.array([0, 80, 160, 239]), "it")
    assert len(shown) < 60
    shown.clear()
    video_decode.frames(data, np.arange(0, 240, 3), "it")
    assert len(set(shown)) == len(shown) == 238


def message(part: dict) -> list[dict]:
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "That."}]


FILE = {"type": "video", "part": "vid0.mp4"}


def test_a_video_of_one_frame_is_padded(processor):
    found = processor.encode(message(FILE), {"vid0.mp4": videos.video(1)})
    assert found.video_grids[0, 0] == 1
    assert "<0.0 seconds>" in processor.tokenizer.decode(found.ids.tolist())
    one, two = np.split(found.video_patches.reshape(len(found.video_patches), 3, 2, 256), 2, axis=2)
    assert np.array_equal(one, two)


def test_timestamps_stand_in_the_middle_of_each_pair_of_frames(processor):
    found = processor.encode(message(FILE), {"vid0.mp4": videos.video(36, 12)})
    text = processor.tokenizer.decode(found.ids.tolist())
    start, end, token = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
    assert [part.split(" seconds>")[0] for part in text.split("<")[1:] if " seconds>" in part] == ["0.3", "1.5", "2.6"]
    assert text.count(token) == found.video_grids.prod() // 4
    assert f"user\n{start}<0.3 seconds>{start}{token}" in text and f"{token}{end}{end}What?" in text
    bare = ChatProcessor.from_pretrained(samples.CHECKPOINT, outer_vision_tokens=False)
    other = bare.tokenizer.decode(bare.encode(message(FILE), {"vid0.mp4": videos.video(36, 12)}).ids.tolist())
    assert f"user\n<0.3 seconds>{start}{token}" in other and f"{token}{end}What?" in other
    assert len(other.split(token)) == len(text.split(token))


def test_given_rules_take_the_place_of_the_checkpoints():
    processor = ChatProcessor.from_pretrained(samples.CHECKPOINT, video={"fps": 4.0, "max_frames": 6, "min_frames": None})
    found = processor.encode(message(FILE), {"vid0.mp4": videos.video(36, 12)})
    assert found.video_grids[0, 0] == 3
    with pytest.raises(RequestError, match="fps, min_frames"):
        ChatProcessor.from_pretrained(samples.CHECKPOINT, video={"fps": -1})


def test_the_options_are_the_checkpoints_entries_under_other_names(tmp_path, processor):
    """Equal to Hugging Face's processor with these values in its files, which the generated conversations compare."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(samples.CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "video_preprocessor_config.json").read_text())
    config |= {
        "fps": 4.0,
        "max_frames": 4,
        "min_frames": 2,
        "size": {**config.get("size", {}), "shortest_edge": 4096, "longest_edge": 12288},
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(config))
    limits = MediaLimits(video_fps=4.0, video_max_frames=4, video_max_pixels=12288)
    data = {"vid0.mp4": videos.video(36, 12)}
    theirs, ours, without = (
        each.encode(message(FILE), data)
        for each in (ChatProcessor.from_pretrained(folder), ChatProcessor.from_pretrained(samples.CHECKPOINT, limits), processor)
    )
    assert (theirs.ids == ours.ids).all() and (theirs.video_patches == ours.video_patches).all()
    assert (theirs.video_grids == ours.video_grids).all() and (ours.video_grids != without.video_grids).any()
    few = ChatProcessor.from_pretrained(samples.CHECKPOINT, MediaLimits(video_max_frames=2))
    assert few.encode(message(FILE), data).video_grids[0, 0] == 1


@pytest.mark.parametrize("most", [1, 4, 9, 40, 10_000])
def test_a_cap_makes_pictures_and_videos_smaller_together(processor, most):
    parts = {"vid0.mp4": videos.video(36, 12), "img0.jpg": samples.encoded(samples.picture(1, 192, 128))}
    messages = message(FILE)
    messages[0]["content"].insert(0, {"type": "image", "part": "img0.jpg"})
    capped = ChatProcessor.from_pretrained(samples.CHECKPOINT, MediaLimits(max_visual_tokens=most))
    whole, found = processor.encode(messages, parts), capped.encode(messages, parts)
    visual = lambda encoded: sum(int(grid.prod()) // 4 for grids in (encoded.grids, encoded.video_grids) for grid in grids)  # noqa: E731
    least = 1 + int(found.video_grids[0, 0])
    # each picture and each pair of frames keeps one token
    assert visual(found) < most + least and (visual(found) == visual(whole)) == (visual(whole) <= most)
    # the text around them stays, and each medium keeps its frames
    assert len(whole.ids) - visual(whole) == len(found.ids) - visual(found)
    assert len(found.ids) == len(capped.tokenize(messages, parts).ids)


def test_a_sample_that_is_too_long_names_the_option_that_helps(processor):
    with pytest.raises(DataError, match=r"are of videos: use a smaller --video-max-frames or --video-max-pixels"):
        processor.tokenize(message(FILE), {"vid0.mp4": videos.video(36, 12)}, limit=20)
    text = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "A dog."}]
    with pytest.raises(DataError, match="20 at most; use a longer --seq-length"):
        processor.tokenize(text, {}, limit=20)


def test_a_video_turned_by_its_container_stands_upright():
    import av

    data, file = videos.video(4), io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(90)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    (turned,) = video_decode.frames(file.getvalue(), np.array([0]), "it")
    (flat,) = video_decode.frames(data, np.array([0]), "it")
    assert turned.shape == (64, 48, 3) and np.array_equal(turned, np.rot90(flat))
    rules = plans.VideoRules(min_pixels=4096, max_pixels=16384)
    planned = plans.plan(video_decode.header(file.getvalue(), "it"), rules)
    patches, grid = plans.patches(video_decode.frames(file.getvalue(), planned.frames, "it"), planned, rules)
    assert grid[1] >= grid[2] and len(patches) == np.prod(grid)


FOLDER = {"type": "video", "part": "vid0", "frames": ["vid0.00000.png", "vid0.00001.png"], "fps": 2.0}
FRAMES = {name: samples.encoded(samples.picture(i), "PNG") for i, name in enumerate(FOLDER["frames"])}
MP4 = videos.video()
BAD = {
    "a missing file": (FILE, {}, "missing_video"),
    "a missing frame": (FOLDER, {"vid0.00000.png": FRAMES["vid0.00000.png"]}, "missing_video"),
    "no name": ({"type": "video"}, {}, "bad_messages"),
    "no frames": (FOLDER | {"frames": []}, FRAMES, "bad_messages"),
    "frames that are none": (FOLDER | {"frames": [1]}, FRAMES, "bad_messages"),
    "no fps": (FOLDER | {"fps": None}, FRAMES, "bad_messages"),
    "fps 0": (FOLDER | {"fps": 0}, FRAMES, "bad_messages"),
    "fps true": (FOLDER | {"fps": True}, FRAMES, "bad_messages"),
    "no video": (FILE, {"vid0.mp4": b"no video at all"}, "broken_video"),
    "an empty file": (FILE, {"vid0.mp4": b""}, "broken_video"),
    "a picture": (FILE, {"vid0.mp4": FRAMES["vid0.00000.png"]}, "broken_video"),
    "a playlist of other files": (FILE, {"vid0.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"}, "broken_video"),
    "a list of other files": (FILE, {"vid0.mp4": b"ffconcat version 1.0\nfile /etc/hostname\n"}, "broken_video"),
    "a broken frame": (FOLDER, FRAMES | {"vid0.00001.png": FRAMES["vid0.00001.png"][:200]}, "broken_picture"),
    "a thread": (FILE, {"vid0.mp4": videos.video(2, width=6420, height=16, codec="mpeg4")}, "extreme_video"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_has_a_reason(processor, name):
    part, media, reason = BAD[name]
    with pytest.raises(DataError) as refused:
        processor.encode(message(part), media)
    assert refused.value.reason == reason and refused.value.detail


def test_a_video_with_an_unknown_codec_says_so(processor):
    data = videos.video(4, codec="mpeg4", format="avi").replace(b"FMP4", b"ZZZZ")
    with pytest.raises(DataError, match=r"^broken_video: vid0\.mp4: its codec is unknown; convert the video to H\.264$"):
        processor.encode(message(FILE), {"vid0.mp4": data})
    with pytest.raises(DataError, match="its codec is unknown"):
        video_decode.frames(data, np.array([0]), "it")


def test_a_video_that_is_cut_off_is_broken_and_one_that_lacks_its_last_frame_is_not(processor):
    data = videos.video(60, codec="mpeg4", format="avi")
    assert len(processor.encode(message(FILE), {"vid0.mp4": data}).video_grids) == 1
    with pytest.raises(DataError, match=r"broken_video: .*vid0\.mp4"):
        processor.encode(message(FILE), {"vid0.mp4": data[: len(data) // 2]})
    numbers = np.array([0, 20, 40, 61])
    found = video_decode.frames(data, numbers, "it")
    assert np.array_equal(found[3], found[2])


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "avi", "mov"])
def test_a_cut_file_is_found_by_its_header_alone_in_every_container(tmp_path, container):
    import av

    from qwen3vl_core.data.prepare.media_check import check_file

    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream("libvpx" if container == "webm" else "mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(80):
            picture = np.random.RandomState(number).randint(0, 255, (64, 64, 3), dtype=np.uint8)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode())
    path = tmp_path / "a.video"
    path.write_bytes(file.getvalue())
    assert check_file(path, "header", "video").shape == (64, 64)
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(DataError) as refused:
        check_file(path, "header", "video")
    assert refused.value.reason == "broken_video"


def test_a_checkpoint_without_video_rules_says_so(processor):
    blind = ChatProcessor(processor.tokenizer, processor.chat_template, processor.rules, processor.eos_token_ids, processor.pad_token_id)
    with pytest.raises(DataError, match=r"video: .*video_preprocessor_config"):
        blind.encode(message(FILE), {"vid0.mp4": MP4})


def test_a_long_video_is_refused_before_it_is_decoded(processor, monkeypatch):
    monkeypatch.setattr(plans, "decode", None)
    with pytest.raises(DataError, match="too_long"):
        processor.encode(message(FILE), {"vid0.mp4": MP4}, limit=20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Samples with a video, with frames, with a picture and a video, and with text."""
    one, two = json.dumps({"messages": message(FILE)}).encode(), json.dumps({"messages": message(FOLDER)}).encode()
    both = message(FILE)
    both[0]["content"].insert(0, {"type": "image", "part": "img0.png"})
    stored = [
        ("a", {"json": one, "vid0.mp4": MP4}),
        ("b", {"json": two, **FRAMES}),
        ("c", {"json": json.dumps({"messages": both}).encode(), "vid0.mp4": MP4, "img0.png": FRAMES["vid0.00000.png"]}),
        ("d", {"json": samples.conversation(pictures=0)}),
        ("e", {"json": one, "vid0.mp4": MP4[:900]}),
    ]
    return samples.raw_dataset(tmp_path_factory.mktemp("videos") / "data", stored)


@pytest.mark.parametrize("packing", [False, True])
def test_videos_come_through_the_loader(processor, dataset, packing):
    source = build_loader(
        dataset, "train", processor, micro_batch_size=1, global_batch_size=4, seq_length=700, packing=packing, num_workers=1
    )
    batches = [batch for _ in range(3) for batch in next(source)]
    source.close()
    assert {key for batch in batches for key in batch.keys} == {"a", "b", "c", "d"} and set(source.skipped) == {"broken_video"}
    for batch in batches:
        inputs = batch.model_inputs("cpu", torch.bfloat16)
        shown = sum(key != "d" for key in batch.keys)
        assert ("pixel_values_videos" in inputs) == bool(shown) == ("video_grid_thw" in inputs)
        if shown:
            assert inputs["video_grid_thw"].shape == (shown, 3)
            assert inputs["pixel_values_videos"].shape == (int(inputs["video_grid_thw"].prod(dim=1).sum()), 1536)
            assert inputs["pixel_values_videos"].dtype == torch.bfloat16


def test_the_model_takes_videos_packed_and_padded(processor, dataset):
    """The same losses for a video sample alone and as a document of a packed row."""
    import qwen3vl_core

    model = qwen3vl_core.load(samples.CHECKPOINT, dtype=torch.float32)
    media = {"vid0.mp4": MP4, **FRAMES}
    made = [processor.encode(message(part), media) for part in (FILE, FOLDER)]
    settings = (processor.pad_token_id, processor.rules, processor.video_rules)
    with torch.no_grad():
        row = pack(made, *settings, multiple=4)
        packed = model(**row.model_inputs("cpu", torch.float32), labels=row.labels.clamp(min=0))
        for place, one in zip(row.cu_seqlens.tolist(), made, strict=False):
            batch = collate([one], *settings)
            alone = model(**batch.model_inputs("cpu", torch.float32), labels=batch.labels.clamp(min=0))
            assert torch.allclose(packed[:, place : place + len(one.ids)], alone, atol=1e-4)
