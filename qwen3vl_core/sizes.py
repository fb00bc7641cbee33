"""The published Qwen3-VL sizes, and a checkpoint's architecture as its `config.json` states it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_object
from qwen3vl_core.problems import Problem

DENSE_MODEL_TYPE = "qwen3_vl"
MOE_MODEL_TYPE = "qwen3_vl_moe"


@dataclass(frozen=True)
class VisionArchitecture:
    """Shape of the vision tower (HF `vision_config`)."""

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_hidden_size: int
    deepstack_layers: tuple[int, ...]
    out_hidden_size: int
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    num_position_embeddings: int = 2304
    rope_theta: float = 10000.0

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class Architecture:
    """Shape of a Qwen3-VL model, read from `config.json`; nothing of it comes from the table of sizes below."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_hidden_size: int
    vocab_size: int
    tied: bool
    vision: VisionArchitecture
    rope_theta: float
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 262144
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn_hidden_size: int = 0
    router_aux_loss_coef: float = 0.0
    norm_topk_prob: bool = True
    dtype: str = "bfloat16"
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @classmethod
    def from_config(cls, config: dict[str, Any], file: str = "config.json") -> Architecture:
        """From a parsed HF `config.json`. Raises RequestError, which names the missing key or the wrong model type."""
        model_type = config.get("model_type")
        if model_type not in (DENSE_MODEL_TYPE, MOE_MODEL_TYPE):
            raise RequestError(
                f"{file}: model_type is {model_type!r}, not {DENSE_MODEL_TYPE} or {MOE_MODEL_TYPE}; choose a Qwen3-VL checkpoint"
            )
        try:
            text, vision = config["text_config"], config["vision_config"]
            _check_kind(text, vision, file)
            _check_limits(text, vision, file)
            _check_order(text, vision, file)
            # transformers 4 writes rope_scaling and rope_theta side by side, transformers 5 writes rope_parameters
            rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
            # and num_local_experts for num_experts
            experts = text.get("num_experts") or text.get("num_local_experts") or 0
            if experts and (text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1):
                raise RequestError(
                    f"{file}: mlp_only_layers or decoder_sparse_step makes some layers dense; a model with experts must have them "
                    "in every layer; choose a published Qwen3-VL checkpoint"
                )
            return cls(
                num_layers=text["num_hidden_layers"],
                hidden_size=text["hidden_size"],
                num_heads=text["num_attention_heads"],
                num_kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
                ffn_hidden_size=text["intermediate_size"],
                vocab_size=text["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else text["rope_theta"]),
                mrope_section=tuple(rope.get("mrope_section", (24, 20, 20))),
                rms_norm_eps=text.get("rms_norm_eps", 1e-6),
                max_position_embeddings=text.get("max_position_embeddings", 262144),
                image_token_id=config["image_token_id"],
                video_token_id=config["video_token_id"],
                vision_start_token_id=config["vision_start_token_id"],
                vision_end_token_id=config["vision_end_token_id"],
                num_experts=experts,
                experts_per_token=text.get("num_experts_per_tok", 0) or 0,
                expert_ffn_hidden_size=text.get("moe_intermediate_size", 0) or 0,
                router_aux_loss_coef=text.get("router_aux_loss_coef", 0.0) or 0.0,
                norm_topk_prob=text.get("norm_topk_prob", True),
                dtype=config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16",
                vision=VisionArchitecture(
                    num_layers=vision["depth"],
                    hidden_size=vision["hidden_size"],
                    num_heads=vision["num_heads"],
                    ffn_hidden_size=vision["intermediate_size"],
                    deepstack_layers=tuple(vision["deepstack_visual_indexes"]),
                    out_hidden_size=vision["out_hidden_size"],
                    patch_size=vision["patch_size"],
                    temporal_patch_size=vision["temporal_patch_size"],
                    spatial_merge_size=vision["spatial_merge_size"],
                    in_channels=vision.get("in_channels", 3),
                    num_position_embeddings=vision["num_position_embeddings"],
                    rope_theta=float((vision.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
                ),
                raw=config,
            )
        except KeyError as missing:
            raise RequestError(f"{file}: key {missing} is missing; take config.json from the checkpoint itself") from None
        except RequestError:
            raise
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RequestError(f"{file}: a value has the wrong type ({error}); take the checkpoint's own config.json") from None

    @classmethod
    def read(cls, path: str | Path) -> Architecture:
        """From a file, or a folder with `config.json` (an HF model, or a Megatron checkpoint with its HF files beside it)."""
        path = Path(path)
        file = path / "config.json" if path.is_dir() else path
        missing = "the architecture is read from the checkpoint's config.json"
        config = read_object(file, limits.CONFIG, copy="copy config.json from the checkpoint", missing=missing)
        return cls.from_config(config, str(file))


def _check_kind(text: dict[str, Any], vision: dict[str, Any], file: str) -> None:
    """Raises RequestError for settings that are not supported, though the tensors have the same names and shapes."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    for key, value, known in (
        ("text_config.hidden_act", text.get("hidden_act"), ("silu",)),
        ("text_config.attention_bias", text.get("attention_bias"), (False,)),
        ("text_config.rope_parameters.rope_type", rope.get("rope_type"), ("default", "mrope")),
        # transformers' Qwen3-VL normalises the chosen experts' weights whatever this says
        ("text_config.norm_topk_prob", text.get("norm_topk_prob"), (True,)),
        ("vision_config.hidden_act", vision.get("hidden_act"), ("gelu_pytorch_tanh",)),
        ("vision_config.rope_parameters.rope_type", (vision.get("rope_parameters") or {}).get("rope_type"), ("axial", "default")),
    ):
        if value is not None and value not in known:
            raise RequestError(f"{file}: {key} is {value!r}; only {known[0]!r} is supported; choose a checkpoint with it")


def _check_order(text: dict[str, Any], vision: dict[str, Any], file: str) -> None:
    """Raises RequestError for orders and counts with which transformers computes something else, or nothing."""
    layers, own = list(vision["deepstack_visual_indexes"]), "take the checkpoint's own file"
    if not all(type(layer) is int for layer in layers):
        raise RequestError(f"{file}: vision_config.deepstack_visual_indexes is {str(layers)[:80]!r}, not a list of layers; {own}")
    key = f"{file}: vision_config.deepstack_visual_indexes is {layers}"
    if layers != sorted(set(layers)) or (layers and not 0 <= layers[0] <= layers[-1] < vision["depth"]):
        raise RequestError(f"{key}, not ascending numbers below the depth, {vision['depth']}; {own}")
    if len(layers) > text["num_hidden_layers"]:
        raise RequestError(f"{key}: more than the {text['num_hidden_layers']} language layers that add one each; {own}")
    if vision["out_hidden_size"] != text["hidden_size"]:
        width = f"the language model's hidden_size is {text['hidden_size']}"
        raise RequestError(f"{file}: vision_config.out_hidden_size is {vision['out_hidden_size']}, {width}; {own}")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if len(rope.get("mrope_section", (0, 0, 0))) != 3:
        raise RequestError(f"{file}: mrope_section is {rope['mrope_section']}, not three numbers: of time, height and width; {own}")


_WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "moe_intermediate_size",
           "num_heads", "out_hidden_size", "patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels")  # fmt: skip
_LIMITS = (
    (("num_hidden_layers", "depth"), limits.LAYERS), (("num_experts", "num_local_experts", "num_experts_per_tok"), limits.EXPERTS),
    (_WIDTHS, limits.WIDTH), (("vocab_size", "max_position_embeddings", "num_position_embeddings"), limits.VOCABULARY),
)  # fmt: skip
_MAY_BE_ZERO = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")


def _check_limits(text: dict[str, Any], vision: dict[str, Any], file: str) -> None:
    """Raises RequestError for sizes that are not whole numbers, or that no model has: memory is allocated by them."""
    for section, values in (("text_config", text), ("vision_config", vision)):
        for keys, most in _LIMITS:
            for key in keys:
                value = values.get(key)
                if value is None and (key not in values or key in (*_MAY_BE_ZERO, "head_dim")):
                    continue
                if type(value) is not int or not (0 if key in _MAY_BE_ZERO else 1) <= value <= most:
                    shown = str(value)[:40]
                    raise RequestError(f"{file}: {section}.{key} is {shown}, not a number from 1 to {most}; take the checkpoint's own file")
    if len(list(vision["deepstack_visual_indexes"])) > limits.LAYERS:
        raise RequestError(f"{file}: vision_config.deepstack_visual_indexes is too long; take the checkpoint's own file")


@dataclass(frozen=True)
class Size:
    """One row of the published table. Used for checks and plans only: a model is built from its `config.json`."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    tied: bool
    vision_layers: int
    vision_hidden_size: int
    num_experts: int = 0
    expert_ffn_hidden_size: int = 0

    def differences(self, architecture: Architecture) -> list[str]:
        """`["num_layers 36, not 28", …]`: the checkpoint's value, then the value of this size."""
        differences = []
        for item in fields(self):
            if item.name in ("name", "vision_layers", "vision_hidden_size"):
                continue
            expected, actual = getattr(self, item.name), getattr(architecture, item.name)
            if expected != actual:
                differences.append(f"{item.name} {actual}, not {expected}")
        for name, actual in (
            ("vision_layers", architecture.vision.num_layers),
            ("vision_hidden_size", architecture.vision.hidden_size),
        ):
            if getattr(self, name) != actual:
                differences.append(f"{name} {actual}, not {getattr(self, name)}")
        return differences


SIZES = {
    size.name: size
    for size in (
        Size("2B", 28, 2048, 16, 8, 6144, True, 24, 1024),
        Size("4B", 36, 2560, 32, 8, 9728, True, 24, 1024),
        Size("8B", 36, 4096, 32, 8, 12288, False, 27, 1152),
        Size("32B", 64, 5120, 64, 8, 25600, False, 27, 1152),
        Size("A3B", 48, 2048, 32, 4, 6144, False, 27, 1152, 128, 768),
        Size("A22B", 94, 4096, 64, 4, 12288, False, 27, 1152, 128, 1536),
        Size("tiny", 6, 192, 8, 4, 512, True, 6, 128),
    )
}


def size_of(architecture: Architecture) -> str | None:
    """The name of the published size with this shape, or None for a custom shape."""
    return next((name for name, size in SIZES.items() if not size.differences(architecture)), None)


def size_problem(name: str, architecture: Architecture, file: str) -> Problem | None:
    """The problem when `architecture`, read from `file`, is not of size `name`; None if it is."""
    if name not in SIZES:
        return Problem("unknown-size", "size", name, {"sizes": list(SIZES)})
    differences = SIZES[name].differences(architecture)
    if not differences:
        return None
    actual = size_of(architecture)
    rule = {"file": file, "actual": f"size {actual}" if actual else "no published size", "differences": "; ".join(differences[:3])}
    return Problem("other-size", "size", name, rule, ({"size": actual},))


def check_size(name: str, architecture: Architecture, file: str) -> None:
    """Raises RequestError unless `architecture`, read from `file`, is of size `name`."""
    if (problem := size_problem(name, architecture, file)) is not None:
        raise RequestError(problem)
