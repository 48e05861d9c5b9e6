# SPDX-License-Identifier: Apache-2.0
"""The simulation-based inference benchmark after `refine`, beside the amortized draws and NUTS.

``python -m benchmarks.refine``: for every task one training on a bank of 10,000 simulations with
the defaults, and for each of five observations 10,000 draws of the amortized posterior and 10,000
after `refine`, told apart from the reference by a classifier. NUTS makes 10,000 in four chains,
which are judged by their R-hat and effective sample size.
"""

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import random
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS

import numpyro_amortized as npa
from benchmarks.c2st import c2st
from benchmarks.environment import ROOT, markdown, write
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, Task, flatten, reference
from benchmarks.zoo import TOLD

TASK_NAMES = ("two_moons", "gaussian_linear", "slcp", "sir")
OBSERVATIONS = range(1, NUM_OBSERVATIONS + 1)


def evaluate(
    task_name: str, seed: int, *, num_simulations: int, num_jobs: int, judged: Sequence[str]
) -> dict[str, Any]:
    """Train once, and judge the draws of every observation before and after refinement.

    :param task_name: name of the task.
    :param seed: of the simulations, the training and the draws.
    :param num_simulations: size of the bank.
    :param num_jobs: processes of the classifier.
    :param judged: names of the methods whose draws are told from the reference.
    """
    task = TASKS[task_name]
    references = {i: reference(task, i) for i in OBSERVATIONS}
    bank_key, fit_key, *keys = random.split(random.key(seed), 2 + NUM_OBSERVATIONS)
    simulator = npa.ModelSimulator(task.model, observed=("x",))
    approximator = npa.ContinuousApproximator(simulator)
    begin = time.perf_counter()
    approximator.fit(
        fit_key, dataset=simulator.sample(bank_key, num_simulations), progress_bar=False
    )
    fit_seconds = time.perf_counter() - begin
    rows = []
    for key, (observation, (x, true)) in zip(keys, references.items(), strict=True):
        row: dict[str, Any] = {"observation": observation}
        for name in METHODS:
            begin = time.perf_counter()
            sites, told = METHODS[name](key, approximator, task, x, len(true))
            row[name] = told | {"seconds": time.perf_counter() - begin}
            if name in judged:
                row[name]["c2st"] = c2st(true, flatten(task, sites), num_jobs=num_jobs)
        print(task_name, row, flush=True)
        rows.append(row)
    return {"task": task_name, "seed": seed, "fit_seconds": fit_seconds, "observations": rows}


def amortized(
    rng_key: jax.Array, approximator: npa.ContinuousApproximator, task: Task, x: Any, num: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """:return: draws ``(num, *shape)`` of each site, and what there is to tell of them."""
    return jax.device_get(approximator.sample(rng_key, num, {"x": x})), {}


def refined(
    rng_key: jax.Array, approximator: npa.ContinuousApproximator, task: Task, x: Any, num: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same after `refine`."""
    with warnings.catch_warnings(action="ignore"):  # the step tells what was not resolved
        tree = npa.refine(rng_key, approximator, {"x": x}, num_samples=num)
    posterior, stats = tree["posterior"].dataset, tree["sample_stats"].dataset
    values = {name: posterior[name].values for name in task.parameters}
    sites = {name: value.reshape(-1, *value.shape[2:]) for name, value in values.items()}
    return sites, {name: stats[name].item() for name in TOLD}


def nuts(
    rng_key: jax.Array, approximator: npa.ContinuousApproximator, task: Task, x: Any, num: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same by NUTS alone, with the largest R-hat and the least effective sample size."""
    mcmc = MCMC(
        NUTS(task.model),
        num_warmup=1000,
        num_samples=num // 4,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, x=x)
    chains = jax.device_get(mcmc.get_samples(group_by_chain=True))
    rhat = max(float(np.max(gelman_rubin(chains[name]))) for name in task.parameters)
    ess = min(float(np.min(effective_sample_size(chains[name]))) for name in task.parameters)
    return jax.device_get(mcmc.get_samples()), {"rhat": rhat, "ess": ess}


METHODS = {"amortized": amortized, "refined": refined, "nuts": nuts}
JUDGED = ["amortized", "refined"]


def table(runs: list[dict[str, Any]]) -> str:
    """:return: a Markdown table of means over the observations."""
    header = ["task", "C2ST: amortized", "refined", "worst refined", "without MCMC", "unresolved"]
    header += ["first refine, s", "others, s", "NUTS, s", "its R-hat", "its ESS"]
    lines = []
    for run in runs:
        rows = run["observations"]
        steps = [row["refined"]["step"] for row in rows]
        lines.append(
            [
                run["task"],
                *(_mean(rows, name, "c2st", digits=3) for name in ("amortized", "refined")),
                f"{max(row['refined'].get('c2st', math.nan) for row in rows):.3f}",
                f"{steps.count('resampled')} of {len(steps)}",
                steps.count("unresolved"),
                _mean(rows[:1], "refined", "seconds"),
                _mean(rows[1:], "refined", "seconds"),
                _mean(rows, "nuts", "seconds"),
                _range(rows, "rhat", digits=3),
                _range(rows, "ess", digits=0),
            ]
        )
    return markdown(header, lines)


def _mean(rows: list[dict[str, Any]], name: str, value: str, *, digits: int = 1) -> str:
    known = [row[name][value] for row in rows if value in row[name]]
    return f"{statistics.mean(known):.{digits}f}" if known else "-"


def _range(rows: list[dict[str, Any]], value: str, *, digits: int) -> str:
    known = [row["nuts"][value] for row in rows]
    return f"{min(known):.{digits}f} to {max(known):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASK_NAMES), choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-jobs", type=int, default=os.cpu_count())
    parser.add_argument("--judged", nargs="*", default=JUDGED, choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    runs = []
    for name in options.tasks:
        runs.append(
            evaluate(
                name,
                options.seed,
                num_simulations=options.num_simulations,
                num_jobs=options.num_jobs,
                judged=options.judged,
            )
        )
        write(options.out, "refine", {"runs": runs})
    print(table(runs))


if __name__ == "__main__":
    main()
