# SPDX-License-Identifier: Apache-2.0
"""Speed, side by side with BayesFlow, from the start of the process to the first draws.

``python -m benchmarks.speed``: the same bank and machine; whole processes that take turns; medians
over the runs. ``equal`` has BayesFlow's network, batch and steps, ``network`` the package's own
network with the same batch and steps, ``default`` the package's defaults throughout. BayesFlow runs
in an environment of its own, made if missing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from venv import EnvBuilder

import numpy as np
from jax import random

from benchmarks.c2st import c2st
from benchmarks.environment import ROOT, markdown, write
from benchmarks.speed_protocol import NUM_CONDITIONS
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, flatten, reference, simulate

BAYESFLOW = "bayesflow==2.1.0"
PEER = ROOT / ".peers" / "bayesflow"
METHODS = ("bayesflow", "equal", "network", "default")
NUM_SIMULATIONS = 10_000
# name in the table -> (event, value of its line)
MEASURES = {
    "start to first 10,000 draws, s": ("draws_1", "since_start"),
    "the same, seconds of all cores": ("draws_1", "processor_seconds"),
    "training, s": ("fit", "seconds"),
    "10,000 draws, second call, s": ("draws_2", "seconds"),
    "100 x 1,000 draws, second call, s": ("many_2", "seconds"),
    "log density of 1,000 pairs, second call, s": ("log_prob_2", "seconds"),
}
STEADY = "training after the first epoch, ms/step"
SECOND_CALLS = ("draws_2", "many_2", "log_prob_2")
Events = dict[str, dict[str, Any]]


def peer_python() -> Path:
    """:return: interpreter of BayesFlow's environment, which is made if it is missing."""
    python = PEER / "bin" / "python"
    if not python.exists():
        EnvBuilder(with_pip=True).create(PEER)
        packages = [BAYESFLOW, *(f"{name}=={version(name)}" for name in ("jax", "jaxlib"))]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def write_bank(path: Path, name: str) -> None:
    """Simulate what every child of a task gets.

    :param path: the file to be written.
    :param name: name of the task.
    """
    task = TASKS[name]
    sites = simulate(random.key(0), task, NUM_SIMULATIONS + 2 * NUM_CONDITIONS)
    theta, x = flatten(task, sites), sites["x"].reshape(len(sites["x"]), -1)
    observed = [reference(task, i + 1)[0].reshape(-1) for i in range(NUM_OBSERVATIONS)]
    np.savez(
        path,
        theta=theta[:NUM_SIMULATIONS],
        x=x[:NUM_SIMULATIONS],
        conditions=x[NUM_SIMULATIONS:],
        observations=np.stack(observed),
    )


def run_child(method: str, task: str, seed: int, folder: Path) -> tuple[Events, np.ndarray]:
    """Run one process from start to end.

    :param method: one of ``METHODS``.
    :param task: name of the task, whose bank is in the folder.
    :param seed: seed of its training.
    :param folder: where the bank is and the draws go.
    :return: event to its line, and draws of shape ``(observations, 10000, d)``.
    :raises RuntimeError: if the process fails, with the end of what it printed.
    """
    peer = method == "bayesflow"
    python = peer_python() if peer else Path(sys.executable)
    module = "benchmarks.speed_bayesflow" if peer else "benchmarks.speed_numpyro_amortized"
    draws = folder / "draws.npy"
    options = {"method": method, "task": task, "seed": seed}
    options |= {"bank": folder / f"{task}.npz", "draws": draws, "start": time.time()}
    command = [str(python), "-m", module]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    child = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError(f"{method} on {task} failed:\n{child.stderr[-4000:]}")
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    return {line.pop("event"): line for line in lines}, np.load(draws)


