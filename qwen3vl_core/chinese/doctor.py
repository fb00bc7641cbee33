"""The doctor, and values that code puts into problems: English templates, {} for each value -> Chinese, {0} for the first one."""

# fmt: off
TEMPLATES: dict[str, str] = {
    # what a queued run waits for
    "{} is free in about {}, when {} ends": "{0} 大约 {1} 后空闲（{2} 结束时）", "{} is free when {} ends": "{0} 在 {1} 结束时空闲",
    "{} is free in about {}, when {} end": "{0} 大约 {1} 后空闲（{2} 结束时）", "{} is free when {} end": "{0} 在 {1} 结束时空闲",
    "{} is in use, {}": "{0} 被占用：{1}", "{} is free soon": "{0} 即将空闲",
    "{} are free in about {}, when {} ends": "{0} 大约 {1} 后空闲（{2} 结束时）", "{} are free when {} ends": "{0} 在 {1} 结束时空闲",
    "{} are free in about {}, when {} end": "{0} 大约 {1} 后空闲（{2} 结束时）", "{} are free when {} end": "{0} 在 {1} 结束时空闲",
    "{} are in use, {}": "{0} 被占用：{1}", "{} are free soon": "{0} 即将空闲",
    "held back; qwen3vl runs queue {} --release lets it start": "已暂缓；qwen3vl runs queue {0} --release 放行",
    "nobody waits for its GPUs; qwen3vl runs queue --resume goes on": "没有进程在等待它的 GPU；qwen3vl runs queue --resume 继续",
    "queued on another machine": "在另一台机器上排队", "this machine has no {}": "本机没有 {0}",
    # names of the checks
    "packages": "软件包", "container": "容器", "disk": "磁盘", "run store": "运行目录", "ports": "端口", "console": "控制台",
    # texts and fixes
    "{}, older than {}": "{0}，低于 {1}", "{} itself is not installed, so its requirements are unknown": "{0} 本身没有安装，无法得知它的依赖",
    "in the clone: {} -m pip install -e .": "在代码仓库里：{0} -m pip install -e .", "packaging is missing": "缺少 packaging", "missing": "缺少",
    "{}, out of the range {}": "{0}，不在 {1} 范围内", "NVIDIA's PyTorch {}, its own torch": "NVIDIA 的 PyTorch {0}，用的是它自带的 torch",
    "torch {} stands in for the build of NVIDIA's container (PyTorch {}), which its packages were compiled for":
        "torch {0} 取代了 NVIDIA 容器自带的版本（PyTorch {1}），而容器里的软件包是为后者编译的",
    "python3 -m venv --system-site-packages --clear .venv, and install with -c (README)": "python3 -m venv --system-site-packages --clear .venv，并用 -c 安装（见 README）",
    "sudo modprobe nvidia, or restart the machine; then nvidia-smi": "sudo modprobe nvidia，或重启机器；然后 nvidia-smi",
    "none; runs work on the CPU, which is enough for the demo and small tests": "没有；运行会用 CPU，够演示和小测试用",
    "use a machine with an NVIDIA GPU; in a container: docker run --gpus all": "换有 NVIDIA GPU 的机器；容器里：docker run --gpus all",
    "{}, {} GiB, compute {}, driver {}": "{0}，{1} GiB，计算能力 {2}，驱动 {3}",
    "{}: older than Ampere (8.0), no bf16": "{0}：早于 Ampere（8.0），不支持 bf16", "use --precision fp16, or a newer GPU": "用 --precision fp16，或换更新的 GPU",
    "{}; {} GiB in use by {}": "{0}；{2} 占用 {1} GiB", "{}; {} GiB in use": "{0}；已占用 {1} GiB", "--gpu-ids free starts a run on others": "--gpu-ids free 会用其他 GPU 启动运行",
    "did not answer in {} s": "{0} 秒内没有响应", "the process ended with exit code {}: {}": "进程以退出码 {0} 结束：{1}",
    "does not import: {}; without it training is slow": "无法导入：{0}；没有它训练很慢", "does not import: {}": "无法导入：{0}",
    "torch has no gloo, which runs on a CPU and checkpoints need": "torch 没有 gloo，CPU 上的运行和检查点都需要它", "a build without CUDA": "不带 CUDA 的版本",
    "nvidia-smi shows a GPU, but torch does not see it: {}": "nvidia-smi 能看到 GPU，但 torch 看不到：{0}",
    "{}; nvidia-smi names the driver's CUDA": "{0}；驱动的 CUDA 版本见 nvidia-smi",
    "a bf16 matrix product on the GPU fails: {}": "GPU 上的 bf16 矩阵乘失败：{0}", "{} device(s), a bf16 matrix product ran": "{0} 个设备，bf16 矩阵乘正常",
    "missing: {}; a run cannot use several GPUs": "缺少：{0}；运行不能用多个 GPU",
    "{}: {} GiB free, less than {}": "{0}：剩余 {1} GiB，少于 {2}", "{}: {} GiB free; {} is recommended": "{0}：剩余 {1} GiB；建议 {2}", "{}: {} GiB free": "{0}：剩余 {1} GiB",
    "mkdir -p {} && sudo chown $USER {}, or choose another: export QWEN3VL_RUNS=DIR": "mkdir -p {0} && sudo chown $USER {1}，或换一个：export QWEN3VL_RUNS=DIR",
    "{}: {} is a file": "{0}：{1} 是文件", "{}: cannot be written ({})": "{0}：无法写入（{1}）", "{} (will be created)": "{0}（会自动创建）",
    "ip link set lo up; and 127.0.0.1 localhost in /etc/hosts": "ip link set lo up；并在 /etc/hosts 写 127.0.0.1 localhost",
    "a free port was opened and reached on 127.0.0.1 ({})": "在 127.0.0.1 上打开并连通了空闲端口（{0}）",
    "registered": "已注册", "not registered, so no run can be started": "没有注册，无法启动运行",
    "free some, or choose another disk: export QWEN3VL_RUNS=DIR": "腾出空间，或换磁盘：export QWEN3VL_RUNS=DIR",
    "in a container: docker run --shm-size=16g; else: sudo mount -o remount,size=16G /dev/shm": "容器里：docker run --shm-size=16g；否则：sudo mount -o remount,size=16G /dev/shm",
    "{}, CUDA {}": "{0}，CUDA {1}", "no output": "没有输出",
    # values of problems
    "use {} GPUs with the right layout (--suggest --gpus {})": "用 {0} 个 GPU 和合适的布局（--suggest --gpus {1}）", "use larger GPUs, or a smaller model": "用显存更大的 GPU，或更小的模型",
    "did you mean {}?": "是不是 {0}？", "choose from {}": "可选 {0}", "see {} --help": "见 {0} --help", "use --{}": "用 --{0}",
}
