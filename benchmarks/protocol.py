# SPDX-License-Identifier: Apache-2.0
"""What one child process of a benchmark does, the same for every package.

Imports only what all environments have.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NUM_DRAWS = 10_000
BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
BATCH_SIZE, NUM_EPOCHS = 128, 20
DEPTH, WIDTHS, BINS = 6, (128, 128), 16
NUM_CONDITIONS, DRAWS_EACH, NUM_PAIRS = 100, 1_000, 1_000

Emit = Callable[[str, Callable[[], Any]], Any]


class Method(Protocol):
    """A package under test; parameters and data are flat, ``(num, d)`` and ``(num, k)``."""

    def fit(self, theta: np.ndarray, x: np.ndarray) -> dict[str, Any]:
        """Train, and tell how many ``parameters`` and ``steps``, and ``epoch_seconds``."""

    def sample(self, num_samples: int, x: np.ndarray) -> np.ndarray:
        """Draws on the host, shape ``(num, num_samples, d)``."""

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Log densities on the host, shape ``(num,)``."""


def parser(methods: Sequence[str]) -> argparse.ArgumentParser:
    """Arguments that the parent gives to every child.

    :param methods: what this child can run.
    :return: their parser.
    """
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--method", required=True, choices=methods)
    arguments.add_argument("--task", required=True)
    arguments.add_argument("--bank", type=Path, required=True, help="arrays, written by the parent")
    arguments.add_argument("--draws", type=Path, required=True, help="where the draws go")
    arguments.add_argument("--start", type=float, required=True, help="time of the start, time()")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    return arguments


def run(method: Method, arguments: argparse.Namespace) -> None:
    """Train, draw for each observation, and do what else is asked for, with a line of JSON each.

    :param method: the package under test.
    :param arguments: from :func:`parser`.
    """
    with np.load(arguments.bank) as file:
        bank = dict(file)
    emit = reporter(arguments.start)
    emit("fit", partial(method.fit, bank["theta"], bank["x"]))
    draws = [
        emit(f"draws_{i}", partial(method.sample, NUM_DRAWS, observation[None]))
        for i, observation in enumerate(bank["observations"], start=1)
    ]
    np.save(arguments.draws, np.concatenate(draws))
    for part in arguments.parts:
        PARTS[part](emit, method, bank)


def densities(emit: Emit, method: Method, bank: Mapping[str, np.ndarray]) -> None:
    """Of two different sets of 1,000 pairs of parameters and data."""
    for i, start in enumerate((0, NUM_PAIRS), start=1):
        theta, x = (bank[name][start : start + NUM_PAIRS] for name in ("theta", "x"))
        emit(f"log_prob_{i}", partial(method.log_prob, theta, x))


def many(emit: Emit, method: Method, bank: Mapping[str, np.ndarray]) -> None:
    """Draws for two different sets of 100 data sets."""
    for i, x in enumerate(np.split(bank["conditions"], 2), start=1):
        emit(f"many_{i}", partial(method.sample, DRAWS_EACH, x))


PARTS = {"densities": densities, "many": many}


def reporter(start: float) -> Emit:
    """Reporter of what a call took.

    :param start: when the process was started, in seconds since the epoch.
    :return: ``emit(name, call)``, which calls, prints one line of JSON and returns the result. The
        line has the seconds since the start, those of the call, those of all cores since the start
        (which a busy machine changes least), and the number of programs compiled in the call.
    """
    compiled = compilations()

    def emit(name: str, call: Callable[[], Any]) -> Any:
        compiled.clear()
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        line = {"event": name, "since_start": time.time() - start, "seconds": seconds}
        line |= {"processor_seconds": time.process_time(), "compiled": len(compiled)}
        line["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if isinstance(result, dict):
            line |= result
        elif not np.isfinite(result).all():
            raise FloatingPointError(f"{name}: {np.sum(~np.isfinite(result))} values not finite")
        print(json.dumps(line), flush=True)
        return result

    return emit


def compilations() -> list[str]:
    """:return: grows with each program that JAX compiles, where the package uses it."""
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == BACKEND_COMPILE:
            compiled.append(event)

    if (jax := sys.modules.get("jax")) is not None:
        jax.monitoring.register_event_duration_secs_listener(listen)
    return compiled
