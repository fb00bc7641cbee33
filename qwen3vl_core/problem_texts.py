"""Texts of each problem: code -> (rule, advice beyond the remedies). `problems.py` puts the remedies into words."""

from __future__ import annotations

ENGINE = "needs Transformer Engine, which is not installed"
INSTALL = "pip install 'qwen3vl-console[gpu]'"
PREPARE = "make the dataset with qwen3vl prepare"

TEXTS: dict[str, tuple[str, str]] = {
    # a problem that is only a line of text
    "request": ("{text}", ""),
    # one option
    "wrong-type": ("must be {kind}", ""),
    "not-a-choice": ("must be one of {choices}", ""),
    "not-a-number": ("must be a number", ""),
    "below-minimum": ("must be at least {minimum:g}{unit}", ""),
    "above-maximum": ("must be at most {maximum:g}{unit}", ""),
    "required": ("required", "{help}"),
    "unknown-option": ("{name}: no such option", "there are {names}"),
    "open-quotation-mark": ("a quotation mark is not closed", "close it or leave it out"),
    # rules between a finetune's options
    "unknown-part": ("there is no part {part}", "choose from {parts}"),
    "nothing-trained": ("nothing is left to train", "leave one part out"),
    "lora-without-rank": ("needs --lora-rank", ""),
    "unknown-lora-target": ("{target} is not a layer that can have an adapter", "choose from {targets}"),
    "no-lora-target": ("names no layer", ""),
    "no-part-for-adapters": ("no part is left that can have an adapter", ""),
    "lora-alpha-zero": ("adapters would do nothing", ""),
    "warmup-too-long": ("must be below --train-iters {train_iters}", ""),
    "min-lr-above-lr": ("must be at most --lr {lr:g}", ""),
    "packing-micro-batch": ("with --packing a micro batch is one row of --seq-length {seq_length} tokens", ""),
    "packing-pad-length": ("with --packing a row is filled to --seq-length {seq_length} with samples", ""),
    "min-pixels-above-max": ("must be at most --max-pixels {max_pixels}", ""),
    "keep-every-without-keep": ("needs --keep, as all checkpoints are kept otherwise", ""),
    "samples-without-images": ("needs --sample-images", "name a few pictures"),
    "skip-spikes-without-factor": ("needs --spike-factor above 0", ""),
    "recompute-layers-unused": ("needs --recompute full or offload", ""),
    "recompute-offload-with-stages": ("not with --pp {pp}, as Megatron keeps activations on the host for one stage only", ""),
    "param-gather-without-optimizer": ("needs --distributed-optimizer", ""),
    "param-gather-without-overlap": ("needs --overlap-grad-reduce", ""),
    "optimizer-offload-not-distributed": ("only the distributed optimizer moves its state to the host", ""),
    "optimizer-offload-fp32": ("not with --precision fp32, whose weights are their own master copy", ""),
    "sequence-parallel-without-tp": ("needs --tp above 1", ""),
    # a comparison's
    "data-beside-images": ("not together with --images {image}", "give one of the two"),
    "no-pictures": ("required", "pictures or folders of pictures, or a dataset as --data"),
    "questions-without-data": ("only a dataset has questions", "give it as --data"),
    "references-beside-data": ("a dataset has its own", "give the pictures as --images"),
    # a parallel layout
    "tp-not-whole": ("{count} {what} / {tp} = {quotient:.2f} is not whole", ""),
    "processes-not-multiple": ("must be a multiple of tp x pp x cp = {tp} x {pp} x {cp} = {model}", "{advice}"),
    "cluster-processes-not-multiple": (
        "{count} processes: must be a multiple of tp x pp x cp = {tp} x {pp} x {cp} = {model}",
        "change one of them, or the number of nodes",
    ),
    "batch-not-multiple": ("must be a multiple of micro batch x data parallel = {micro} x {dp} = {step}", ""),
    "micro-batches-not-whole": (
        "{count} micro batches a step (global batch {batch} / {step}) / pp {pp} = {quotient:.2f} is not whole", "",
    ),
    "nothing-to-split": ("all {processes} processes hold one model (dp = 1), nothing to split", ""),
    "needs-stages": ("needs --pp above 1", ""),
    "first-stage-with-chunks": ("not together with --vp {vp}", ""),
    "first-stage-not-whole": ("the other {others} layers / {stages} stages = {quotient:.2f} is not whole", ""),
    "first-stage-takes-all": ("leaves no layer of {layers} for the other stages", ""),
    "chunks-not-whole": ("{layers} layers / {pp} x {vp} = {chunks} chunks = {quotient:.2f} is not whole", ""),
    "stages-not-whole": ("{layers} layers / {pp} = {quotient:.2f} is not whole", ""),
    "deepstack-beyond-chunk": (
        "a chunk holds {layers} / ({pp} x {vp}) = {held} layers, but the {deep} deepstack layers must all be in the first", "",
    ),
    "deepstack-beyond-first-stage": ("the {deep} deepstack layers must all be on the first stage", ""),
    "deepstack-beyond-stage": (
        "its first stage holds {layers} / {pp} = {held} layers, but the {deep} deepstack layers must all be on it", "",
    ),
    "recompute-offload-all": ("at least one of {layers} layers stays on the GPU", ""),
    "recompute-layers-not-whole": ("{where} {layers} layers / {count} = {quotient:.2f} is not whole", ""),
    "fp8-columns": ("{count} {what} on a GPU, not a multiple of {multiple}", ""),
    "no-experts": ("this checkpoint has no experts", ""),
    "experts-not-whole": ("{experts} experts / {ep} = {quotient:.2f} is not whole", ""),
    "expert-columns-not-whole": ("{columns} FFN columns of an expert / {etp} is not whole", ""),
    "expert-ranks-not-whole": ("{processes} processes / (ep x etp x pp = {ep} x {etp} x {pp}) is not whole", ""),
    "experts-without-sequence-parallel": ("with experts it needs --sequence-parallel", ""),
    # model and data
    "model-unknown": (
        "--size or --load: one of them is needed to know the model", "for example qwen3vl plan --size 4B --gpus 8 --memory 80",
    ),
    "no-such-checkpoint": ("no such folder", "give a Megatron checkpoint or a Hugging Face folder"),
    "checkpoint-without-config": ("no config.json in it", "give a Megatron checkpoint made by qwen3vl convert, or a Hugging Face folder"),
    "unknown-size": ("no such size", "choose one of {sizes}"),
    "other-size": ("{where} is {found} ({differences})", ""),
    "no-such-dataset": ("no such folder", PREPARE),
    "dataset-without-index": ("no Energon index (.nv-meta) in it", PREPARE),
    # paths of the other commands
    "no-such-path": ("no such file or folder", "correct the path"),
    "target-taken": ("already exists", "choose another folder"),
    "disk-full": ("{folder}: {needed} to write, {free} free on that disk", "choose another folder"),
    "file-error": ("{file}: {reason}", "correct the path"),
    "no-such-picture": ("no such file or folder", "give pictures, or folders of pictures"),
    "path-unreadable": ("cannot be read ({reason})", "{advice}"),
    "not-a-picture": ("{reason}", "leave it out or choose another picture"),
    "folder-without-pictures": ("a folder without pictures ({endings})", "give the folder that they are in"),
    "no-pictures-given": ("nothing given", "give pictures, or folders of pictures"),
    # this machine
    "fp8-without-gpu": ("needs Transformer Engine and an Ada, Hopper or newer GPU; this machine has no GPU", ""),
    "attention-without-gpu": ("needs a GPU, and this machine has none", ""),
    "recompute-offload-without-gpu": ("this machine has no GPU, all activations are on the host", ""),
    "optimizer-offload-without-gpu": ("this machine has no GPU, the optimizer is on the host", ""),
    "needs-transformer-engine": (ENGINE, INSTALL),
    "fp8-on-old-gpu": ("{recipe} scaling needs {least} or newer, and a GPU here is of {capability:g}", ""),
    "needs-ampere": ("needs Ampere (8.0) or newer, and a GPU here is of {capability:g}", ""),
    "attention-fp32": ("supports bf16 and fp16 only", ""),
    "context-parallel-fp32": ("Transformer Engine exchanges keys and values in bf16 or fp16 only", ""),
    "flash-attention-missing": ("with --cp {cp} it needs the flash-attn package", "pip install flash-attn"),
    "sink-missing": ("{name} is not installed", "pip install {package}"),
    "cluster-variables-missing": ("{names} not set; the cluster sets these on every node, and one machine needs none of them", ""),
    "cluster-variable-wrong": ("{name}={text}: must be a whole number", "the cluster sets it"),
    "cluster-rank": ("RANK={rank}: must be below WORLD_SIZE={nodes}, the number of nodes", "the cluster sets both"),
    "cluster-without-gpus": ("KUBERNETES_CONTAINER_RESOURCE_GPU=0: a node needs a GPU", "ask the cluster for GPUs"),
    "cluster-port": ("MASTER_PORT={port}: must be a port from 1 to 65535", "the cluster sets it"),
    # what is planned
    "vision-tokens-beyond-row": ("must be at most --seq-length {seq_length}", ""),
    "nodes-not-whole": ("must be a multiple of --gpus-per-node {per_node}", ""),
    "does-not-fit": ("{needed:g} of {memory:g} GiB on each GPU, an estimate: does not fit", "{advice}"),
    # plan files
    "no-such-plan": ("no such file", "qwen3vl plan --save writes one"),
    "plan-unreadable": ("cannot be read ({reason})", "give a plan file in YAML"),
    "plan-not-yaml": ("not YAML{line}", "write one option per line, as in tp: 2"),
    "plan-not-a-mapping": ("must be a mapping of options, one per line, as in tp: 2", ""),
    "plan-unknown-option": ("{key}: no such option", "{advice}"),
    "plan-given-twice": ("{key} is given twice{line}", "leave one of them out"),
    "plan-without-value": ("{key}: has no value", "give one, or leave the line out for {default!r}"),
    "plan-not-one-value": ("{key}: must be one value", ""),
    # the positional recipe
    "recipe-count": ("the recipe has 26, or 24 without 13 ETP and 14 EP", ""),
    "recipe-value-missing": ("read as {form} values, all of them are valid if the missing one is among: {positions}", ""),
    "recipe-value-too-many": ("read as {form} values, all of them are valid without one of: {positions}", ""),
    "recipe-swapped": ("look swapped; each is valid in the other's place", ""),
    "recipe-value": ("{rule}{hint}", ""),
    "recipe-order": ("{reason} {other} {bound:g}", "if they are swapped, swap them back"),
    "recipe-warmup": ("the warmup is as long as the run or longer (24 TRAIN_ITERS {bound})",
                      "use {instead}, or swap them back if they are swapped"),
    "recipe-sequence-parallel": ("sequence parallel needs 10 TP above 1", "use false, or TP 2"),
    "recipe-optimizer-offload": ("only the distributed optimizer moves its state to the host", "use 16 DO true, or 0"),
    "recipe-gpus": ("with 1 ENV dsw {whose} {limit}",
                    "use smaller ones, or ENV dlc"),
}  # fmt: skip
"""A rule may need a `{name}` of its problem's `rule`; a list of values is written with commas."""

WITH_REMEDIES = (
    "nothing-trained",
    "data-beside-images",
    "recipe-order",
    "recipe-warmup",
    "recipe-sequence-parallel",
    "recipe-optimizer-offload",
)
"""Codes whose advice includes the remedies, shorter or in terms of the recipe's values."""
