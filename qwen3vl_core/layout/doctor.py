"""`qwen3vl doctor`: checks whether runs will work on this machine; each failed check comes with the command that fixes it.

Nothing heavy is imported here: torch, Transformer Engine and NCCL are probed in a separate process, which may crash.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core import cells
from qwen3vl_core.colour import paint
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED
from qwen3vl_core.formats import GIB
from qwen3vl_core.language import filled, phrase, tr
from qwen3vl_core.layout.gpus import IDLE_GIB, INDEX, ask, uses
from qwen3vl_core.options.planning import DoctorOptions

VENDOR = re.compile(r"\+(.*\.)?nv\d")
"""In the version of NVIDIA's own builds of torch, as its containers have them: 2.9.0a0+145a3a7bda.nv25.10, 2.8.0a0+nv25.06."""
DISTRIBUTION = "qwen3vl-console"
IN_THE_CLONE = "in the clone: {} -m pip install -e ."
OTHER_TORCH = "torch {} stands in for the build of NVIDIA's container (PyTorch {}), which its packages were compiled for"
PYTHON = (3, 11)
ENGINE = "transformer-engine[pytorch]>=2.9,<2.12"
# with less than the first a run cannot even write its record; a 2B checkpoint with optimizer state is about 30 GB
DISK_LEAST, DISK_GOOD = 1 * GIB, 100 * GIB
SHM_LEAST, SHM_GOOD = 64 * 1024**2, 2 * GIB
PROBE_SECONDS = 180
# prints one JSON line; each part is tried separately, so that one that is broken does not hide the others
PROBE = """
import json, sys
answers = {}
def ask(name, question):
    try:
        answers[name] = question()
    except BaseException as error:
        answers[name + "_error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
def torch_version():
    import torch
    return torch.__version__
ask("torch", torch_version)
if "torch" in answers:
    import torch
    ask("cuda_build", lambda: torch.version.cuda)
    ask("cuda", lambda: torch.cuda.is_available())
    ask("gloo", lambda: torch.distributed.is_gloo_available())
    if answers.get("cuda"):
        ask("devices", lambda: [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
        ask("nccl", lambda: ".".join(map(str, torch.cuda.nccl.version())))
        ask("product", lambda: float((torch.ones(8, 8, device="cuda", dtype=torch.bfloat16) @ torch.ones(8, 8, device="cuda",
            dtype=torch.bfloat16)).sum()))
        def engine():
            import transformer_engine, transformer_engine.pytorch
            return getattr(transformer_engine, "__version__", "?")
        ask("engine", engine)
print("\\n" + json.dumps(answers))
"""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: str
    """ok, warn (a run works, with a limit) or fail."""
    text: str
    fix: str = ""
    """The command or the change that fixes it."""

    def as_json(self) -> dict[str, str]:
        """The check for `--json`."""
        return {"name": self.name, "status": self.status, "text": self.text, "fix": self.fix}


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    words = ".".join(map(str, version))
    if version[:2] < PYTHON:
        least = ".".join(map(str, PYTHON))
        return Check(
            "Python", "fail", filled("{}, older than {}", words, least), f"python{least} -m venv .venv && .venv/bin/pip install -e ."
        )
    return Check("Python", "ok", words)


