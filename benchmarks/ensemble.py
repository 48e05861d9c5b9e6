# SPDX-License-Identifier: Apache-2.0
"""Five members trained in one program, and one after another.

``python -m benchmarks.ensemble``: seconds of ``fit`` on eight schools, compilation included, each
way a few times in turns, and the programs that each compiles for training.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write
from numpyro_amortized.networks import CouplingFlow

MEMBERS, REPEATS = 5, 2
SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
PROGRAMS: list[str] = []


def eight_schools(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(SIGMA)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, SIGMA), obs=y)


def record(event: str, _: float, **about: str) -> None:
    """Keeps the name of each training program that XLA compiles."""
    name = about.get("fun_name", "")
    if event == "/jax/core/compile/backend_compile_duration" and "_run_load" in name:
        PROGRAMS.append(name)


def members(simulator: npa.ModelSimulator) -> dict[str, npa.ContinuousApproximator]:
    adapter = npa.Adapter.for_posterior(simulator)
    network = partial(CouplingFlow, depth=4, widths=(64, 64))
    return {
        f"member {k}": npa.ContinuousApproximator(
            simulator, adapter=adapter, inference_network=network
        )
        for k in range(MEMBERS)
    }


def together(approximators: dict[str, npa.ContinuousApproximator], fit: dict[str, Any]) -> None:
    npa.EnsembleApproximator(approximators).fit(random.key(0), **fit)


def in_sequence(approximators: dict[str, npa.ContinuousApproximator], fit: dict[str, Any]) -> None:
    for key, member in zip(
        random.split(random.key(0), MEMBERS), approximators.values(), strict=True
    ):
        member.fit(key, **fit)


def measured(train: Callable[..., None], fit: dict[str, Any]) -> tuple[float, int]:
    """:return: seconds, and the number of training programs compiled."""
    approximators = members(npa.ModelSimulator(eight_schools, jnp.zeros(8)))
    jax.clear_caches()
    PROGRAMS.clear()
    begin = time.perf_counter()
    train(approximators, fit)
    return time.perf_counter() - begin, len(PROGRAMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    jax.monitoring.register_event_duration_secs_listener(record)
    fit = {"epochs": options.epochs, "num_batches": 100, "progress_bar": False}
    ways = {"one program": together, "in sequence": in_sequence}
    # the ways take turns, so that a busy machine meets both alike
    runs = [{name: measured(way, fit) for name, way in ways.items()} for _ in range(REPEATS)]
    rows = {
        name: {
            "seconds": statistics.median(run[name][0] for run in runs),
            "programs": max(run[name][1] for run in runs),
        }
        for name in ways
    }
    write(options.out, "ensemble", {"members": MEMBERS, "epochs": options.epochs, "rows": rows})
    cells = [[name, f"{row['seconds']:.1f}", row["programs"]] for name, row in rows.items()]
    print(markdown(["training", "s", "training programs"], cells))


if __name__ == "__main__":
    main()
