"""Two examples of each command, for its help."""

from __future__ import annotations

from qwen3vl_core.language import tr

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("qwen3vl demo", "qwen3vl demo --headless --dir /tmp/demo"),
    "download": (
        "qwen3vl download model Qwen/Qwen3-VL-4B-Instruct --to Qwen3-VL-4B-Instruct",
        "qwen3vl download dataset liuhaotian/LLaVA-Pretrain --from modelscope --to LLaVA-Pretrain --include '*.json'",
    ),
    "prepare": (
        "qwen3vl prepare samples.json --images pictures/ --to data",
        "qwen3vl prepare train.parquet --to data --split 99,1,0 --check decode --skip-missing",
    ),
    "inspect": ("qwen3vl inspect Qwen3-VL-4B-Instruct", "qwen3vl inspect data --seq-length 2048 --html samples.html"),
    "convert": (
        "qwen3vl convert Qwen3-VL-4B-Instruct base-mcore --verify", "qwen3vl convert ~/.qwen3vl/runs/0001-finetune/checkpoints tuned-hf",
    ),
    "plan": (
        "qwen3vl plan --size 4B --gpus 8 --memory 80 --suggest",
        "qwen3vl plan --size 8B --gpus 8 --tp 2 --distributed-optimizer --global-batch-size 64 --micro-batch-size 2",
    ),
    "recipe": (
        "qwen3vl recipe -- dsw 4B 1 128 1e-5 1e-6 2048 2048 bf16 1 1 1 1 1 true true true sel false 500 data data base-mcore 1000 50 out",
        "qwen3vl recipe --save plan.yaml --gpus 8 -- "
        "dsw 4B 1 128 1e-5 1e-6 2048 2048 bf16 1 1 1 1 1 true true true sel false 500 data data base-mcore 1000 50 out",
    ),
    "doctor": ("qwen3vl doctor", "qwen3vl doctor --json"),
    "finetune": (
        "qwen3vl finetune --load base-mcore --train-data data --train-iters 500 --save-interval 100",
        "qwen3vl finetune --load base-mcore --train-data data --lora-rank 16 --lr 1e-4 --gpu-ids free --max-restarts 3",
    ),
    "compare": (
        "qwen3vl compare --base Qwen3-VL-4B-Instruct --tuned tuned-hf --images holiday/ --html report.html",
        "qwen3vl compare --base base-mcore --tuned ~/.qwen3vl/runs/0001-finetune --data data --limit 16",
    ),
    "console": ("qwen3vl", "qwen3vl console --runs /shared/runs --web"),
    "runs": ("qwen3vl runs", "qwen3vl runs list --filter 'failed size:8B' --sort loss"),
    "notebook": ("qwen3vl notebook", "qwen3vl notebook --dir notebooks --port 8889 --no-browser"),
    "notify": ("qwen3vl notify --test", "qwen3vl notify --test env:QWEN3VL_NOTIFY"),
    "completion": ('eval "$(qwen3vl completion bash)"', "qwen3vl completion fish > ~/.config/fish/completions/qwen3vl.fish"),
    "runs list": ("qwen3vl runs list --filter status:running", "qwen3vl runs list --sort loss --json"),
    "runs show": ("qwen3vl runs show 7", "qwen3vl runs show 7 --json"),
    "runs logs": ("qwen3vl runs logs 7 --follow", "qwen3vl runs logs 7 -n 200 --grep nan"),
    "runs metrics": ("qwen3vl runs metrics 7", "qwen3vl runs metrics 7 --metric loss lr --json"),
    "runs samples": ("qwen3vl runs samples 7", "qwen3vl runs samples 7 --json"),
    "runs stop": ("qwen3vl runs stop 7", "qwen3vl runs stop 7 --grace 10m --no-wait"),
    "runs save": ("qwen3vl runs save 7", "qwen3vl runs save 7 --json"),
    "runs check": ("qwen3vl runs check 7", "qwen3vl runs check 7 --read-data --background"),
    "runs resume": ("qwen3vl runs resume 7", "qwen3vl runs resume 7 --nproc 8 --tp 2 --train-iters 800"),
    "runs clone": ("qwen3vl runs clone 7 --set lr=2e-5", "qwen3vl runs clone 7 --set micro_batch_size=4 recompute=full --foreground"),
    "runs captions": ("qwen3vl runs captions 9", "qwen3vl runs captions 9 --vote meadow.png tuned"),
    "runs compare": ("qwen3vl runs compare 7 8", "qwen3vl runs compare 7 8 --json"),
    "runs delete": ("qwen3vl runs delete 3 4", "qwen3vl runs delete 3 --yes"),
    "runs tensorboard": ("qwen3vl runs tensorboard 7 8", "qwen3vl runs tensorboard 7 --port 6006"),
}  # fmt: skip


def epilog(command: str) -> str | None:
    """The end of a command's help; None for one without examples."""
    examples = EXAMPLES.get(command)
    return "\n".join([tr("examples:"), *(f"  {line}" for line in examples)]) if examples else None
