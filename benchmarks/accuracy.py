# SPDX-License-Identifier: Apache-2.0
"""Accuracy on the simulation-based inference benchmark, with the package's defaults.

``python -m benchmarks.accuracy``: for every task, network and seed one training, on a bank or
online, and 10,000 draws for each of five observations, told apart from the reference draws by a
classifier. Each runs in a process of its own. Nothing depends on the task but its model.
``--peers`` runs BayesFlow and sbi beside it, with their defaults, in environments of their own.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array, random
from matplotlib.figure import Figure

import numpyro_amortized as npa
from benchmarks.accuracy_peers import PEERS, evaluate_peer
from benchmarks.c2st import judged
from benchmarks.environment import ROOT, markdown, write
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, flatten, reference
from numpyro_amortized.networks import CouplingFlow, DiffusionModel, FlowMatching

OBSERVATIONS = range(1, NUM_OBSERVATIONS + 1)
NETWORKS = {network.__name__: network for network in (CouplingFlow, FlowMatching, DiffusionModel)}
_PROBE_STEPS = 300  # that tell how long a step takes


def evaluate(
    task_name: str,
    network: str,
    seed: int,
    *,
    num_simulations: int | None,
    epochs: int | None,
    seconds: float,
    num_jobs: int,
) -> dict[str, Any]:
    """Train once and judge the posterior of every observation.

    :param task_name: name of the task.
    :param network: name of the inference network, which has its defaults.
    :param seed: seed of the simulations, the training and the draws.
    :param num_simulations: size of the bank; ``None`` to simulate online.
    :param epochs: passes over the bank, by default those of ``fit``.
    :param seconds: about how long the online training takes.
    :param num_jobs: processes of the classifier.
    :return: C2ST of every observation, seconds of training and of drawing, and memory.
    """
    task = TASKS[task_name]
    references = [reference(task, i) for i in OBSERVATIONS]  # missing data fails before training
    bank_key, fit_key, *sample_keys = random.split(random.key(seed), 2 + NUM_OBSERVATIONS)
    begin = time.perf_counter()
    simulator = npa.ModelSimulator(task.model, observed=("x",))
    approximator = npa.ContinuousApproximator(simulator, inference_network=NETWORKS[network])
    if num_simulations is None:
        history = _fit_online(fit_key, approximator, seconds)
    else:
        bank = simulator.sample(bank_key, num_simulations)
        begin = time.perf_counter()
        history = approximator.fit(fit_key, dataset=bank, epochs=epochs, progress_bar=False)
    trained = time.perf_counter()
    draws, durations = [], []
    for key, (observation, reference_draws) in zip(sample_keys, references, strict=True):
        start = time.perf_counter()
        sites = approximator.sample(key, len(reference_draws), {"x": observation})
        draws.append(flatten(task, {name: np.asarray(value) for name, value in sites.items()}))
        durations.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    name = network if epochs is None else f"{network}, {epochs} epochs"
    return judged(task_name, name, seed, draws, num_jobs=num_jobs) | {
        "online": num_simulations is None,
        "fit_seconds": trained - begin,
        "first_draws_seconds": durations[0],
        "second_draws_seconds": durations[1],
        "memory_gib": memory,
        "steps": history.num_steps,
        "num_simulations": num_simulations or history.num_simulations,
    }


def _fit_online(
    rng_key: Array, approximator: npa.ContinuousApproximator, seconds: float
) -> npa.History:
    """Training of about a given duration: another approximator tells how long a step takes."""
    probe = npa.ContinuousApproximator(
        approximator.source, inference_network=approximator.inference_network
    )
    start = time.perf_counter()
    history = probe.fit(rng_key, epochs=3, num_batches=_PROBE_STEPS // 3, progress_bar=False)
    elapsed = time.perf_counter() - start
    step = float(np.median(history.seconds[1:])) / (_PROBE_STEPS // 3)
    epochs = max(10, int((seconds - 2 * elapsed) / step / 100))
    return approximator.fit(rng_key, epochs=epochs, num_batches=100, progress_bar=False)


def in_own_process(*arguments: Any, **options: Any) -> dict[str, Any]:
    """:func:`evaluate`, whose memory is then its own."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(evaluate, *arguments, **options).result()


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """:return: medians over the seeds of one task and network, and the worst."""
    means = [row["mean_c2st"] for row in rows]
    measured = ("fit_seconds", "first_draws_seconds", "second_draws_seconds", "memory_gib")
    return {
        **{key: rows[0][key] for key in ("task", "network", "online")},
        "median_c2st": statistics.median(means),
        "worst_c2st": max(means),
        **{key: statistics.median(row[key] for row in rows) for key in measured},
    }


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """:return: a Markdown table of the summaries."""
    header = ["task", "network", "simulations", "C2ST: median", "worst", "training, s"]
    header += ["first 10,000 draws, s", "second, s", "memory, GiB"]
    rows = [
        [
            s["task"],
            s["network"],
            "online" if s["online"] else "bank",
            f"{s['median_c2st']:.3f}",
            f"{s['worst_c2st']:.3f}",
            f"{s['fit_seconds']:.0f}",
            f"{s['first_draws_seconds']:.1f}",
            f"{s['second_draws_seconds']:.2f}",
            f"{s['memory_gib']:.1f}",
        ]
        for s in summaries
    ]
    return markdown(header, rows)


