"""Options of a finetune. The numbers of the positional recipe are in the comments; `check` holds the rules between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options.declare import option, options_of

LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@dataclass
class FinetuneOptions:
    """A finetune: model, data, batch, schedule, parallel layout."""

    load: str = option(help="Checkpoint to start from: torch_dist, or an HF folder directly", group="Model", path="model")  # 23
    size: str | None = option(
        None, help="Refuse the checkpoint unless it is this size", group="Model", choices=("2B", "4B", "8B", "32B", "A3B", "A22B", "tiny")
    )  # 2
    freeze: str = option("", help="Parts that stay as they are: any of vision,projector,language", group="Model")
    lora_rank: int = option(
        0,
        help="Train adapters (LoRA) of this rank beside the weights, which stay as they are; 0: train the weights",
        group="Model",
        minimum=0,
        maximum=4096,
    )
    lora_alpha: float | None = option(None, help="An adapter's output is scaled by this / rank; else the rank", group="Model", minimum=0.0)
    lora_dropout: float = option(
        0.0, help="Share of an adapter's input that is left out at random", group="Model", minimum=0.0, maximum=0.99
    )
    lora_targets: str = option(
        ",".join(LORA_TARGETS), help="Layers that get an adapter, those of experts too: any of " + ",".join(LORA_TARGETS), group="Model"
    )
    lora_vision: bool = option(
        False, help="Adapters in the vision tower and the projector too, not in the language model alone", group="Model"
    )
    precision: str = option(
        "bf16",
        help="Precision of weights and activations; fp8: bf16 whose language layers multiply in fp8",
        group="Model",
        choices=("bf16", "fp16", "fp8", "fp32"),
    )  # 9
    fp8_recipe: str = option(
        "tensorwise",
        help="How fp8 is scaled: tensorwise by each tensor's present maximum, delayed by the step before's, blockwise 128 x 128",
        group="Model",
        choices=("tensorwise", "delayed", "blockwise"),
    )
    attention: str = option(
        "auto",
        help="Attention kernels on a GPU: flash, cuDNN's fused ones, or whichever Transformer Engine takes",
        group="Model",
        choices=("auto", "flash", "fused"),
    )  # 17

    train_data: str = option(help="Dataset made by qwen3vl prepare", group="Data", path="dataset")  # 21
    valid_data: str | None = option(
        None, help="Dataset for evaluation; else the validation split of --train-data", group="Data", path="dataset"
    )  # 22
    seq_length: int = option(2048, help="Longest sample; longer ones are skipped and counted", unit="tokens", group="Data", minimum=16)  # 7
    pad_length: int = option(
        0,
        help="Pad every row to at least this length, so that shapes stay the same; 0: to the longest row of its micro batch",
        unit="tokens",
        group="Data",
        minimum=0,
    )  # 8
    packing: bool = option(False, help="Join samples to rows of --seq-length; a micro batch is one row then", group="Data")
    min_pixels: int | None = option(
        None, help="Smallest area a picture is resized to; else the checkpoint's", unit="pixels", group="Data", minimum=1024
    )
    max_pixels: int | None = option(
        None, help="Largest area a picture is resized to; else the checkpoint's", unit="pixels", group="Data", minimum=1024
    )
    num_workers: int | None = option(
        None, help="Loader processes of each rank; else 2 with GPUs, none without", group="Data", minimum=0, maximum=64
    )
    max_skip_share: float = option(
        0.05, help="Stop when more than this share of the samples could not be used", group="Data", minimum=0.0, maximum=1.0
    )

    micro_batch_size: int = option(1, help="Samples of one data-parallel rank in one pass", group="Batch", minimum=1)  # 3
    global_batch_size: int = option(8, help="Samples of one optimizer step", group="Batch", minimum=1)  # 4
    train_iters: int = option(100, help="Optimizer steps", unit="steps", group="Schedule", minimum=1)  # 24
    lr: float = option(1e-5, help="Highest learning rate", group="Schedule", minimum=0.0)  # 5
    min_lr: float = option(1e-6, help="Learning rate at the end of the cosine", group="Schedule", minimum=0.0)  # 6
    lr_warmup_iters: int = option(0, help="Steps of linear warmup", unit="steps", group="Schedule", minimum=0)  # 25
    weight_decay: float = option(0.01, help="Decoupled weight decay", group="Schedule", minimum=0.0)
    adam_beta1: float = option(0.9, help="Adam's first moment", group="Schedule", minimum=0.0, maximum=0.999999)
    adam_beta2: float = option(0.95, help="Adam's second moment", group="Schedule", minimum=0.0, maximum=0.999999)
    adam_eps: float = option(1e-8, help="Adam's epsilon", group="Schedule", minimum=0.0)
    clip_grad: float = option(1.0, help="Largest gradient norm; 0: no clipping", group="Schedule", minimum=0.0)
    aux_loss_coeff: float | None = option(
        None, help="Weight of the experts' load balancing loss; else the checkpoint's", group="Schedule", minimum=0.0
    )
    seed: int = option(1234, help="Seed of the data order and of dropout", group="Schedule", minimum=0)
    spike_factor: float = option(
        10.0,
        help="A loss this many robust deviations above the median of the last steps is a spike; 0: not looked for",
        group="Schedule",
        minimum=0.0,
    )
    skip_spikes: bool = option(False, help="Leave the weights as they are in a step whose loss is a spike", group="Schedule")
    max_bad_steps: int = option(
        5, help="Stop after this many steps in a row that were skipped as bad", unit="steps", group="Schedule", minimum=1
    )

    env: str = option(
        "dsw",
        help="Where it runs. dsw: this machine; dlc: every node of a cluster job runs the same command",
        group="Layout",
        choices=("dsw", "dlc"),
    )  # 1
    nproc: int = option(0, help="Processes on this machine; 0: one a GPU, or one on a CPU", group="Layout", minimum=0, maximum=64)
    tp: int = option(1, help="Tensor parallel size", group="Layout", minimum=1)  # 10
    pp: int = option(1, help="Pipeline parallel size", group="Layout", minimum=1)  # 11
    cp: int = option(1, help="Context parallel size", group="Layout", minimum=1)  # 12
    ep: int = option(1, help="Expert parallel size", group="Layout", minimum=1)  # 14
    etp: int = option(1, help="Tensor parallel size of the experts", group="Layout", minimum=1)  # 13
    vp: int = option(1, help="Model chunks of a pipeline stage (interleaved schedule)", group="Layout", minimum=1)
    pp0_layers: int = option(0, help="Language layers of the first pipeline stage; 0: as many as any other", group="Layout", minimum=0)
    sequence_parallel: bool = option(False, help="Split the sequence between tensor parallel ranks too", group="Layout")  # 15
    distributed_optimizer: bool = option(False, help="Split the optimizer state between data parallel ranks (ZeRO-1)", group="Layout")  # 16
    optimizer_offload: float = option(
        0.0, help="Share of the weights whose optimizer state and update are on the host", group="Layout", minimum=0.0, maximum=1.0
    )  # 19
    overlap_grad_reduce: bool = option(
        False, help="Reduce gradients between data parallel ranks while the backward pass goes on", group="Layout"
    )
    overlap_param_gather: bool = option(
        False, help="Gather the split optimizer's new weights while the next forward pass begins", group="Layout"
    )
    max_restarts: int = option(
        0,
        help="How often torchrun starts all processes again when one fails; they go on from the last checkpoint",
        group="Layout",
        minimum=0,
        maximum=100,
    )
    recompute: str = option(
        "none",
        help="To save activations: sel computes the language MLPs again in the backward pass, full whole layers, offload keeps layers on the host",
        group="Layout",
        choices=("none", "sel", "full", "offload"),
    )  # 18
    recompute_layers: int = option(
        0,
        help="With full: layers computed again together, 0: one; with offload: layers kept on the host, 0: all but the last",
        unit="layers",
        group="Layout",
        minimum=0,
    )

    save_interval: int = option(0, help="Checkpoint every N steps; 0: at the end only", unit="steps", group="Record", minimum=0)  # 20
    keep: int = option(0, help="Checkpoints to keep, the newest; 0: all", group="Record", minimum=0)
    keep_every: int = option(
        0, help="Keep also those whose step is a multiple of N; 0: none beside --keep", unit="steps", group="Record", minimum=0
    )
    async_save: bool = option(False, help="Write checkpoints beside the training; it holds a copy of the weights in memory", group="Record")
    eval_interval: int = option(0, help="Evaluate every N steps; 0: never", unit="steps", group="Record", minimum=0)
    eval_iters: int = option(4, help="Global batches of one evaluation", group="Record", minimum=1)
    sample_interval: int = option(
        0, help="Write captions of --sample-images every N steps; 0: never", unit="steps", group="Record", minimum=0
    )
    sample_images: list[str] = option([], help="Pictures, or folders of pictures, to write captions of", group="Record", path="file")
    sample_prompt: str = option("Describe this image.", help="What the model is asked about them", group="Record")
    sample_tokens: int = option(256, help="Longest caption of them", unit="tokens", group="Record", minimum=1, maximum=4096)
    wandb: str | None = option(None, help="Send the curves to this project of Weights & Biases too, if wandb is installed", group="Record")
    swanlab: str | None = option(None, help="Send the curves to this project of SwanLab too, if swanlab is installed", group="Record")
    log_interval: int = option(1, help="Write metrics every N steps", unit="steps", group="Record", minimum=1)
    name: str | None = option(None, help="A name for people; the run's id is made from it", group="Record")

    def frozen_parts(self) -> list[str]:
        """`freeze` as a list. Raises RequestError for a part that does not exist."""
        parts = [p.strip() for p in self.freeze.split(",") if p.strip()]
        for part in parts:
            if part not in ("vision", "projector", "language"):
                raise RequestError(f"--freeze {self.freeze}: {part} is no part; choose from vision, projector, language")
        return parts

    def _optimizer_faults(self) -> Iterator[str]:
        """What the two overlaps and the offloaded optimizer need of each other."""
        if self.overlap_param_gather:
            for name in ("distributed_optimizer", "overlap_grad_reduce"):
                if not getattr(self, name):
                    flag = "--" + name.replace("_", "-")
                    yield f"--overlap-param-gather: needs {flag}; add it, or leave --overlap-param-gather out"
        if self.optimizer_offload and not self.distributed_optimizer:
            yield (
                f"--optimizer-offload {self.optimizer_offload:g}: only the distributed optimizer moves its state to the host; "
                "add --distributed-optimizer, or use 0"
            )
        if self.optimizer_offload and self.precision == "fp32":
            yield f"--optimizer-offload {self.optimizer_offload:g}: not with --precision fp32, whose weights are their own master copy; use --precision bf16"

    def lora_target_list(self) -> list[str]:
        """`lora_targets` as a list, in the order of the layers. Raises RequestError for a layer that gets no adapter."""
        words = [w.strip() for w in self.lora_targets.split(",") if w.strip()]
        for word in words:
            if word not in LORA_TARGETS:
                raise RequestError(f"--lora-targets {self.lora_targets}: {word} is none; choose from {', '.join(LORA_TARGETS)}")
        if not words:
            raise RequestError(f"--lora-targets: names no layer; use {','.join(LORA_TARGETS)}")
        return [name for name in LORA_TARGETS if name in words]

    def lora_parts(self) -> list[str]:
        """Parts of the model that get adapters: the language model, with `lora_vision` all, without those that are frozen."""
        frozen = self.frozen_parts()
        return [part for part in (("language", "vision", "projector") if self.lora_vision else ("language",)) if part not in frozen]

    def untrained_parts(self) -> list[str]:
        """Parts whose own weights stay as they are and that have no adapter."""
        return [p for p in ("vision", "projector", "language") if p not in self.lora_parts()] if self.lora_rank else self.frozen_parts()

    def _lora_faults(self) -> Iterator[str]:
        if not self.lora_rank:
            for o in options_of(type(self)):
                if o.name.startswith("lora_") and getattr(self, o.name) != o.default:
                    yield f"{o.flag}: needs --lora-rank; add --lora-rank 16 or leave it out"
                    return
            return
        try:
            self.lora_target_list()
            if not self.lora_parts():
                yield f"--freeze {self.freeze}: no part is left that gets an adapter; leave language out, or add --lora-vision"
        except RequestError as error:
            yield str(error)
        if self.lora_alpha == 0:
            yield f"--lora-alpha 0: adapters would do nothing; use {self.lora_rank}"

    def check(self) -> None:
        """The rules between options that need no checkpoint and no machine. Raises RequestError for the first broken one."""
        for fault in self.faults():
            raise RequestError(fault)

    def faults(self) -> Iterator[str]:
        """Every rule between options that is broken, one line each."""
        for o in options_of(type(self)):
            try:
                o.check(getattr(self, o.name))
            except RequestError as error:
                yield str(error)
        try:
            if len(set(self.frozen_parts())) == 3:
                yield "--freeze vision,projector,language: nothing is left to train; leave one part out"
        except RequestError as error:
            yield str(error)
        yield from self._lora_faults()
        if self.lr_warmup_iters >= self.train_iters:
            yield (
                f"--lr-warmup-iters {self.lr_warmup_iters}: must be below --train-iters {self.train_iters}; "
                f"use {max(self.train_iters // 10, 0)}"
            )
        if self.min_lr > self.lr:
            yield f"--min-lr {self.min_lr:g}: must be at most --lr {self.lr:g}; use {self.lr / 10:g}"
        if self.packing and self.micro_batch_size != 1:
            yield (
                f"--micro-batch-size {self.micro_batch_size}: with --packing a micro batch is one row of --seq-length {self.seq_length} "
                f"tokens; use --micro-batch-size 1 and --seq-length {self.micro_batch_size * self.seq_length}"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            yield f"--min-pixels {self.min_pixels}: must be at most --max-pixels {self.max_pixels}; use {self.max_pixels}"
        if self.keep_every and not self.keep:
            yield f"--keep-every {self.keep_every}: needs --keep, as all checkpoints are kept otherwise; use --keep 2"
        if self.sample_interval and not self.sample_images:
            yield f"--sample-interval {self.sample_interval}: needs --sample-images; name a few pictures, or leave it out"
        if self.skip_spikes and not self.spike_factor:
            yield "--skip-spikes: needs --spike-factor above 0; use --spike-factor 10"
        if self.packing and self.micro_batch_size != 1:
            yield f"--micro-batch-size {self.micro_batch_size}: with --packing a micro batch is one row of --seq-length tokens; use 1"
        if self.pad_length and self.packing:
            yield f"--pad-length {self.pad_length}: with --packing a row is filled up to --seq-length {self.seq_length} with samples; leave it out"
        if self.recompute_layers and self.recompute not in ("full", "offload"):
            yield f"--recompute-layers {self.recompute_layers}: needs --recompute full or offload; leave it out"
        if self.recompute == "offload" and self.pp > 1:
            yield f"--recompute offload: not with --pp {self.pp}, as Megatron keeps activations on the host for one stage only; use --recompute full"
        yield from self._optimizer_faults()
        if self.sequence_parallel and self.tp == 1:
            yield "--sequence-parallel: needs --tp above 1; leave it out or use --tp 2"
