# SPDX-License-Identifier: Apache-2.0
"""Other packages, each in an environment of its own, and processes that report in lines of JSON."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from venv import EnvBuilder

import numpy as np
from jax import random

import numpyro_amortized as npa
from benchmarks.environment import ROOT
from benchmarks.protocol import NUM_CONDITIONS
from benchmarks.tasks import NUM_OBSERVATIONS, Task, flatten, reference, simulate

Events = dict[str, dict[str, Any]]

_ENDS = (("lower_bound", -np.inf), ("upper_bound", np.inf))
REQUIREMENTS = {
    "bayesflow": ("bayesflow==2.1.0", *(f"{name}=={version(name)}" for name in ("jax", "jaxlib"))),
    "sbi": ("sbi==0.27.0",),
}


def interpreter(package: str) -> Path:
    """Python of a package's environment.

    :param package: one of ``REQUIREMENTS``, or ``numpyro_amortized`` for the one that runs.
    :return: the interpreter; its environment is made in ``.peers`` if it is missing.
    """
    if package == "numpyro_amortized":
        return Path(sys.executable)
    folder = ROOT / ".peers" / package
    python = folder / "bin" / "python"
    if not python.exists():
        EnvBuilder(with_pip=True).create(folder)
        command = [python, "-m", "pip", "install", "-q", *REQUIREMENTS[package]]
        subprocess.run(command, check=True)
    return python


def run_child(package: str, module: str, options: Mapping[str, Any]) -> Events:
    """Run one process from start to end.

    :param package: whose environment it runs in.
    :param module: what it runs, see :func:`benchmarks.protocol.run`.
    :param options: its arguments; the time of the start is added.
    :return: event to its line.
    :raises RuntimeError: if the process fails, with the end of what it printed.
    """
    command = [str(interpreter(package)), "-m", module]
    for name, value in {**options, "start": time.time()}.items():
        words = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        command += [f"--{name}", *map(str, words)]
    child = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{child.stderr[-4000:]}")
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    return {line.pop("event"): line for line in lines}


def child_environment() -> dict[str, str]:
    """:return: the caller's environment, without JAX's compilation cache on disk."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {"KERAS_BACKEND": "jax", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def write_bank(path: Path, task: Task, *, seed: int = 0, num_simulations: int = 10_000) -> None:
    """Simulate what every process gets: a bank, observations, and data sets to draw for.

    :param path: the file to be written.
    :param task: the task.
    :param seed: of the simulations.
    :param num_simulations: size of the bank.
    """
    sites = simulate(random.key(seed), task, num_simulations + 2 * NUM_CONDITIONS)
    theta, x = flatten(task, sites), sites["x"].reshape(len(sites["x"]), -1)
    observed = [reference(task, i + 1)[0].reshape(-1) for i in range(NUM_OBSERVATIONS)]
    np.savez(
        path,
        theta=theta[:num_simulations],
        x=x[:num_simulations].astype(np.float32),
        conditions=x[num_simulations:].astype(np.float32),
        observations=np.stack(observed).astype(np.float32),
        bounds=bounds(task),
    )


def bounds(task: Task) -> np.ndarray:
    """:return: lowest and highest values of the parameters, shape ``(2, d)``."""
    sites = npa.ModelSimulator(task.model, observed=("x",)).sites
    rows = []
    for name in task.parameters:
        support = sites[name].support
        support = getattr(support, "base_constraint", support)
        ends = (getattr(support, end, fill) for end, fill in _ENDS)
        rows.append([np.broadcast_to(end, sites[name].shape).reshape(-1) for end in ends])
    return np.concatenate(rows, axis=1).astype(np.float32)