def picture(summaries: Sequence[dict[str, Any]]) -> Figure:
    """Median over the seeds of each network, and a line up to the worst; .5 is the exact posterior.

    :return: the figure; save or show it.
    """
    tasks = list(dict.fromkeys(s["task"] for s in summaries))
    networks = list(dict.fromkeys(s["network"] for s in summaries))
    figure = Figure(figsize=(2.2 + 1.5 * len(tasks), 3.2), layout="constrained")
    axes = figure.subplots()
    for k, network in enumerate(networks):
        offset = 0.7 * ((k + 0.5) / len(networks) - 0.5)
        found = [s for s in summaries if s["network"] == network]
        x = [tasks.index(s["task"]) + offset for s in found]
        median = [s["median_c2st"] for s in found]
        worst = [s["worst_c2st"] for s in found]
        axes.plot(x, median, "o", color=f"C{k}", label=network)
        axes.vlines(x, median, worst, color=f"C{k}")
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(xticks=range(len(tasks)), xticklabels=tasks, ylabel="C2ST: median, worst of seeds")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--networks", nargs="+", default=["CouplingFlow"], choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, help="of training on a bank, by default those of fit")
    parser.add_argument("--online", action="store_true", help="simulate while training, no bank")
    parser.add_argument("--seconds", type=float, default=300, help="of an online training")
    parser.add_argument("--num-jobs", type=int, default=os.cpu_count())
    parser.add_argument("--peers", action="store_true", help="run BayesFlow and sbi beside it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--picture", type=Path, help="where a picture of the table goes")
    options = parser.parse_args()
    if options.online and (options.peers or options.epochs):
        parser.error("--peers and --epochs are of trainings on banks; leave --online out")
    rows, summaries = [], []
    networks = [*options.networks, *(PEERS if options.peers else ())]
    for task, network in product(options.tasks, networks):
        rows += [run(task, network, seed, options) for seed in options.seeds]
        summaries.append(summarize(rows[-len(options.seeds) :]))
    section = "accuracy_online" if options.online else "accuracy"
    write(options.out, section, {"summaries": summaries, "runs": rows})
    print(table(summaries))
    if options.picture is not None:
        picture(summaries).savefig(options.picture, bbox_inches="tight")


def run(task: str, network: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """:return: one row, printed too."""
    if network in PEERS:
        row = evaluate_peer(
            task,
            network,
            seed,
            num_simulations=options.num_simulations,
            num_jobs=options.num_jobs,
        )
    else:
        row = in_own_process(
            task,
            network,
            seed,
            num_simulations=None if options.online else options.num_simulations,
            epochs=options.epochs,
            seconds=options.seconds,
            num_jobs=options.num_jobs,
        )
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
