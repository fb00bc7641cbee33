"""What pyproject.toml cannot say: a wheel holds the demo's weights in a form that deflates by another eighth."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from qwen3vl_core.demo.packed_weights import pack


class BuildPacked(build_py):
    """Packs the copy of the weights that goes into the wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            pack(Path(self.build_lib) / "qwen3vl_core" / "demo" / "base_hf")


setup(cmdclass={"build_py": BuildPacked})
