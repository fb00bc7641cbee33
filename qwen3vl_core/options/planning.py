"""Options of plan, recipe and doctor, which report but start nothing."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.options.declare import option

GPUS = (
    "GB200", "B200", "GH200", "H200", "H100", "H100 NVL", "H100 PCIe", "H800", "H20", "A100", "A800", "A40", "A30", "A10", "A10G", "L40S",
    "L40", "L20", "L4", "RTX 4090", "RTX 6000 Ada",
)  # fmt: skip


@dataclass
class PlanOptions:
    """Is a finetune valid, what does each GPU hold, does it fit, how long does a step take. Needs --size or --load."""

    gpus: int = option(0, help="GPUs of the whole run; 0: this machine's", group="Plan", minimum=0, maximum=65536)
    gpu: str | None = option(
        None, help="The GPUs by name: their memory and peak; default: this machine's, or those usual with --memory", group="Plan",
        choices=GPUS,
    )  # fmt: skip
    memory: float = option(0.0, help="Memory of one GPU; 0: as nvidia-smi reports, else 80", unit="GiB", group="Plan", minimum=0.0)
    gpus_per_node: int = option(8, help="GPUs of one machine", group="Plan", minimum=1, maximum=64)
    vision_tokens: int = option(
        -1, help="Tokens of pictures in a row (a 1024 x 1024 picture has 1024); -1: 1024, at most half of the row", group="Plan", minimum=-1
    )
    mfu: float = option(
        0.0,
        help="Share of the GPUs' peak that a step reaches without parallel layout; 0: as measured for such a model and rows",
        group="Plan",
        minimum=0.0,
        maximum=1.0,
    )
    peak_tflops: float = option(
        0.0, help="Dense bf16 peak of one GPU; 0: the data sheet of --gpu, or of this machine's", unit="TFLOP/s", group="Plan", minimum=0.0
    )
    suggest: bool = option(False, help="Rank the valid layouts for this many GPUs", group="Plan")
    presets: bool = option(False, help="Print a layout for each size on 1, 2, 4 and 8 GPUs of 80, 96 and 141 GB", group="Plan")
    emit: str | None = option(None, help="Print a script that runs it, and nothing else", group="Plan", choices=("sh", "slurm", "k8s"))
    image: str = option("qwen3vl:latest", help="Container image of the k8s job", group="Plan")
    claim: str = option("workspace", help="Persistent volume claim of the k8s job that holds model, data and runs", group="Plan")
    mount: str = option("/workspace", help="Where the k8s job mounts that volume", group="Plan")
    save: str | None = option(None, help="Write the options as a plan file (YAML) for qwen3vl finetune --plan", group="Plan", path="file")
    json: bool = option(False, help="Print JSON", group="Plan")


@dataclass
class RecipeOptions:
    """Reads the positional values of the published scripts (24 or 26 of a finetune, 6 or 7 of a conversion), explains their problems, and
    prints the same as named options; of a finetune its memory and time too, and a layout that works where its own does not."""

    gpus: int = option(0, help="GPUs of the run; 0: this machine's", group="Recipe", minimum=0, maximum=65536)
    save: str | None = option(None, help="Write the options as a plan file (YAML) for qwen3vl finetune --plan", group="Recipe", path="file")
    json: bool = option(False, help="Print JSON", group="Recipe")


@dataclass
class DoctorOptions:
    """Checks this machine: each problem that would keep a run from working, with the command that fixes it."""

    runs: str | None = option(None, help="Folder of the run records; else $QWEN3VL_RUNS or ~/.qwen3vl/runs", group="Doctor", path="folder")
    json: bool = option(False, help="Print JSON", group="Doctor")
