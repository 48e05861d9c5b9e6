# SPDX-License-Identifier: Apache-2.0
"""Accuracy of other packages with their defaults, on banks of their own."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.c2st import c2st
from benchmarks.peers import run_child, write_bank
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS, reference

# name in the table -> (environment, module, method)
PEERS = {
    "BayesFlow CouplingFlow": ("bayesflow", "benchmarks.peer_bayesflow", "default_coupling_flow"),
    "BayesFlow FlowMatching": ("bayesflow", "benchmarks.peer_bayesflow", "default_flow_matching"),
    "sbi neural spline flow": ("sbi", "benchmarks.peer_sbi", "default_spline_flow"),
}


def evaluate_peer(
    task_name: str, network: str, seed: int, *, num_simulations: int, num_jobs: int | None = None
) -> dict[str, Any]:
    """Train once and judge the posterior of every observation.

    :param task_name: name of the task.
    :param network: one of ``PEERS``.
    :param seed: seed of the simulations, the training and the draws.
    :param num_simulations: size of the bank.
    :param num_jobs: processes of the classifier.
    :return: as :func:`benchmarks.accuracy.evaluate`.
    """
    package, module, method = PEERS[network]
    task = TASKS[task_name]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_bank(folder / "bank.npz", task, seed=seed, num_simulations=num_simulations)
        options = {"method": method, "task": task_name, "seed": seed, "parts": ()}
        options |= {"bank": folder / "bank.npz", "draws": folder / "draws.npy"}
        events = run_child(package, module, options)
        draws = np.load(folder / "draws.npy")
    scores = [
        c2st(reference(task, i)[1], drawn, num_jobs=num_jobs or os.cpu_count())
        for i, drawn in enumerate(draws, start=1)
    ]
    return {
        "task": task_name,
        "network": network,
        "online": False,
        "seed": seed,
        "c2st": scores,
        "mean_c2st": sum(scores) / NUM_OBSERVATIONS,
        "fit_seconds": events["fit"]["seconds"],
        "first_draws_seconds": events["draws_1"]["seconds"],
        "second_draws_seconds": events["draws_2"]["seconds"],
        "memory_gib": events[f"draws_{NUM_OBSERVATIONS}"]["memory_gib"],
        "steps": events["fit"]["steps"],
        "num_simulations": num_simulations,
    }
