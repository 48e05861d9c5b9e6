# SPDX-License-Identifier: Apache-2.0
"""Memory and time of training from a bank on disk.

``python -m benchmarks.disk``: writes a bank of 2.3 GB, and trains a small network from it.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from benchmarks.environment import ROOT, markdown, write
from numpyro_amortized.datasets import Batch
from numpyro_amortized.disk import DiskDataset, to_disk
from numpyro_amortized.loads import Schedule
from numpyro_amortized.simulators.base import TraceableSimulator
from numpyro_amortized.training import default_optimizer, train

GIGABYTES, NUM_OBSERVATIONS = 2.3, 63
EPOCHS, BATCH_SIZE, WIDTH = 2, 1_024, 64
OPTIMUM = 0.5 * math.log(2 * math.pi * math.e / (NUM_OBSERVATIONS + 1))


class NormalMean(TraceableSimulator):
    """Normal observations with a normal mean; one simulation has 256 bytes."""

    def simulate(self, rng_key: Array) -> dict[str, Array]:
        mean_key, noise_key = random.split(rng_key)
        mu = random.normal(mean_key)
        return {"mu": mu, "y": mu + random.normal(noise_key, (NUM_OBSERVATIONS,))}


def write_bank(path: Path, num_simulations: int) -> dict[str, float]:
    """:return: seconds of simulating and writing, and bytes on disk."""
    begin = time.perf_counter()
    to_disk(NormalMean(), random.key(0), num_simulations, path)
    seconds = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"write_seconds": seconds, "gigabytes_on_disk": size / 1e9}


def read_bank(path: Path) -> dict[str, float]:
    """:return: seconds of one pass that reads, verifies and shuffles only."""
    dataset = DiskDataset(path)
    schedule = Schedule(1, len(dataset) // BATCH_SIZE, BATCH_SIZE)
    begin = time.perf_counter()
    with dataset.loads(random.key(0), schedule) as loads:
        for load in loads:
            jax.block_until_ready(load.arrays)
    return {"read_seconds": time.perf_counter() - begin}


def train_from_bank(path: Path) -> dict[str, float]:
    """:return: memory before and at its peak, seconds of an epoch, the loss reached."""
    params = initial_params(random.key(1))
    before = resident("VmRSS")
    dataset = DiskDataset(path)
    num_batches = len(dataset) // BATCH_SIZE
    _, history = train(
        random.key(2),
        negative_log_density,
        params,
        dataset,
        optimizer=default_optimizer(EPOCHS * num_batches),
        epochs=EPOCHS,
        num_batches=num_batches,
        batch_size=BATCH_SIZE,
        validation=None,
        progress_bar=True,
    )
    peak = resident("VmHWM")
    return {
        "resident_before": before / 1e9,
        "resident_peak": peak / 1e9,
        "resident_growth": (peak - before) / 1e9,
        "epoch_seconds": float(history.seconds[-1]),
        "num_steps": history.num_steps,
        "loss": float(history.loss[-1]),
        "best_possible_loss": OPTIMUM,
    }


def initial_params(rng_key: Array) -> list[tuple[Array, Array]]:
    """Weights and biases of a perceptron with two hidden layers; it begins as a standard normal."""
    sizes = (NUM_OBSERVATIONS, WIDTH, WIDTH, 2)
    keys = random.split(rng_key, len(sizes) - 1)
    layers = [
        (random.normal(key, (n, m)) * math.sqrt(2 / n), jnp.zeros(m))
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    return [*layers[:-1], (jnp.zeros((WIDTH, 2)), jnp.zeros(2))]


def negative_log_density(
    params: Sequence[tuple[Array, Array]], rng_key: Array, batch: Batch
) -> Array:
    """Of a normal whose location and log scale the perceptron gives."""
    hidden = batch["y"]
    for weights, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ weights + bias)
    weights, bias = params[-1]
    loc, log_scale = (hidden @ weights + bias).T
    z = (batch["mu"] - loc) * jnp.exp(-log_scale)
    return 0.5 * z**2 + log_scale + 0.5 * math.log(2 * math.pi)


def resident(field: str) -> int:
    """:return: bytes, now (``VmRSS``) or at the process's peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """:return: what a function returns, run in a process of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(directory: Path, gigabytes: float) -> dict[str, float]:
    """Write, read and train, each in a process of its own.

    :param directory: where the bank is written; it is removed afterwards.
    :param gigabytes: of the simulations before they are compressed.
    """
    if (free := shutil.disk_usage(directory).free / 1e9) < 1.5 * gigabytes:
        raise SystemExit(f"{directory}: expected {1.5 * gigabytes:.1f} GB free, got {free:.1f}.")
    num_simulations = int(gigabytes * 1e9) // (4 * (NUM_OBSERVATIONS + 1))
    result: dict[str, float] = {"num_simulations": num_simulations, "gigabytes": gigabytes}
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        path = Path(temporary) / "bank"
        result |= alone(write_bank, path, num_simulations)
        result |= alone(read_bank, path)
        result |= alone(train_from_bank, path)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    result = measure(options.directory, options.gigabytes)
    write(options.out, "disk", result)
    rows = [(name.replace("_", " "), f"{value:,.2f}") for name, value in result.items()]
    print(markdown(("measure", "value"), rows))


if __name__ == "__main__":
    main()
