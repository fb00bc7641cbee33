"""The published conversion script's 6 or 7 values, as `qwen3vl convert`: MODEL_SIZE SOURCE TARGET MG2HF USE_CUDA PR [HF_DIR].

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3vl_core.options import ConvertOptions, shell_line, to_arguments
from qwen3vl_core.problems import Problem
from qwen3vl_core.sizes import SIZES

NAMES = ("MODEL_SIZE", "LOAD_DIR", "SAVE_DIR", "MG2HF", "USE_CUDA", "PR", "HF_DIR")
COUNTS = (6, 7)
PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass
class ConversionRecipe:
    """The values as options of convert, with their problems."""

    values: dict[int, str]
    options: ConvertOptions | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        assert self.options is not None
        return shell_line(["qwen3vl", "convert", *to_arguments(self.options)])


def read(values: list[str]) -> ConversionRecipe:
    """The conversion that 6 or 7 values are, with every problem in them."""
    recipe = ConversionRecipe(dict(enumerate(values, start=1)))
    named = dict(zip(NAMES, values, strict=False))
    sizes = {size.lower(): size for size in SIZES if size != "tiny"}

    def refuse(name: str, rule: str) -> None:
        written = f"{NAMES.index(name) + 1} {name} {named[name]!r}"
        recipe.problems.append(Problem("recipe-value", rule={"written": written, "rule": rule, "hint": ""}))

    if named["MODEL_SIZE"].lower() not in sizes:
        refuse("MODEL_SIZE", f"must be one of {', '.join(sizes.values())}")
    for name in ("MG2HF", "USE_CUDA"):
        if named[name].lower() not in ("true", "false"):
            refuse(name, "must be true or false")
    if named["PR"].lower() not in PRECISIONS:
        refuse("PR", f"must be one of {', '.join(PRECISIONS)}")
    for name in ("LOAD_DIR", "SAVE_DIR", "HF_DIR"):
        if name in named and named[name].strip().lower() in ("", "true", "false", *PRECISIONS):
            refuse(name, "must be a path")
    if recipe.problems:
        return recipe
    to_hf = named["MG2HF"].lower() == "true"
    hf = named.get("HF_DIR")
    if hf and not to_hf:
        recipe.notes.append(f"7 HF_DIR {hf}: not needed from Hugging Face to Megatron, whose source has config and tokenizer")
    if to_hf and not hf:
        recipe.notes.append("7 HF_DIR: needed where the checkpoint has no config.json beside it")
    if named["USE_CUDA"].lower() == "true":
        recipe.notes.append("5 USE_CUDA true: no GPU is needed, the processor writes the same bytes at the speed of the disk")
    recipe.notes.append(
        "4 MG2HF: the direction is seen from the source; layout pai has the names that the script's own training reads"
        if not to_hf
        else "4 MG2HF: the direction is seen from the source"
    )
    recipe.options = ConvertOptions(
        source=named["LOAD_DIR"], target=named["SAVE_DIR"], dtype=named["PR"].lower(), size=sizes[named["MODEL_SIZE"].lower()],
        hf=hf if to_hf else None, layout="bridge" if to_hf else "pai",
    )  # fmt: skip
    return recipe
