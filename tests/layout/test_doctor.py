"""`qwen3vl doctor`: problems are found, and each failure comes with its fix."""

from __future__ import annotations

import json
import os
import stat
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from qwen3vl_core.cli import main
from qwen3vl_core.layout import doctor

GPU = {"index": "0", "name": "NVIDIA H100", "memory.total": "81559", "memory.used": "4", "driver_version": "570.1", "compute_cap": "9.0"}


def test_the_doctor_examines_this_machine(capsys, tmp_path):
    code = main(["doctor", "--json", "--runs", str(tmp_path / "new" / "runs")])
    found = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    assert {"Python", "packages", "torch", "disk", "ports", "run store"} <= found.keys()
    assert found["torch"]["status"] == found["ports"]["status"] == found["run store"]["status"] == "ok"
    assert code == int(any(c["status"] == "fail" for c in found.values()))
    assert all(c["fix"] for c in found.values() if c["status"] != "ok")
    assert not (tmp_path / "new").exists()


def test_missing_and_old_packages_are_named_with_the_command():
    def version(name: str) -> str:
        if name == "lost":
            raise PackageNotFoundError(name)
        return "1.4"

    needs = ["lost>=1", "old>=2,<3", "fine>=1.2", "extra>=9; extra == 'gpu'", "other>=9; python_version < '3'"]
    lost, old, fine = doctor.check_packages(needs, version)
    assert (lost.status, lost.text) == ("fail", "missing") and lost.fix.endswith("-m pip install 'lost>=1'")
    assert old.status == "fail" and old.text == "1.4, out of the range <3,>=2"
    assert (fine.status, fine.text) == ("ok", "fine 1.4")


@pytest.mark.parametrize(
    ("gpus", "status", "words"),
    [
        ([GPU], "ok", "79.6 GiB, compute 9.0, driver 570.1"),
        ([GPU | {"memory.used": "40960"}], "warn", "40.0 GiB in use"),
        ([GPU | {"compute_cap": "7.5"}], "fail", "older than Ampere"),
        (None, "warn", "none; runs work on the CPU"),
    ],
)
def test_gpus_are_judged_by_the_output_of_nvidia_smi(gpus, status, words):
    (check,), has = doctor.check_gpus(lambda: gpus)
    assert (check.status, has) == (status, gpus is not None) and words in check.text


def fake_tool(folder: Path, text: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!{sys.executable}\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_nvidia_smi_is_read_and_its_failure_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fake_tool(tmp_path, "print('0, NVIDIA H100 80GB HBM3, 81559, 512, 570.1, 9.0')")
    assert doctor.ask_gpus() == [GPU | {"name": "NVIDIA H100 80GB HBM3", "memory.used": "512"}]
    fake_tool(tmp_path, "import sys; print('no devices were found', file=sys.stderr); sys.exit(9)")
    (check,), has = doctor.check_gpus()
    assert check.status == "fail" and "no devices were found" in check.text and not has and check.fix


def test_broken_torch_and_transformer_engine_are_distinguished():
    def names(found: dict, gpu: bool) -> dict[str, str]:
        return {c.name: c.status for c in doctor.check_torch(found, gpu)}

    good = {"torch": "2.11", "cuda_build": "13.0", "cuda": True, "gloo": True, "devices": ["H100"], "nccl": "2.28", "product": 512.0}
    assert names({"torch_error": "ImportError: libc10"}, True) == {"torch": "fail"}
    assert names(good | {"engine": "2.11"}, True) == dict.fromkeys(("torch", "CUDA", "NCCL", "Transformer Engine"), "ok")
    assert names(good | {"engine_error": "ImportError: x"}, True)["Transformer Engine"] == "fail"
    assert names(good | {"cuda": False, "cuda_build": None}, True)["CUDA"] == "fail"
    assert names({"torch": "2.11", "gloo": True}, False) == {"torch": "ok"}


def test_a_crashing_probe_is_reported_and_does_not_crash_the_doctor(tmp_path):
    (tmp_path / "torch.py").write_text("import os\nos._exit(11)\n")
    found = doctor.probe({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "ended with exit code 11" in found["torch_error"]


def test_a_probe_with_invalid_utf8_is_reported(tmp_path):
    (tmp_path / "torch.py").write_text("import os\nos.write(2, b'caf\\xe9: no GPU\\n')\nos._exit(11)\n")
    found = doctor.probe({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert "11" in found["torch_error"] and ": no GPU" in found["torch_error"]


def test_a_store_that_cannot_be_written_is_a_failure(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check = doctor.check_store(file / "runs")
    assert check.status == "fail" and "QWEN3VL_RUNS" in check.fix
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert doctor.check_store(tmp_path / "runs").status == "fail"
        tmp_path.chmod(0o700)


def test_little_disk_space_is_a_warning_and_none_a_failure(tmp_path):
    bounds = ((1, 1), (1, 1 << 60), (1 << 60, 1 << 61))
    judge = [doctor.check_space("disk", tmp_path, least, good, "free some").status for least, good in bounds]
    assert judge == ["ok", "warn", "fail"]


def test_the_report_says_how_many_failed():
    text = doctor.render([doctor.Check("a", "ok", "fine"), doctor.Check("b", "fail", "gone", "bring it back")])
    assert "-> bring it back" in text and text.endswith("1 failed")


def test_a_vendors_torch_is_kept_and_one_that_was_replaced_is_named():
    own, wheel = "2.9.0a0+145a3a7bda.nv25.10", "2.9.1+cu130"
    (packages,) = doctor.check_packages(["torch>=2.9.0a0,<2.14"], lambda name: "2.8.0a0+nv25.06")
    assert packages.status == "ok" and "a vendor's build, kept" in packages.text
    container = {"NVIDIA_PYTORCH_VERSION": "25.10"}
    (kept,), (lost,) = (list(doctor.check_vendor_torch(lambda name, v=v: v, container)) for v in (own, wheel))
    assert kept.status == "ok" and lost.status == "warn" and "stands in for the build of NVIDIA's container" in lost.text
    assert not list(doctor.check_vendor_torch(lambda name: wheel, {}))
