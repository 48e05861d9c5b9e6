# SPDX-License-Identifier: Apache-2.0
"""Accuracy of other packages with their defaults, on banks of their own."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.c2st import judged
from benchmarks.peers import run_child, write_bank
from benchmarks.tasks import NUM_OBSERVATIONS, TASKS

# name in the table -> (environment, module, method)
PEERS = {
    "BayesFlow CouplingFlow": ("bayesflow", "benchmarks.peer_bayesflow", "default_coupling_flow"),
    "BayesFlow FlowMatching": ("bayesflow", "benchmarks.peer_bayesflow", "default_flow_matching"),
    "sbi neural spline flow": ("sbi", "benchmarks.peer_sbi", "default_spline_flow"),
}


def evaluate_peer(
    task_name: str, network: str, seed: int, *, num_simulations: int, num_jobs: int
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
    with TemporaryDirectory() as name:
        bank, drawn = Path(name) / "bank.npz", Path(name) / "draws.npy"
        write_bank(bank, TASKS[task_name], seed=seed, num_simulations=num_simulations)
        options = {"method": method, "task": task_name, "seed": seed, "parts": ()}
        options |= {"bank": bank, "draws": drawn}
        events = run_child(package, module, options)
        draws = np.load(drawn)
    return judged(task_name, network, seed, draws, num_jobs=num_jobs) | {
        "online": False,
        "fit_seconds": events["fit"]["seconds"],
        "first_draws_seconds": events["draws_1"]["seconds"],
        "second_draws_seconds": events["draws_2"]["seconds"],
        "memory_gib": events[f"draws_{NUM_OBSERVATIONS}"]["memory_gib"],
        "steps": events["fit"]["steps"],
        "num_simulations": num_simulations,
    }
