# SPDX-License-Identifier: Apache-2.0
"""What importing the package costs, beside importing what it is made of."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.verify
FOUNDATION = "numpyro, flax.nnx, optax"
LIMIT = 1.2


def processor_seconds(modules, environment):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_time(tmp_path):
    """With compiled byte code, as after an installation. The least of five: others only add."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    root = str(Path(__file__).parents[2])
    environment |= {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": root}
    for modules in (FOUNDATION, "numpyro_amortized"):
        processor_seconds(modules, environment)
    runs = [
        [processor_seconds(modules, environment) for modules in (FOUNDATION, "numpyro_amortized")]
        for _ in range(5)
    ]
    foundation, package = map(min, zip(*runs, strict=True))
    assert package < LIMIT * foundation, (package, foundation)
