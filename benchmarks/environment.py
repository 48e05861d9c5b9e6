# SPDX-License-Identifier: Apache-2.0
"""Where a benchmark ran, for the record that it leaves."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpyro", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def environment() -> dict[str, Any]:
    """:return: commit, versions, processor and load of the machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "*.py")),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }


def write(path: Path, section: str, result: Mapping[str, Any]) -> None:
    """Put one benchmark's result into a JSON file, beside those of the others.

    :param path: the file; made if missing.
    :param section: name of the benchmark; what it left before is replaced.
    :param result: what it found; :func:`environment` is added.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    results[section] = {"environment": environment()} | dict(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """:return: a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
