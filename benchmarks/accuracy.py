# SPDX-License-Identifier: Apache-2.0
"""Accuracy on the simulation-based inference benchmark, with the package's defaults.

``python -m benchmarks.accuracy``: for every task and seed one bank of simulations, one training and
10,000 draws for each of five observations, told apart from the reference draws by a classifier.
Nothing depends on the task but its model.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import random

import numpyro_amortized as npa
from benchmarks.c2st import c2st
from benchmarks.environment import ROOT, markdown, write
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, Task, flatten, reference

OBSERVATIONS = range(1, NUM_OBSERVATIONS + 1)


def evaluate(task: Task, seed: int, *, num_simulations: int, num_jobs: int) -> dict[str, Any]:
    """Train once and judge the posterior of every observation.

    :param task: the task.
    :param seed: seed of the simulations, the training and the draws.
    :param num_simulations: size of the bank.
    :param num_jobs: processes of the classifier.
    :return: C2ST of every observation, seconds of training and of drawing.
    """
    references = [reference(task, i) for i in OBSERVATIONS]  # missing data fails before training
    bank_key, fit_key, sample_key = random.split(random.key(seed), 3)
    simulator = npa.ModelSimulator(task.model, observed=("x",))
    bank = simulator.sample(bank_key, num_simulations)
    begin = time.perf_counter()
    approximator = npa.ContinuousApproximator(simulator)
    history = approximator.fit(fit_key, dataset=bank, progress_bar=False)
    trained = time.perf_counter()
    observed = np.stack([observation for observation, _ in references])
    num_samples = len(references[0][1])
    samples = approximator.sample(sample_key, num_samples, {"x": observed})
    each = [{k: np.asarray(v[i]) for k, v in samples.items()} for i in range(len(references))]
    drawn = time.perf_counter()
    scores = [
        c2st(draws, flatten(task, sites), num_jobs=num_jobs)
        for (_, draws), sites in zip(references, each, strict=True)
    ]
    return {
        "task": task.name,
        "seed": seed,
        "c2st": scores,
        "mean_c2st": statistics.mean(scores),
        "fit_seconds": trained - begin,
        "sample_seconds": drawn - trained,
        "steps": history.num_steps,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """:return: median and worst over the seeds of one task."""
    means = [row["mean_c2st"] for row in rows]
    return {
        "task": rows[0]["task"],
        "median_c2st": statistics.median(means),
        "worst_c2st": max(means),
        "median_fit_seconds": statistics.median(row["fit_seconds"] for row in rows),
    }


def table(summaries: Sequence[dict[str, Any]], num_simulations: int) -> str:
    """:return: a Markdown table of the summaries."""
    header = ["task", f"C2ST, {num_simulations:,} simulations: median", "worst", "training, s"]
    keys = ("median_c2st", "worst_c2st")
    rows = [
        [s["task"], *(f"{s[key]:.3f}" for key in keys), f"{s['median_fit_seconds']:.0f}"]
        for s in summaries
    ]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    rows, summaries = [], []
    for name in options.tasks:
        for seed in options.seeds:
            rows.append(
                evaluate(
                    TASKS[name],
                    seed,
                    num_simulations=options.num_simulations,
                    num_jobs=options.num_jobs,
                )
            )
            print(rows[-1], flush=True)
        summaries.append(summarize([row for row in rows if row["task"] == name]))
    result = {"num_simulations": options.num_simulations, "summaries": summaries, "runs": rows}
    write(options.out, "accuracy", result)
    print(table(summaries, options.num_simulations))


if __name__ == "__main__":
    main()
