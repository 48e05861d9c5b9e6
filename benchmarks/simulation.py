# SPDX-License-Identifier: Apache-2.0
"""A million simulations, side by side with BayesFlow's simulators, in whole processes.

``python -m benchmarks.simulation``: eight schools, and a prior and a likelihood of a normal mean.
The processes take turns; medians over the runs. ``model`` is a NumPyro model, ``jax`` are JAX
functions, ``numpy`` functions called once for each simulation, and ``batched`` functions that draw
the whole batch; these two are the same for both packages. BayesFlow runs in an environment of its
own.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import random

from benchmarks.environment import ROOT, markdown, write
from benchmarks.protocol import reporter

METHODS = ("model", "jax", "batched", "numpy", "bayesflow batched", "bayesflow numpy")
# name in the table -> (event, value of its line)
MEASURES = {
    "start to the first million, s": ("first", "since_start"),
    "the same, seconds of all cores": ("first", "processor_seconds"),
    "a second million, s": ("second", "seconds"),
    "the second, seconds of all cores": ("second", "own_processor_seconds"),
}
NUM_DRAWS, NUM_DATA = 1_000_000, 10
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=np.float32)
Functions = Sequence[Callable[..., dict[str, Any]]]
Events = dict[str, dict[str, Any]]


def schools_model() -> None:
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, SIGMA))


def normal_model() -> None:
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", NUM_DATA):
        numpyro.sample("x", dist.Normal(mu, 1))


def schools_prior_jax(rng_key):
    mu_key, tau_key, theta_key = random.split(rng_key, 3)
    mu, tau = 5 * random.normal(mu_key), abs(5 * random.cauchy(tau_key))
    return {"mu": mu, "tau": tau, "theta": mu + tau * random.normal(theta_key, (8,))}


def schools_likelihood_jax(rng_key, theta):
    return {"y": theta + SIGMA * random.normal(rng_key, (8,))}


def schools_prior(rng):
    mu, tau = rng.normal(0, 5), abs(5 * rng.standard_cauchy())
    return {"mu": mu, "tau": tau, "theta": rng.normal(mu, tau, size=8)}


def schools_likelihood(rng, theta):
    return {"y": rng.normal(theta, SIGMA)}


def schools_prior_batched(batch_shape, rng):
    mu = rng.normal(0, 5, size=batch_shape)
    tau = abs(5 * rng.standard_cauchy(size=batch_shape))
    theta = rng.normal(mu[..., None], tau[..., None], size=(*batch_shape, 8))
    return {"mu": mu, "tau": tau, "theta": theta}


def schools_likelihood_batched(batch_shape, rng, theta):
    return {"y": rng.normal(theta, SIGMA)}


def normal_prior_jax(rng_key):
    return {"mu": random.normal(rng_key)}


def normal_likelihood_jax(rng_key, mu):
    return {"x": mu + random.normal(rng_key, (NUM_DATA,))}


def normal_prior(rng):
    return {"mu": rng.normal()}


def normal_likelihood(rng, mu):
    return {"x": rng.normal(mu, 1, size=NUM_DATA)}


def normal_prior_batched(batch_shape, rng):
    return {"mu": rng.normal(size=batch_shape)}


def normal_likelihood_batched(batch_shape, rng, mu):
    return {"x": rng.normal(mu[..., None], 1, size=(*batch_shape, NUM_DATA))}


# task -> the kinds of functions that it has
TASKS: dict[str, dict[str, Functions]] = {
    "eight_schools": {
        "jax": (schools_prior_jax, schools_likelihood_jax),
        "numpy": (schools_prior, schools_likelihood),
        "batched": (schools_prior_batched, schools_likelihood_batched),
    },
    "normal": {
        "jax": (normal_prior_jax, normal_likelihood_jax),
        "numpy": (normal_prior, normal_likelihood),
        "batched": (normal_prior_batched, normal_likelihood_batched),
    },
}
MODELS = {"eight_schools": (schools_model, "y"), "normal": (normal_model, "x")}


def our_draws(task: str, kind: str) -> Callable[[int], Mapping[str, Any]]:
    """:return: seed to a million draws of this package."""
    import numpyro_amortized as npa
    from numpyro_amortized.simulators.functions import LambdaSimulator
    from numpyro_amortized.simulators.sequential import SequentialSimulator

    if kind == "model":
        model, observed = MODELS[task]
        simulator: npa.Simulator = npa.ModelSimulator(model, observed=observed)
    else:
        is_batched = kind == "batched"
        steps = [LambdaSimulator(fn, is_batched=is_batched) for fn in TASKS[task][kind]]
        simulator = SequentialSimulator(steps)
    return lambda seed: jax.block_until_ready(simulator.sample(random.key(seed), NUM_DRAWS))


def bayesflow_draws(task: str, kind: str) -> Callable[[int], Mapping[str, Any]]:
    """:return: seed to a million draws of BayesFlow, which takes none: the generator goes on."""
    from bayesflow.simulators import LambdaSimulator, SequentialSimulator

    rng = np.random.default_rng(0)
    steps = [
        LambdaSimulator(partial(fn, rng=rng), is_batched=kind == "batched")
        for fn in TASKS[task][kind]
    ]
    simulator = SequentialSimulator(steps, expand_outputs=False)
    return lambda seed: simulator.sample((NUM_DRAWS,))


def run(method: str, task: str, start: float) -> None:
    """Draw twice, with one line of JSON after each.

    :param method: one of ``METHODS``.
    :param task: one of ``TASKS``.
    :param start: when the process was started, in seconds since the epoch.
    """
    make = bayesflow_draws if method.startswith("bayesflow") else our_draws
    draw = make(task, method.removeprefix("bayesflow "))
    emit = reporter(start)
    for seed, name in enumerate(("first", "second")):
        emit(name, lambda seed=seed: check(draw(seed)))


def check(draws: Mapping[str, Any]) -> np.ndarray:
    """:return: the greatest value of each entry, for all values to be there and finite."""
    assert all(len(x) == NUM_DRAWS for x in draws.values())
    return np.array([float(x.max()) for x in draws.values()])


def run_child(method: str, task: str) -> Events:
    """Run one process from start to end.

    :param method: one of ``METHODS``.
    :param task: one of ``TASKS``.
    :return: event to its line.
    :raises RuntimeError: if the process fails, with the end of what it printed.
    """
    from benchmarks import peers  # what it imports, the environment of BayesFlow has not

    package = "bayesflow" if method.startswith("bayesflow") else "numpyro_amortized"
    options = {"child": method, "tasks": task}
    events = peers.run_child(package, "benchmarks.simulation", options)
    first, second = (events[name]["processor_seconds"] for name in ("first", "second"))
    events["second"]["own_processor_seconds"] = second - first
    return events


def summarize(runs: Mapping[str, Sequence[Events]]) -> dict[str, dict[str, float]]:
    """:return: method to the medians of the measures."""
    return {
        method: {
            name: statistics.median(run[event][key] for run in each)
            for name, (event, key) in MEASURES.items()
        }
        for method, each in runs.items()
    }


def table(task: str, summary: Mapping[str, Mapping[str, float]]) -> str:
    """:return: a Markdown table of one task."""
    rows = [[name, *(f"{summary[m][name]:.3g}" for m in summary)] for name in MEASURES]
    return markdown([task, *summary], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(options.child, options.tasks[0], options.start)
        return
    result: dict[str, Any] = {"runs": {}, "summaries": {}}
    for task in options.tasks:
        runs: dict[str, list[Events]] = {method: [] for method in options.methods}
        for _, method in product(range(options.runs), options.methods):
            runs[method].append(run_child(method, task))
            print(task, method, f"{runs[method][-1]['first']['since_start']:.1f} s", flush=True)
        result["runs"][task], result["summaries"][task] = runs, summarize(runs)
        print(table(task, result["summaries"][task]), flush=True)
    write(options.out, "simulation", result)


if __name__ == "__main__":
    main()
