# SPDX-License-Identifier: Apache-2.0
"""Classifier two-sample test by the protocol of the simulation-based inference benchmark."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib.externals.loky import get_reusable_executor

from benchmarks.tasks import TASKS, reference
from numpyro_amortized.diagnostics import c2st

__all__ = ["c2st", "judged", "scores"]


def scores(task_name: str, draws: Sequence[np.ndarray], *, num_jobs: int | None) -> list[float]:
    """C2ST of each observation, from the first.

    :param task_name: name of the task.
    :param draws: of each observation, shape ``(num_samples, d)``.
    :param num_jobs: processes of the classifier.
    """
    references = (reference(TASKS[task_name], i + 1)[1] for i in range(len(draws)))
    pairs = zip(references, draws, strict=True)
    found = [c2st(true, drawn, num_jobs=num_jobs) for true, drawn in pairs]
    # a process that another one has made waits at its end for idle workers, 300 s
    get_reusable_executor().shutdown()
    return found


def judged(
    task_name: str, network: str, seed: int, draws: Sequence[np.ndarray], *, num_jobs: int
) -> dict[str, Any]:
    """:return: what a row about accuracy begins with: what was trained, and its C2ST."""
    found = scores(task_name, draws, num_jobs=num_jobs)
    trained = {"task": task_name, "network": network, "seed": seed}
    return trained | {"c2st": found, "mean_c2st": statistics.mean(found)}
