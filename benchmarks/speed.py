# SPDX-License-Identifier: Apache-2.0
"""Speed, side by side with BayesFlow, from the start of the process to the first draws.

``python -m benchmarks.speed``: the same bank and machine; whole processes that take turns; medians
over the runs. ``equal`` has BayesFlow's network, batch and steps, ``network`` the package's own
network with the same batch and steps, ``default`` the package's defaults throughout. ``--network
FlowMatching`` compares flow matching at the size of BayesFlow's default. BayesFlow runs in an
environment of its own, made if missing.
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.c2st import scores
from benchmarks.environment import ROOT, markdown, write
from benchmarks.peers import Events, run_child, write_bank
from benchmarks.protocol import PARTS
from benchmarks.tasks import TASKS


class Comparison(NamedTuple):
    """What runs beside what.

    :param theirs: name of BayesFlow's method.
    :param ours: title in the table to the name of a method of this package.
    :param parts: what is timed besides training and draws.
    """

    theirs: str
    ours: Mapping[str, str]
    parts: Sequence[str]

    @property
    def methods(self) -> tuple[str, ...]:
        return ("bayesflow", *self.ours.values())


COUPLINGS = {"equal network": "equal", "our network": "network", "our defaults": "default"}
FLOWS = {"equal parameters": "equal_flow_matching", "equal widths": "flow_matching"}
COMPARISONS = {
    "CouplingFlow": Comparison("spline_flow", COUPLINGS, tuple(PARTS)),
    "FlowMatching": Comparison("flow_matching", FLOWS, ()),
}
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


def run_method(
    comparison: Comparison, method: str, task: str, seed: int, folder: Path
) -> tuple[Events, np.ndarray]:
    """Run one process from start to end.

    :param comparison: what is compared.
    :param method: one of its methods.
    :param task: name of the task, whose bank is in the folder.
    :param seed: seed of its training.
    :param folder: where the bank is and the draws go.
    :return: event to its line, and draws of shape ``(observations, 10000, d)``.
    """
    draws = folder / "draws.npy"
    options = {"task": task, "seed": seed, "draws": draws, "bank": folder / f"{task}.npz"}
    options["parts"] = comparison.parts
    if method == "bayesflow":
        options["method"] = comparison.theirs
        return run_child("bayesflow", "benchmarks.peer_bayesflow", options), np.load(draws)
    options["method"] = method
    module = "benchmarks.speed_numpyro_amortized"
    return run_child("numpyro_amortized", module, options), np.load(draws)


def check_equal(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """See that the equal network is equal.

    :param theirs: the training of BayesFlow.
    :param ours: that of this package.
    :raises RuntimeError: if the numbers of parameters differ by more than 5 %, or steps differ.
    """
    print(f"parameters: {theirs['parameters']:,} (BayesFlow), {ours['parameters']:,} (equal)")
    print(f"steps: {theirs['steps']:,} (BayesFlow), {ours['steps']:,} (equal)")
    larger = abs(ours["parameters"] / theirs["parameters"] - 1)
    if larger > 0.05 or ours["steps"] != theirs["steps"]:
        raise RuntimeError("the networks or their training are not equal: adapt them")


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
            if event in each[0]
        }
        | {STEADY: statistics.median(step_milliseconds(run["fit"]) for run in each)}
        | {
            "compiled in second calls": max(
                run[event]["compiled"] for run in each for event in SECOND_CALLS if event in run
            )
        }
        | {key: each[0]["fit"][key] for key in ("parameters", "steps")}
        for method, each in runs.items()
    }


def table(comparison: Comparison, task: str, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """:return: a Markdown table of one task; in brackets, how many times faster than BayesFlow."""

    def cell(name: str, method: str) -> str:
        value = summary[method].get(name)
        if not isinstance(value, float):
            return "" if value is None else f"{value:,}"
        ratio = summary["bayesflow"][name] / value
        timed = name in (*MEASURES, STEADY) and method != "bayesflow"
        return f"{value:.3g}" + (f" ({ratio:.1f}x)" if timed else "")

    rows = [[name, *(cell(name, m) for m in comparison.methods)] for name in summary["bayesflow"]]
    return markdown([task, "BayesFlow 2.1.0", *comparison.ours], rows)


def time_methods(
    comparison: Comparison, task: str, *, runs: int, folder: Path
) -> tuple[dict[str, list[Events]], dict[str, list[np.ndarray]]]:
    """Run all methods on one task, taking turns: a busy machine slows all of them.

    :param comparison: what is compared.
    :param task: name of the task.
    :param runs: number of runs of each method.
    :param folder: a folder for the bank and the draws.
    :return: method to the events of its runs, and method to the draws of its runs.
    """
    write_bank(folder / f"{task}.npz", TASKS[task])
    events: dict[str, list[Events]] = {method: [] for method in comparison.methods}
    draws: dict[str, list[np.ndarray]] = {method: [] for method in comparison.methods}
    for seed, method in product(range(runs), comparison.methods):
        run, drawn = run_method(comparison, method, task, seed, folder)
        events[method].append(run)
        draws[method].append(drawn)
        print(task, seed, method, f"{run['draws_1']['since_start']:.1f} s", flush=True)
    equal = next(iter(comparison.ours.values()))
    check_equal(events["bayesflow"][0]["fit"], events[equal][0]["fit"])
    return events, draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp"])
    parser.add_argument("--network", default="CouplingFlow", choices=list(COMPARISONS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--c2st-runs", type=int, default=1, help="runs whose draws are judged")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    comparison = COMPARISONS[options.network]
    section = "speed" if options.network == "CouplingFlow" else f"speed_{options.network}"
    draws = {}
    result: dict[str, Any] = {"runs": {}, "summaries": {}}
    with TemporaryDirectory() as folder:
        for task in options.tasks:
            events, draws[task] = time_methods(
                comparison, task, runs=options.runs, folder=Path(folder)
            )
            result["runs"][task], result["summaries"][task] = events, summarize(events)
            print(table(comparison, task, result["summaries"][task]), flush=True)
    write(options.out, section, result)
    for task, method in product(options.tasks, comparison.methods):  # at last: it takes longer
        judged = [
            statistics.mean(scores(task, each, num_jobs=os.cpu_count()))
            for each in draws[task][method][: options.c2st_runs]
        ]
        if judged:
            result["summaries"][task][method]["C2ST"] = statistics.median(judged)
    for task in options.tasks:
        print(table(comparison, task, result["summaries"][task]), flush=True)
    write(options.out, section, result)


if __name__ == "__main__":
    main()
