# SPDX-License-Identifier: Apache-2.0
"""Cost of training and of drawing with the size of the observed set.

``python -m benchmarks.scaling``: independent normal observations, 10, 100 and 1,000 of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.typing import ArrayLike

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write

SIZES = (10, 100, 1_000)
EPOCHS, NUM_BATCHES, NUM_SAMPLES, REPEATS = 6, 50, 1_000, 5
NOISE = 1.25  # of a time measured on a shared machine


def normals(size: int, x: ArrayLike | None = None) -> None:
    """``size`` independent observations of a normal with unknown mean and scale."""
    location = numpyro.sample("location", dist.Normal(0, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    with numpyro.plate("observations", size):
        numpyro.sample("x", dist.Normal(location, scale), obs=x)


def measure(size: int) -> dict[str, float]:
    """Train and draw with sets of one size.

    :param size: number of observations.
    :return: milliseconds of a training step, seconds of 1,000 draws; compiling left out.
    """
    fit_key, data_key, sample_key = random.split(random.key(size), 3)
    simulator = npa.ModelSimulator(partial(normals, size), observed=("x",))
    approximator = npa.ContinuousApproximator(simulator)
    history = approximator.fit(fit_key, epochs=EPOCHS, num_batches=NUM_BATCHES, progress_bar=False)
    observed = simulator.sample(data_key, ())["x"]
    draw = partial(approximator.sample, sample_key, NUM_SAMPLES, {"x": observed})
    jax.block_until_ready(draw())
    return {
        "size": size,
        "step_ms": 1e3 * statistics.median(history.seconds[1:].tolist()) / NUM_BATCHES,
        "sample_seconds": statistics.median(seconds(draw) for _ in range(REPEATS)),
    }


def seconds(call: Callable[[], Any]) -> float:
    """:return: duration of a call, until its arrays are ready."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def growth(rows: Sequence[dict[str, float]], key: str) -> float:
    """:return: largest growth of a cost from one size to the next, as a multiple of linear."""
    return max(b[key] / a[key] / (b["size"] / a["size"]) for a, b in pairwise(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    rows = [measure(size) for size in options.sizes]
    linear = {key: growth(rows, key) for key in ("step_ms", "sample_seconds")}
    write(options.out, "scaling", {"rows": rows, "growth_as_multiple_of_linear": linear})
    cells = [
        [f"{r['size']:,}", f"{r['step_ms']:.2f}", f"{1e3 * r['sample_seconds']:.1f}"] for r in rows
    ]
    print(markdown(["observations", "training, ms/step", "1,000 draws, ms"], cells))
    verdict = "no worse than linear" if max(linear.values()) <= NOISE else "WORSE than linear"
    print(f"growth as a multiple of linear: {linear}: {verdict}")
    if max(linear.values()) > NOISE:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