def check_packages(requirements: list[str] | None = None, version_of: Callable[[str], str] = importlib.metadata.version) -> Iterator[Check]:
    """Whether each required package is installed, in a supported version. `check_torch` covers the `gpu` extra.

    requirements: in the syntax of package metadata; by default those of this distribution.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires(DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            text = filled("{} itself is not installed, so its requirements are unknown", DISTRIBUTION)
            yield Check("packages", "fail", text, filled(IN_THE_CLONE, sys.executable))
            return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Check("packages", "fail", "packaging is missing", f"{sys.executable} -m pip install packaging")
        return
    valid = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "fail", "missing", fix)
            continue
        if requirement.name == "torch" and VENDOR.search(version):
            # a vendor's build: what was compiled beside it needs it, whatever number it has
            valid.append(f"torch {version} (a vendor's build, kept)")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, "fail", filled("{}, out of the range {}", version, requirement.specifier), fix)
        else:
            valid.append(f"{requirement.name} {version}")
    if valid:
        yield Check("packages", "ok", ", ".join(valid))


def check_vendor_torch(
    version_of: Callable[[str], str] = importlib.metadata.version, environment: Mapping[str, str] = os.environ
) -> Iterator[Check]:  # fmt: skip
    """Whether an NVIDIA container's own build of torch, which its Transformer Engine was compiled for, is the one that is installed."""
    container = environment.get("NVIDIA_PYTORCH_VERSION")
    if not container:
        return
    try:
        version = version_of("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if VENDOR.search(version):
        yield Check("container", "ok", filled("NVIDIA's PyTorch {}, its own torch", container))
    else:
        yield Check(
            "container",
            "warn",
            filled(OTHER_TORCH, version, container),
            "python3 -m venv --system-site-packages --clear .venv, and install with -c (README)",
        )


def ask_gpus() -> list[dict[str, str]] | None:
    """This machine's GPUs as nvidia-smi lists them; None without nvidia-smi. Raises OSError when it fails."""
    return ask(INDEX, "name", "memory.total", "memory.used", "driver_version", "compute_cap", seconds=30)


def check_gpus(ask: Callable[[], list[dict[str, str]] | None] = ask_gpus) -> tuple[list[Check], bool]:
    """(checks, whether there is a GPU). A missing GPU is a warning: everything runs without one, slowly."""
    try:
        gpus = ask()
    except OSError as error:
        return [Check("GPU", "fail", f"nvidia-smi: {error}", "sudo modprobe nvidia, or restart the machine; then nvidia-smi")], False
    if not gpus:
        text = "none; runs work on the CPU, which is enough for the demo and small tests"
        return [Check("GPU", "warn", text, "use a machine with an NVIDIA GPU; in a container: docker run --gpus all")], False
    checks = []
    holders = {use.index: use.words for use in uses()}
    for place, gpu in enumerate(gpus):
        index = gpu.get(INDEX, str(place))
        total, used = (float(gpu.get(name, "nan")) / 1024 for name in ("memory.total", "memory.used"))
        about = gpu["name"], f"{total:.1f}", gpu.get("compute_cap", "?"), gpu.get("driver_version", "?")
        text = filled("{}, {} GiB, compute {}, driver {}", *about)
        if float(gpu.get("compute_cap") or 0) < 8:
            checks.append(
                Check(f"GPU {index}", "fail", filled("{}: older than Ampere (8.0), no bf16", text), "use --precision fp16, or a newer GPU")
            )
        elif used > IDLE_GIB:
            by = [holders[index]] if index in holders else []
            in_use = filled("{}; {} GiB in use by {}" if by else "{}; {} GiB in use", text, f"{used:.1f}", *by)
            checks.append(Check(f"GPU {index}", "warn", in_use, "--gpu-ids free starts a run on others"))
        else:
            checks.append(Check(f"GPU {index}", "ok", text))
    return checks, True


def probe(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What torch, NCCL and Transformer Engine answer, in a separate process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"torch_error": filled("did not answer in {} s", PROBE_SECONDS)}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        output = done.stderr.strip().splitlines() or ["no output"]
        return {"torch_error": filled("the process ended with exit code {}: {}", done.returncode, output[-1][:300])}


def check_torch(answers: dict[str, Any], gpu: bool) -> Iterator[Check]:
    """Checks of torch, its CUDA build, NCCL and Transformer Engine. answers: from `probe`. gpu: whether nvidia-smi lists one."""
    install = f"{sys.executable} -m pip install --force-reinstall torch"
    if "torch" not in answers:
        yield Check("torch", "fail", filled("does not import: {}", answers.get("torch_error", "?")), install)
        return
    yield Check("torch", "ok", filled("{}, CUDA {}", answers["torch"], answers.get("cuda_build") or "none"))
    if not answers.get("gloo"):
        yield Check("gloo", "fail", "torch has no gloo, which runs on a CPU and checkpoints need", install)
    if not gpu:
        return
    if not answers.get("cuda"):
        why = "a build without CUDA" if not answers.get("cuda_build") else answers.get("cuda_error", "torch.cuda.is_available() is False")
        text = filled("nvidia-smi shows a GPU, but torch does not see it: {}", why)
        yield Check("CUDA", "fail", text, filled("{}; nvidia-smi names the driver's CUDA", install))
        return
    if "product_error" in answers:
        yield Check("CUDA", "fail", filled("a bf16 matrix product on the GPU fails: {}", answers["product_error"]), install)
    else:
        yield Check("CUDA", "ok", filled("{} device(s), a bf16 matrix product ran", len(answers.get("devices", []))))
    if "nccl" in answers:
        yield Check("NCCL", "ok", answers["nccl"])
    else:
        yield Check("NCCL", "fail", filled("missing: {}; a run cannot use several GPUs", answers.get("nccl_error", "?")), install)
    if "engine" in answers:
        yield Check("Transformer Engine", "ok", answers["engine"])
    else:
        fix = f"{sys.executable} -m pip install --no-build-isolation '{ENGINE}'"
        text = filled("does not import: {}; without it training is slow", answers.get("engine_error", "?"))
        yield Check("Transformer Engine", "fail", text, fix)


def existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return folder


def check_space(name: str, folder: Path, least: int, good: int, fix: str) -> Check:
    """Whether the file system of `folder` has enough free space. It fails below `least` bytes and warns below `good`."""
    parent = existing(folder)
    try:
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return Check(name, "fail", f"{parent}: {error.strerror}", fix)
    about = folder, f"{free / GIB:.1f}"
    if free < least:
        return Check(name, "fail", filled("{}: {} GiB free, less than {}", *about, f"{least / GIB:.2g}"), fix)
    if free < good:
        return Check(name, "warn", filled("{}: {} GiB free; {} is recommended", *about, f"{good / GIB:.0f}"), fix)
    return Check(name, "ok", filled("{}: {} GiB free", *about))


def check_store(folder: Path) -> Check:
    """Whether run records can be written: creates and removes a file in the store, or in its nearest existing parent."""
    parent = existing(folder)
    fix = filled("mkdir -p {} && sudo chown $USER {}, or choose another: export QWEN3VL_RUNS=DIR", folder, folder)
    if not parent.is_dir():
        return Check("run store", "fail", filled("{}: {} is a file", folder, parent), fix)
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Check("run store", "fail", filled("{}: cannot be written ({})", folder, error.strerror), fix)
    return Check("run store", "ok", str(folder) if parent == folder else filled("{} (will be created)", folder))


def check_ports() -> Check:
    """Whether processes of this machine can connect to each other by TCP, as those of torchrun do."""
    fix = "ip link set lo up; and 127.0.0.1 localhost in /etc/hosts"
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
    except OSError as error:
        return Check("ports", "fail", f"127.0.0.1: {error.strerror or error}", fix)
    return Check("ports", "ok", filled("a free port was opened and reached on 127.0.0.1 ({})", port))


def check_console() -> Check:
    """Whether the command line finds the console that starts and watches runs."""
    if any(p.name == "launch" for p in importlib.metadata.entry_points(group="qwen3vl.launcher")):
        return Check("console", "ok", "registered")
    return Check("console", "fail", "not registered, so no run can be started", filled(IN_THE_CLONE, sys.executable))


def examine(runs: Path) -> list[Check]:
    """Run every check. runs: the folder of the run records."""
    checks = [check_python(), *check_packages(), *check_vendor_torch(), check_console()]
    gpus, has_gpu = check_gpus()
    shared = Path("/dev/shm")
    checks += [*gpus, *check_torch(probe(), has_gpu)]
    checks.append(check_space("disk", runs, DISK_LEAST, DISK_GOOD, "free some, or choose another disk: export QWEN3VL_RUNS=DIR"))
    if shared.exists():
        fix = "in a container: docker run --shm-size=16g; else: sudo mount -o remount,size=16G /dev/shm"
        checks.append(check_space("/dev/shm", shared, SHM_LEAST, SHM_GOOD, fix))
    return [*checks, check_ports(), check_store(runs)]


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def render(checks: list[Check]) -> str:
    """The printed report."""
    width = max(cells.width(phrase(c.name)) for c in checks)
    lines = []
    for c in checks:
        lines.append(f"{paint(f'{c.status:<5}', _COLOURS[c.status])} {cells.padded(phrase(c.name), width)}  {phrase(c.text)}")
        if c.fix and c.status != "ok":
            lines.append(f"{'':<5} {'':<{width}}  -> {phrase(c.fix)}")
    failed = sum(c.status == "fail" for c in checks)
    lines.append(tr("{count} failed", count=failed) if failed else tr("this machine has everything that runs need"))
    return "\n".join(lines)


def run(options: DoctorOptions, runs: Path) -> int:
    """Print the report. Returns the exit code: 1 if a check failed, else 0."""
    checks = examine(runs)
    print(json.dumps([c.as_json() for c in checks], indent=1) if options.json else render(checks))
    sys.stdout.flush()
    return EXIT_FAILED if any(c.status == "fail" for c in checks) else EXIT_DONE
