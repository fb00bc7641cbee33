"""Options of a finetune. The numbers of the positional recipe are in the comments; `check` holds the rules between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3vl_core import notify
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.formats import seconds_of
from qwen3vl_core.options import media
from qwen3vl_core.options.declare import check_options, option, options_of
from qwen3vl_core.problems import Problem
from qwen3vl_core.sizes import SIZES

PARTS = ("vision", "projector", "language")
LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@dataclass
class FinetuneOptions:
    """A finetune: model, data, batch, schedule, parallel layout."""

    # one option a line, two where its help is long
    # fmt: off
    load: str = option(help="Checkpoint to start from: torch_dist, or an HF folder directly", group="Model", path="model")  # 23
    size: str | None = option(None, help="Refuse the checkpoint unless it is this size", group="Model", choices=tuple(SIZES))  # 2
    freeze: str = option("", help="Parts to freeze: any of vision,projector,language", group="Model")
    lora_rank: int = option(0, help="Train LoRA adapters of this rank and freeze the weights; 0: train the weights", group="Model", minimum=0, maximum=4096)
    lora_alpha: float | None = option(None, help="LoRA alpha: an adapter's output is scaled by alpha / rank; default: the rank", group="Model", minimum=0.0)
    lora_dropout: float = option(0.0, help="Dropout of an adapter's input", group="Model", minimum=0.0, maximum=0.99)
    lora_targets: str = option(",".join(LORA_TARGETS), help="Layers that get an adapter, those of experts too: any of " + ",".join(LORA_TARGETS), group="Model")
    init_adapter: str | None = option(None, help="Start the adapters from a PEFT folder or a LoRA run, whose rank, alpha and layers they then have; --load is the model beside it",
        group="Model", path="model")
    lora_vision: bool = option(False, help="Adapters in the vision tower and the projector too, not in the language model alone", group="Model")
    precision: str = option("bf16", help="Precision of weights and activations; fp8: bf16 with the matrix products of the language layers in fp8",
        group="Model", choices=("bf16", "fp16", "fp8", "fp32"))  # 9
    fp8_recipe: str = option("tensorwise", help="How fp8 is scaled: tensorwise by each tensor's current maximum, delayed by the previous step's, blockwise by 128 x 128",
        group="Model", choices=("tensorwise", "delayed", "blockwise"))
    cuda_graph: str = option("auto", help="Replay forward and backward of a micro batch as one CUDA graph, where that is possible",
        group="Model", choices=("auto", "off"))
    attention: str = option("auto", help="Attention kernels on a GPU: flash, cuDNN's fused ones, or whichever Transformer Engine takes",
        group="Model", choices=("auto", "flash", "fused"))  # 17

    train_data: str = option(help="Dataset made by qwen3vl prepare", group="Data", path="dataset")  # 21
    valid_data: str | None = option(None, help="Dataset for evaluation; else the validation split of --train-data", group="Data", path="dataset")  # 22
    seq_length: int = option(2048, help="Longest sample; longer ones are skipped and counted", unit="tokens", group="Data", minimum=16)  # 7
    pad_length: int = option(0, help="Pad every row to at least this length, so that shapes stay the same; 0: to the longest row of its micro batch",
        unit="tokens", group="Data", minimum=0)  # 8
    packing: bool = option(False, help="Pack samples into rows of --seq-length; a micro batch is then one row", group="Data")
    min_pixels: int | None = media.min_pixels("Data")
    max_pixels: int | None = media.max_pixels("Data")
    video_fps: float | None = media.video_fps("Data")
    video_max_frames: int | None = media.video_max_frames("Data")
    video_max_pixels: int | None = media.video_max_pixels("Data")
    max_visual_tokens: int | None = media.max_visual_tokens("Data")
    balance: bool = option(True, help="Deal the samples of a step so that ranks and micro batches have even numbers of patches and tokens", group="Data")
    num_workers: int | None = option(None, help="Loader processes of each rank; else 2 to 8 by cores with GPUs, none without", group="Data", minimum=0, maximum=64)
    max_skip_share: float = option(0.05, help="Stop if more than this fraction of the samples could not be used", group="Data", minimum=0.0, maximum=1.0)

    micro_batch_size: int = option(1, help="Samples of one data-parallel rank in one pass", group="Batch", minimum=1)  # 3
    global_batch_size: int = option(8, help="Samples of one optimizer step", group="Batch", minimum=1)  # 4
    train_iters: int = option(100, help="Optimizer steps", unit="steps", group="Schedule", minimum=1)  # 24
    lr: float = option(1e-5, help="Highest learning rate", group="Schedule", minimum=0.0)  # 5
    min_lr: float = option(1e-6, help="Learning rate at the end of the cosine", group="Schedule", minimum=0.0)  # 6
    lr_warmup_iters: int = option(0, help="Steps of linear warmup", unit="steps", group="Schedule", minimum=0)  # 25
    lr_decay_iters: int = option(0, help="Steps after which the learning rate has fallen to --min-lr; 0: those of the run", unit="steps", group="Schedule", minimum=0)
    weight_decay: float = option(0.01, help="Decoupled weight decay", group="Schedule", minimum=0.0)
    adam_beta1: float = option(0.9, help="Adam's first moment", group="Schedule", minimum=0.0, maximum=0.999999)
    adam_beta2: float = option(0.95, help="Adam's second moment", group="Schedule", minimum=0.0, maximum=0.999999)
    adam_eps: float = option(1e-8, help="Adam's epsilon", group="Schedule", minimum=0.0)
    clip_grad: float = option(1.0, help="Largest gradient norm; 0: no clipping", group="Schedule", minimum=0.0)
    aux_loss_coeff: float | None = option(None, help="Weight of the experts' load balancing loss; else the checkpoint's", group="Schedule", minimum=0.0)
    seed: int = option(1234, help="Seed of the data order and of dropout", group="Schedule", minimum=0)
    spike_factor: float = option(10.0, help="A loss this many robust deviations above the median of the last steps is a loss spike; 0: no detection",
        group="Schedule", minimum=0.0)
    skip_spikes: bool = option(False, help="Skip the update of a step whose loss is a spike", group="Schedule")
    max_bad_steps: int = option(5, help="Stop after this many skipped steps in a row", unit="steps", group="Schedule", minimum=1)

    env: str = option("dsw", help="Where it runs. dsw: this machine; dlc: every node of a cluster job runs the same command", group="Layout", choices=("dsw", "dlc"))  # 1
    nproc: int = option(0, help="Processes on this machine; 0: one per GPU, or one on a CPU", group="Layout", minimum=0, maximum=64)
    gpu_ids: str | None = option(None, help="GPUs of this machine to use, by index as nvidia-smi lists them: 4,5,6,7; free: as many free ones as it has processes",
        group="Layout")
    tp: int = option(1, help="Tensor parallel size", group="Layout", minimum=1)  # 10
    pp: int = option(1, help="Pipeline parallel size", group="Layout", minimum=1)  # 11
    cp: int = option(1, help="Context parallel size", group="Layout", minimum=1)  # 12
    ep: int = option(1, help="Expert parallel size", group="Layout", minimum=1)  # 14
    etp: int = option(1, help="Tensor parallel size of the experts", group="Layout", minimum=1)  # 13
    vp: int = option(1, help="Model chunks of a pipeline stage (interleaved schedule)", group="Layout", minimum=1)
    pp0_layers: int = option(0, help="Language layers of the first pipeline stage; 0: as many as any other", group="Layout", minimum=0)
    sequence_parallel: bool = option(False, help="Split the sequence between tensor parallel ranks too", group="Layout")  # 15
    distributed_optimizer: bool = option(False, help="Split the optimizer state between data parallel ranks (ZeRO-1)", group="Layout")  # 16
    optimizer_offload: float = option(0.0, help="Fraction of the weights whose optimizer state and update are on the host",
        group="Layout", minimum=0.0, maximum=1.0)  # 19
    main_grads_dtype: str = option("fp32", help="Precision in which gradients are added up and reduced; bf16 halves their memory and rounds every sum",
        group="Layout", choices=("fp32", "bf16"))
    use_precision_aware_optimizer: bool = option(False, help="Let the distributed optimizer read gradients in --main-grads-dtype and keep moments in --exp-avg-dtype and --exp-avg-sq-dtype",
        group="Layout")
    exp_avg_dtype: str = option("fp32", help="Precision in which the precision-aware optimizer keeps Adam's first moment between updates",
        group="Layout", choices=("fp32", "bf16"))
    exp_avg_sq_dtype: str = option("fp32", help="Precision in which the precision-aware optimizer keeps Adam's second moment between updates",
        group="Layout", choices=("fp32", "bf16"))
    overlap_grad_reduce: bool = option(False, help="Reduce gradients between data parallel ranks during the backward pass", group="Layout")
    overlap_param_gather: bool = option(False, help="Gather the distributed optimizer's new weights during the next forward pass", group="Layout")
    recompute: str = option("none", help="Activation recomputation: sel recomputes the language MLPs, full recomputes whole layers, offload keeps activations on the host",
        group="Layout", choices=("none", "sel", "full", "offload"))  # 18
    recompute_layers: int = option(0, help="With full: layers recomputed together, 0: one; with offload: layers kept on the host, 0: all but the last",
        unit="layers", group="Layout", minimum=0)

    resume: str | None = option(None, help="Go on from another run's checkpoint with its optimizer, schedule and place in the data, in any layout; --load is then its own",
        group="Record", path="model")
    save_interval: int = option(0, help="Checkpoint every N steps; 0: at the end only", unit="steps", group="Record", minimum=0)  # 20
    keep: int = option(0, help="Checkpoints to keep, the newest; 0: all", group="Record", minimum=0)
    keep_every: int = option(0, help="Also keep those whose step is a multiple of N; 0: only those of --keep", unit="steps", group="Record", minimum=0)
    async_save: bool = option(False, help="Write checkpoints while training continues; holds a copy of the weights in memory", group="Record")
    eval_interval: int = option(0, help="Evaluate every N steps; 0: never", unit="steps", group="Record", minimum=0)
    eval_iters: int = option(4, help="Global batches of one evaluation", group="Record", minimum=1)
    sample_interval: int = option(0, help="Write captions of --sample-images every N steps; 0: never", unit="steps", group="Record", minimum=0)
    sample_images: list[str] = option([], help="Pictures, or folders of pictures, to write captions of", group="Record", path="file")
    sample_prompt: str = option("Describe this image.", help="Prompt for them", group="Record")
    sample_tokens: int = option(256, help="Maximum length of those captions", unit="tokens", group="Record", minimum=1, maximum=4096)
    wandb: str | None = option(None, help="Send the curves to this project of Weights & Biases too, if wandb is installed", group="Record")
    swanlab: str | None = option(None, help="Send the curves to this project of SwanLab too, if swanlab is installed", group="Record")
    log_interval: int = option(1, help="Write metrics every N steps", unit="steps", group="Record", minimum=1)
    name: str | None = option(None, help="Name of the run; its id is made from it", group="Record")
    mirror: str | None = option(
        None, help="Copy checkpoints to this folder in the background, compared byte by byte; runs resume can take them from there",
        group="Record", path="folder",
    )  # fmt: skip
    mirror_every: int = option(1, help="Copy each N-th checkpoint, and the last one", group="Record", minimum=1)
    mirror_keep: int = option(2, help="Copies to keep, the newest; 0: all", group="Record", minimum=0)
    notify: list[str] = option([], help="Say when the run ends, fails, stalls or its loss is NaN: webhooks of DingTalk, Feishu, WeCom or Slack, any URL for JSON, or " "env:NAME; none: nobody, whatever the settings say",
        group="Interruptions", secret=True)
    notify_command: str | None = option(None, help="Run this program for the same, with the message as JSON on its standard input; no shell reads it",
        group="Interruptions")

    queue: str = option("auto", help="Wait for GPUs that are in use; auto: in the background, while --foreground starts at once",
        group="Interruptions", choices=("auto", "always", "never"))
    max_restarts: int = option(0, help="Restart a failed run automatically this many times, all processes together; it resumes from the newest complete checkpoint",
        group="Interruptions", minimum=0, maximum=100)
    restart_wait: float = option(5.0, help="Wait this long before the first restart, twice as long before each further one, at most 5 minutes",
        unit="s", group="Interruptions", minimum=0.0, maximum=300.0)
    restart_stalled: bool = option(False, help="Kill a run that makes no more steps, so that it is restarted; needs --max-restarts", group="Interruptions")
    distributed_timeout_minutes: float = option(10.0, help="How long a rank waits for the others in any collective, before it fails",
        unit="min", group="Interruptions", minimum=0.1, maximum=1440.0)
    grace: float = option(60.0, help="Kill the processes this long after a request to stop; a checkpoint that is being written is waited for",
        unit="s", group="Interruptions", minimum=0.0, maximum=86399.0)
    stop_after: str | None = option(None, help="Save and stop after this time, restarts included: 11h30m, 90m, 3600 (seconds) or 11:30:00", group="Interruptions")
    save_before_signal: str = option("USR1", help="Signal by which a scheduler announces the end of a job: save a checkpoint at the next step (Slurm: --signal=USR1@300)",
        group="Interruptions", choices=("USR1", "USR2"))
    # fmt: on

    def frozen_parts(self) -> list[str]:
        """`freeze` as a list. Raises RequestError for a part that does not exist."""
        words = _words(self.freeze)
        unknown = [word for word in words if word not in PARTS]
        if unknown:
            known = ",".join(word for word in words if word in PARTS) or None
            raise RequestError(
                Problem("unknown-part", "freeze", self.freeze, {"part": unknown[0], "parts": list(PARTS)}, ({"freeze": known},))
            )
        return words

    def lora_target_list(self) -> list[str]:
        """`lora_targets` as a list, in the order of the layers. Raises RequestError for a layer that gets no adapter."""
        words = _words(self.lora_targets)
        known = ",".join(word for word in words if word in LORA_TARGETS)
        for word in words:
            if word not in LORA_TARGETS:
                rule = {"target": word, "targets": list(LORA_TARGETS)}
                raise RequestError(
                    Problem("unknown-lora-target", "lora_targets", self.lora_targets, rule, ({"lora_targets": known or None},))
                )
        if not words:
            raise RequestError(Problem("no-lora-target", "lora_targets", "", remedies=({"lora_targets": ",".join(LORA_TARGETS)},)))
        return [name for name in LORA_TARGETS if name in words]

    def lora_parts(self) -> list[str]:
        """Parts of the model that get adapters: the language model, with `lora_vision` all, without those that are frozen."""
        frozen = self.frozen_parts()
        return [part for part in (("language", "vision", "projector") if self.lora_vision else ("language",)) if part not in frozen]

    def untrained_parts(self) -> list[str]:
        """Parts whose own weights are frozen and that have no adapter."""
        return [p for p in PARTS if p not in self.lora_parts()] if self.lora_rank else self.frozen_parts()

    def check(self) -> None:
        """Raises RequestError for every broken rule that needs no checkpoint and no machine."""
        check_options(self)

    def problems(self) -> Iterator[Problem]:
        """Broken rules between options. `option_problems` adds the rules of each option alone."""
        yield from self._part_problems()
        yield from self._schedule_problems()
        yield from self._data_problems()
        yield from self._record_problems()
        yield from self._layout_problems()

    def _in_range(self, *names: str) -> bool:
        """Whether these options break no rule of their own, so that the remedies of others may be computed from them."""
        return all(o.problem_of(getattr(self, o.name)) is None for o in options_of(type(self)) if o.name in names)

    def _part_problems(self) -> Iterator[Problem]:
        """What is trained: parts and adapters."""
        try:
            frozen: list[str] | None = self.frozen_parts()
        except RequestError as error:
            frozen = None
            yield from error.problems
        if frozen is not None and set(frozen) == set(PARTS):
            fewer = [",".join(part for part in PARTS if part != left) for left in reversed(PARTS)]
            yield Problem("nothing-trained", "freeze", self.freeze, remedies=tuple({"freeze": parts} for parts in fewer))
        if not self.lora_rank:
            for o in options_of(type(self)) if not self.init_adapter else ():
                value = getattr(self, o.name)
                if o.name.startswith("lora_") and value != o.default:
                    yield Problem("lora-without-rank", o.name, value, remedies=({"lora_rank": 16}, {o.name: None}))
                    return
            return
        try:
            self.lora_target_list()
        except RequestError as error:
            yield from error.problems
        if frozen is not None and not self.lora_parts() and set(frozen) != set(PARTS):
            # with some part left, language is frozen, and adapters are asked for there alone
            ways = ({"freeze": ",".join(part for part in frozen if part != "language") or None}, {"lora_vision": True})
            yield Problem("no-part-for-adapters", "freeze", self.freeze, remedies=ways)
        if self.lora_alpha == 0 and self._in_range("lora_rank"):
            yield Problem("lora-alpha-zero", "lora_alpha", self.lora_alpha, remedies=({"lora_alpha": float(self.lora_rank)},))

    def _schedule_problems(self) -> Iterator[Problem]:
        if self._in_range("train_iters") and self.lr_warmup_iters >= self.train_iters:
            yield Problem(
                "warmup-too-long", "lr_warmup_iters", self.lr_warmup_iters, {"train_iters": self.train_iters},
                ({"lr_warmup_iters": max(self.train_iters // 10, 0)},),
            )  # fmt: skip
        if self.lr_decay_iters and self.lr_decay_iters <= self.lr_warmup_iters:
            rule, ways = {"warmup": self.lr_warmup_iters}, ({"lr_decay_iters": None},)
            yield Problem("decay-within-warmup", "lr_decay_iters", self.lr_decay_iters, rule, ways)
        if self.valid_data and not self.eval_interval:
            yield Problem("valid-data-unused", "valid_data", self.valid_data, remedies=({"eval_interval": 100}, {"valid_data": None}))
        if self.lr == 0:
            yield Problem("lr-zero", "lr", self.lr)
        if self._in_range("lr") and self.min_lr > self.lr:
            yield Problem("min-lr-above-lr", "min_lr", self.min_lr, {"lr": self.lr}, ({"min_lr": float(f"{self.lr / 10:.6g}")},))
        if self.skip_spikes and not self.spike_factor:
            yield Problem("skip-spikes-without-factor", "skip_spikes", True, remedies=({"spike_factor": 10.0}, {"skip_spikes": None}))

    def _data_problems(self) -> Iterator[Problem]:
        row = {"seq_length": self.seq_length}
        if self.packing and self._in_range("micro_batch_size", "seq_length") and self.micro_batch_size > 1:
            samples = self.micro_batch_size
            yield Problem(
                "packing-micro-batch", "micro_batch_size", samples, row, ({"micro_batch_size": 1, "seq_length": samples * self.seq_length},)
            )
        if self.packing and self.pad_length:
            yield Problem("packing-pad-length", "pad_length", self.pad_length, row, ({"pad_length": None},))
        if self.min_pixels and self.max_pixels and self._in_range("max_pixels") and self.min_pixels > self.max_pixels:
            yield Problem(
                "min-pixels-above-max", "min_pixels", self.min_pixels, {"max_pixels": self.max_pixels}, ({"min_pixels": self.max_pixels},)
            )

    def _record_problems(self) -> Iterator[Problem]:
        if self.keep_every and not self.keep:
            yield Problem("keep-every-without-keep", "keep_every", self.keep_every, remedies=({"keep": 2}, {"keep_every": None}))
        if self.restart_stalled and not self.max_restarts:
            yield Problem("restart-stalled-alone", "restart_stalled", True, remedies=({"max_restarts": 3}, {"restart_stalled": None}))
        if self.stop_after is not None and seconds_of(self.stop_after) is None:
            yield Problem("stop-after-not-a-time", "stop_after", self.stop_after, remedies=({"stop_after": "11h30m"}, {"stop_after": None}))
        for name in ("mirror_every", "mirror_keep"):
            value = getattr(self, name)
            if not self.mirror and value != type(self)().__dict__[name]:
                yield Problem("mirror-unused", name, value, remedies=({name: None},))
        if self.mirror and is_url(self.mirror):
            yield Problem("mirror-is-url", "mirror", self.mirror, remedies=({"mirror": None},))
        for text in self.notify:
            try:
                notify.check(text)
            except RequestError as error:
                yield from error.problems
        if self.notify_command is not None:
            try:
                notify.check_command(self.notify_command)
            except RequestError as error:
                yield from error.problems
        if self.sample_interval and not self.sample_images:
            yield Problem("samples-without-images", "sample_interval", self.sample_interval, remedies=({"sample_interval": None},))

    def _layout_problems(self) -> Iterator[Problem]:
        if self.gpu_ids is not None and self.gpu_ids.strip() != "free":
            ids = self.gpu_ids.split(",")
            if not all(word.strip().isdecimal() for word in ids) or len({int(word) for word in ids}) < len(ids):
                yield Problem("gpu-ids-not-indices", "gpu_ids", self.gpu_ids, remedies=({"gpu_ids": "free"}, {"gpu_ids": None}))
        if self.gpu_ids is not None and self.env == "dlc":
            yield Problem("gpu-ids-in-cluster", "gpu_ids", self.gpu_ids, remedies=({"gpu_ids": None},))
        if self.recompute_layers and self.recompute not in ("full", "offload"):
            yield Problem("recompute-layers-unused", "recompute_layers", self.recompute_layers, remedies=({"recompute_layers": None},))
        if self.recompute == "offload" and self.pp > 1:
            yield Problem("recompute-offload-with-stages", "recompute", "offload", {"pp": self.pp}, ({"recompute": "full"},))
        if self.overlap_param_gather:
            for code, name in (
                ("param-gather-without-optimizer", "distributed_optimizer"), ("param-gather-without-overlap", "overlap_grad_reduce"),
            ):  # fmt: skip
                if not getattr(self, name):
                    yield Problem(code, "overlap_param_gather", True, remedies=({name: True}, {"overlap_param_gather": None}))
        if self.optimizer_offload and not self.distributed_optimizer:
            yield Problem(
                "optimizer-offload-not-distributed", "optimizer_offload", self.optimizer_offload,
                remedies=({"distributed_optimizer": True}, {"optimizer_offload": None}),
            )  # fmt: skip
        if self.optimizer_offload and self.precision == "fp32":
            yield Problem(
                "optimizer-offload-fp32", "optimizer_offload", self.optimizer_offload,
                remedies=({"precision": "bf16"}, {"optimizer_offload": None}),
            )  # fmt: skip
        yield from self._optimizer_precision_problems()
        if self.sequence_parallel and self.tp == 1:
            yield Problem("sequence-parallel-without-tp", "sequence_parallel", True, remedies=({"sequence_parallel": None}, {"tp": 2}))

    def _optimizer_precision_problems(self) -> Iterator[Problem]:
        """Precision of gradients and of the optimizer's state."""
        aware, name = self.use_precision_aware_optimizer, "use_precision_aware_optimizer"
        half = self.precision in ("bf16", "fp8")
        if self.main_grads_dtype == "bf16" and not half:
            ways = ({"main_grads_dtype": None}, {"precision": "bf16"})
            yield Problem("bf16-gradients", "main_grads_dtype", "bf16", {"precision": self.precision}, ways)
        if aware and not half:
            yield Problem("precision-aware-weights", name, True, {"precision": self.precision}, ({"precision": "bf16"}, {name: None}))
        if aware and not self.distributed_optimizer:
            yield Problem("precision-aware-not-distributed", name, True, remedies=({"distributed_optimizer": True}, {name: None}))
        if aware and self.optimizer_offload:
            yield Problem("precision-aware-offloaded", name, True, remedies=({name: None}, {"optimizer_offload": None}))
        for moment in ("exp_avg_dtype", "exp_avg_sq_dtype"):
            if not aware and getattr(self, moment) == "bf16":
                yield Problem("moments-without-precision-aware", moment, "bf16", remedies=({name: True}, {moment: None}))


def _words(text: str) -> list[str]:
    """`a, b` -> `["a", "b"]`."""
    return [word.strip() for word in text.split(",") if word.strip()]
