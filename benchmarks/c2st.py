# SPDX-License-Identifier: Apache-2.0
"""Classifier two-sample test by the protocol of the simulation-based inference benchmark."""

from collections.abc import Sequence

import numpy as np

from benchmarks.tasks import TASKS, reference
from numpyro_amortized.diagnostics import c2st

__all__ = ["c2st", "scores"]


def scores(task_name: str, draws: Sequence[np.ndarray], *, num_jobs: int | None) -> list[float]:
    """C2ST of each observation, from the first.

    :param task_name: name of the task.
    :param draws: of each observation, shape ``(num_samples, d)``.
    :param num_jobs: processes of the classifier.
    """
    references = (reference(TASKS[task_name], i + 1)[1] for i in range(len(draws)))
    pairs = zip(references, draws, strict=True)
    return [c2st(true, drawn, num_jobs=num_jobs) for true, drawn in pairs]