def child_environment() -> dict[str, str]:
    """:return: the caller's environment, without JAX's compilation cache on disk."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {"KERAS_BACKEND": "jax", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def judge(task: str, draws: np.ndarray) -> float:
    """:return: mean C2ST over the observations."""
    references = (reference(TASKS[task], i + 1)[1] for i in range(len(draws)))
    pairs = zip(references, draws, strict=True)
    return statistics.mean(c2st(*pair, num_jobs=os.cpu_count()) for pair in pairs)


def check_equal(runs: Mapping[str, Sequence[Events]]) -> None:
    """See that the equal network is equal.

    :param runs: method to the events of its runs.
    :raises RuntimeError: if the numbers of parameters differ by more than 5 %, or steps differ.
    """
    theirs, ours = runs["bayesflow"][0]["fit"], runs["equal"][0]["fit"]
    print(f"parameters: {theirs['parameters']:,} (BayesFlow), {ours['parameters']:,} (equal)")
    print(f"steps: {theirs['steps']:,} (BayesFlow), {ours['steps']:,} (equal)")
    larger = abs(ours["parameters"] / theirs["parameters"] - 1)
    if larger > 0.05 or ours["steps"] != theirs["steps"]:
        raise RuntimeError("the networks or their training are not equal: adapt `equal_network`")


def step_milliseconds(fit: Mapping[str, Any]) -> float:
    """:return: cost of a step once everything is compiled."""
    epochs = fit["epoch_seconds"]
    return 1e3 * statistics.median(epochs[1:]) * len(epochs) / fit["steps"]


def summarize(runs: Mapping[str, Sequence[Events]]) -> dict[str, dict[str, Any]]:
    """:return: method to the medians of the measures and the programs compiled in second calls."""
    return {
        method: {
            name: statistics.median(run[event][key] for run in each)
            for name, (event, key) in MEASURES.items()
        }
        | {STEADY: statistics.median(step_milliseconds(run["fit"]) for run in each)}
        | {"compiled in second calls": max(r[e]["compiled"] for r in each for e in SECOND_CALLS)}
        | {key: each[0]["fit"][key] for key in ("parameters", "steps")}
        for method, each in runs.items()
    }


def table(task: str, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """:return: a Markdown table of one task; in brackets, how many times faster than BayesFlow."""

    def cell(name: str, method: str) -> str:
        value = summary[method].get(name)
        if not isinstance(value, float):
            return "" if value is None else f"{value:,}"
        ratio = summary["bayesflow"][name] / value
        timed = name in (*MEASURES, STEADY) and method != "bayesflow"
        return f"{value:.3g}" + (f" ({ratio:.1f}x)" if timed else "")

    rows = [[name, *(cell(name, m) for m in METHODS)] for name in summary["bayesflow"]]
    return markdown([task, "BayesFlow 2.1.0", "equal network", "our network", "our defaults"], rows)


def time_methods(
    task: str, *, runs: int, folder: Path
) -> tuple[dict[str, list[Events]], dict[str, list[np.ndarray]]]:
    """Run all methods on one task, taking turns: a busy machine slows all of them.

    :param task: name of the task.
    :param runs: number of runs of each method.
    :param folder: a folder for the bank and the draws.
    :return: method to the events of its runs, and method to the draws of its runs.
    """
    write_bank(folder / f"{task}.npz", task)
    events: dict[str, list[Events]] = {method: [] for method in METHODS}
    draws: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for seed, method in product(range(runs), METHODS):
        run, drawn = run_child(method, task, seed, folder)
        events[method].append(run)
        draws[method].append(drawn)
        print(task, seed, method, f"{run['draws_1']['since_start']:.1f} s", flush=True)
    check_equal(events)
    return events, draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--c2st-runs", type=int, default=1, help="runs whose draws are judged")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    draws = {}
    result: dict[str, Any] = {"runs": {}, "summaries": {}}
    with TemporaryDirectory() as folder:
        for task in options.tasks:
            events, draws[task] = time_methods(task, runs=options.runs, folder=Path(folder))
            result["runs"][task], result["summaries"][task] = events, summarize(events)
            print(table(task, result["summaries"][task]), flush=True)
    write(options.out, "speed", result)
    for task, method in product(options.tasks, METHODS):  # at last: it takes longer than the runs
        judged = [judge(task, each) for each in draws[task][method][: options.c2st_runs]]
        if judged:
            result["summaries"][task][method]["C2ST"] = statistics.median(judged)
    for task in options.tasks:
        print(table(task, result["summaries"][task]), flush=True)
    write(options.out, "speed", result)


if __name__ == "__main__":
    main()
