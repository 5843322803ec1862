"""Compiles dartslight/nets/node_sums.c when the package is built, if there is a C compiler with OpenMP.

Without one the package works all the same: sums are then computed by torch's own functions, more slowly.
"""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# One library for each kind of processor that `torch.backends.cpu.get_cpu_capability` tells apart.
FLAGS = {"DEFAULT": [], "AVX2": ["-march=haswell"], "AVX512": ["-march=skylake-avx512"]}
COMPILER = ["gcc", "-O3", "-std=gnu11", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]


class CustomBuildHook(BuildHookInterface):
    """Adds the compiled libraries to a wheel, or puts them beside the source of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles before the files are collected."""
        if self.target_name != "wheel" or not sys.platform.startswith("linux"):
            return
        source = Path(self.root, "dartslight", "nets", "node_sums.c")
        kinds = FLAGS if platform.machine() == "x86_64" else {"DEFAULT": []}
        for kind, flags in kinds.items():
            library = source.with_name(f"node_sums_{kind}.so")
            try:
                subprocess.run([*COMPILER, *flags, source, "-o", library], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                self.app.display_warning(f"{library.name} is left out: {error}")
                continue
            build_data["artifacts"].append(f"dartslight/nets/{library.name}")
            build_data.update(pure_python=False, infer_tag=True)
