"""Limits on what is read from outside, in one table. A size is compared with its limit before anything of that size is read or allocated.

Cheap to import. A limit is far above what real models, datasets and runs hold; what exceeds it is damaged or hostile.
"""

from __future__ import annotations

from qwen3vl_core.formats import GIB

KIB, MIB = 1 << 10, 1 << 20

# bytes of files

RUN_JSON = 64 * MIB
"""`state.json`, `plan.json` and the other JSON files of a run."""
RUN_ROW = 16 * MIB
"""One row of `metrics.jsonl` or `samples.jsonl`."""
RUN_FILE = 64
"""The tracker, and requests to stop: a word or a number."""
CONFIG = 16 * MIB
"""`config.json`, `preprocessor_config.json`, `adapter_config.json` and the like."""
CHAT_TEMPLATE = 1 * MIB
SIDE_FILE = 200_000_000
"""A tokenizer's or processor's file that a conversion copies."""
SAFETENSORS_HEADER = 100_000_000
"""As the safetensors library has it."""
SAFETENSORS_INDEX = 100_000_000
TORCH_DIST_TABLES = 1 * GIB
"""`.metadata`."""
COMMON_PT = 1 * GIB
SAVED_ARGUMENTS = 50_000_000
"""The saved arguments in `common.pt`."""
EXTRA_JSON = 256 * MIB
DIGESTS = 256 * MIB
DATASET_INDEX = 64 * MIB
"""`split.yaml`, `.info.yaml` and the other YAML and JSON files of a dataset; metadatasets; `dataset_info.json`."""
PLAN_FILE = 16 * MIB
"""A YAML file of options, or of settings."""
JSON_LINE = 64 * MIB
"""One record of JSON Lines."""
JSON_VALUE = 1 * GIB
"""One value of JSON, in characters."""
REFERENCES = 1 * GIB
"""A file of reference captions."""

# archives

TAR_TEXT = 64 * MIB
"""A JSON or text member of a WebDataset shard."""
TAR_NAME = 1 * MIB
"""The header of a long name, or of PAX values."""
SHARD_NAMES = 1_000_000
"""Names that the brace lists of an index expand to."""

# shapes in config.json

LAYERS = 1024
EXPERTS = 8192
WIDTH = 1 << 20
"""Hidden sizes, and numbers of heads."""
VOCABULARY = 1 << 24
"""Also positions, and token ids."""

NUMBER = 10**15
"""Of a recipe: products of such numbers are still numbers to a float."""
GPUS = 1 << 20
"""Of a job."""

# media

PICTURE_PIXELS = 89_478_485
"""Area of a picture or of a video's frame: 256 MiB as RGB. Pillow warns above it, and refuses twice as much."""
DENSE_PIXELS = 40_000_000
"""A picture of this area is 115 MiB as RGB, whatever its bytes. An A4 page at 600 dpi has 35 million pixels."""
PIXELS_PER_BYTE = 256
"""Of pictures above DENSE_PIXELS: an area that the bytes of the file cannot fill is a decompression bomb, or blank."""
VIDEO_FRAMES = 1 << 24
FRAME_FILES = 100_000
"""Frames of a video that is given as pictures: their names have five digits."""

# time

TEMPLATE_SECONDS = 10
"""For a checkpoint's chat template to render the three short conversations it is checked with."""
TEMPLATE_BYTES = 1 * GIB
"""Of memory for the same."""
