"""Both hubs' real clients against a small hub of the tests' own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from qwen3vl_core.cli import main
from qwen3vl_core.data import download, hub_choice, hubs
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import DownloadOptions
from tests.console.runs.jobs import until
from tests.data import hub_server

HUBS = ("huggingface", "modelscope")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", served.address)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # no login, no cache and no settings of the user's own
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        # the clients wait longer from one try to the next
        monkeypatch.setenv("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "1")
        yield served


def get(folder, *words, hub="huggingface", kind="model"):
    return main(["download", kind, "owner/thing", "--from", hub, "--to", str(folder), *words])


def is_whole(folder):
    there = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(there.pop(download.RECORD))
    return there == hub_server.FILES and record["files"] == {name: len(content) for name, content in hub_server.FILES.items()}


@pytest.mark.parametrize("which", HUBS)
def test_a_connection_that_is_cut_half_way_is_gone_on_with(hub, tmp_path, capsys, which, monkeypatch):
    hub.cuts = 1
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert get(tmp_path / "got", hub=which) == 0
    assert is_whole(tmp_path / "got") and not (tmp_path / "got.tmp").exists()
    first, second = hub.ranges()
    size = len(hub_server.FILES[hub_server.LARGE])
    assert not first and 0 < int(second.removeprefix("bytes=").rstrip("-")) <= size // 2
    assert not any(hub.logins)
    # the second transfer began where the first one had come to
    assert hub.sent < 1.1 * size
    out, err = capsys.readouterr()
    assert "2 files, 24.6 MB" in out and "100%" in err and "Traceback" not in err
    # once more: nothing is asked of the hub
    asked = len(hub.asked)
    assert get(tmp_path / "got", hub=which) == 0
    assert "already there" in capsys.readouterr().out and len(hub.asked) == asked
    # a file that was lost since is fetched again, and that one alone
    (tmp_path / "got" / "config.json").unlink()
    sent = hub.sent
    assert get(tmp_path / "got", hub=which) == 0
    assert is_whole(tmp_path / "got") and (hub.sent == sent or which == "huggingface")


@pytest.mark.parametrize("which", HUBS)
def test_a_hub_that_goes_away_leaves_what_came_for_the_next_time(hub, tmp_path, capsys, which, monkeypatch):
    monkeypatch.setattr(hub, "cuts", 100)
    assert get(tmp_path / "got", hub=which) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the partial download is kept in {tmp_path / 'got.tmp'}, the same command resumes it" in line
    assert not (tmp_path / "got").exists()
    # another thing does not go into the same place
    assert get(tmp_path / "got", hub=which, kind="dataset") == 2
    assert "holds model owner/thing" in capsys.readouterr().err
    hub.cuts, begun = 0, len(hub.ranges())
    assert get(tmp_path / "got", hub=which) == 0
    assert is_whole(tmp_path / "got")
    assert all(range_.startswith("bytes=") and range_ != "bytes=0-" for range_ in hub.ranges()[begun:])


def test_a_download_that_is_killed_goes_on_and_leaves_no_client_behind(hub, tmp_path):
    words = [sys.executable, "-m", "qwen3vl_core.cli", "download", "dataset", "owner/thing", "--to", str(tmp_path / "got")]
    hub.kind, hub.pause = "dataset", True
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    assert hub.half_way.wait(60)
    client = os.pidfd_open(next(int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(int(pid)) == process.pid))
    until(lambda: any(half.stat().st_size for half in (tmp_path / "got.tmp" / hubs.PARTIAL).glob("*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert select.select([client], [], [], 60)[0]
    os.close(client)
    hub.pause = False
    hub.go.set()
    assert (tmp_path / "got.tmp").is_dir() and not (tmp_path / "got").exists()
    assert get(tmp_path / "got", kind="dataset") == 0
    assert is_whole(tmp_path / "got") and hub.ranges()[-1].startswith("bytes=")


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.mark.parametrize("which", HUBS)
def test_patterns_choose_files(hub, tmp_path, capsys, which):
    assert get(tmp_path / "got", "--include", "*.json", "--exclude", "weights/", hub=which) == 0
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == [download.RECORD, "config.json"]
    assert not hub.sent
    assert get(tmp_path / "none", "--include", "*.md", hub=which) == 2
    assert "--include *.md: none of 2 files matches; there are config.json" in capsys.readouterr().err


@pytest.mark.parametrize("which", HUBS)
def test_what_is_not_there_is_said_in_one_line(hub, tmp_path, capsys, which):
    def line(code, *words, name="owner/thing", kind="model"):
        assert main(["download", kind, name, "--from", which, "--to", str(tmp_path / "got"), *words]) == code
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and len(err) < 500, err
        assert not list(tmp_path.glob("got*"))
        return err

    assert "has no model of that name" in line(2, name="owner/nothing")
    assert "ask for a model" in line(2, kind="dataset")
    assert "--revision v9:" in line(2, "--revision", "v9")
    hub.status = 401
    assert "log in" in line(2)
    hub.status, hub.files = None, {"../../outside": b"x"}
    assert "which is not a safe file name" in line(2)
    # nobody listens there any more
    os.environ["HF_ENDPOINT"] = os.environ["MODELSCOPE_DOMAIN"] = "http://127.0.0.1:9"
    said = line(1)
    assert "cannot be reached" in said and "refused" in said and f"--from {download._OTHER[which]}" in said


def test_without_a_hub_it_is_modelscope_where_hugging_face_does_not_answer(hub, tmp_path, capsys, monkeypatch):
    def took(name, *words):
        assert main(["download", "model", "owner/thing", "--to", str(tmp_path / name), *words]) == 0
        assert is_whole(tmp_path / name)
        return json.loads((tmp_path / name / download.RECORD).read_text())["hub"], capsys.readouterr().err

    assert took("named")[0] == "huggingface"  # by HF_ENDPOINT, which nobody doubts
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr(hub_choice, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub_choice, "HUGGING_FACE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert hub_choice.choose() == "modelscope" and time.monotonic() - begin < 5
    for address, answers in (("http://127.0.0.1:9", False), (hub.address + "/nothing", True), ("not an address", False)):
        monkeypatch.setattr(hub_choice, "PROBE_SECONDS", 30)
        assert hub_choice.answers(address) is answers
    which, said = took("got")
    assert which == "modelscope" and "--from huggingface insists" in said
    # what is there decides without asking
    monkeypatch.setattr(hub_choice, "choose", None)
    assert took("got")[0] == "modelscope"


@pytest.mark.parametrize("which", HUBS)
def test_a_client_that_is_not_installed_is_named(which, tmp_path, capsys, monkeypatch):
    # a package of that name which cannot be imported comes first
    (tmp_path / "site" / hubs.HUBS[which].package).mkdir(parents=True)
    (tmp_path / "site" / hubs.HUBS[which].package / "__init__.py").write_text(
        f"raise ModuleNotFoundError('No module named', name='{hubs.HUBS[which].package}')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert get(tmp_path / "got", hub=which) == 2
    assert f"--from {which}: its client is not installed; pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "thing with spaces"}, "NAME thing with spaces: must be OWNER/NAME"),
        ({"name": "../thing"}, r"NAME \.\./thing: must be"),
        ({"name": "thing", "from_": "modelscope"}, "NAME thing: must be OWNER/NAME"),
        ({"from_": "elsewhere"}, "--from elsewhere: must be one of auto, modelscope, huggingface"),
        ({"kind": "song"}, "KIND song: must be one of model, dataset"),
        ({"to": "file"}, "a file stands there"),
        ({"to": "file/below"}, "cannot be written to"),
        ({"to": "full"}, "already holds something that was not downloaded"),
        ({"to": "busy"}, "busy.tmp stands in the way"),
    ],
)
def test_wrong_requests_wait_for_no_hub(tmp_path, change, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for name in ("full", "busy.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    monkeypatch.setattr(download, "_fetch", None)
    with pytest.raises(RequestError, match=words):
        download.run(DownloadOptions(**{"kind": "model", "name": "owner/thing", "to": "new"} | change))


def test_an_address_from_a_browser_is_a_name_too(monkeypatch):
    for address in ("https://huggingface.co/owner/thing", "https://modelscope.cn/models/owner/thing/files", "owner/thing/"):
        options = DownloadOptions(kind="model", name=address, to="x")
        assert download._checked_name(options) == "owner/thing"


def test_a_disk_without_room_is_said_before_and_while(hub, tmp_path, monkeypatch, capsys):

    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 10**6))
    assert get(tmp_path / "got") == 2
    assert "needs 24.6 MB" in capsys.readouterr().err and not list(tmp_path.glob("got*"))
    error = OSError(28, "No space left on device")
    options = DownloadOptions(kind="model", name="owner/thing", to="x", from_="huggingface")
    kind, text = hubs.classify(_wrapped(error))
    said = download._client_error({"problem": kind, "text": text, "address": ""}, options, tmp_path)
    assert isinstance(said, WorkError) and "is full; free some space" in str(said)


def _wrapped(error):
    try:
        try:
            raise error
        except OSError as full:
            raise RuntimeError("the client's own") from full
    except RuntimeError as made:
        return made


@pytest.mark.parametrize("port", ["the hub's", "closed"])
def test_a_password_in_the_hubs_address_is_neither_shown_nor_recorded(hub, tmp_path, capsys, monkeypatch, port):
    address = hub.address if port == "the hub's" else "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", address.replace("http://", "http://me:hunter2@"))
    code = get(tmp_path / "got")
    out = "".join(capsys.readouterr())
    assert code in (0, 1, 2) and out and "hunter2" not in out
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert not [path for path in written if "home" not in path.parts], "the client's own cache is not ours"
    assert code or is_whole(tmp_path / "got")
