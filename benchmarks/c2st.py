# SPDX-License-Identifier: Apache-2.0
"""Classifier two-sample test by the protocol of the simulation-based inference benchmark."""

import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits


def c2st(
    reference: np.ndarray,
    samples: np.ndarray,
    *,
    seed: int = 1,
    num_folds: int = 5,
    num_jobs: int | None = None,
) -> float:
    """Cross-validated accuracy of a network that tells samples from reference draws [1, 2].

    Both are standardized by the mean and standard deviation of the reference.

    :param reference: draws of the reference posterior, shape ``(num, d)``.
    :param samples: draws to be judged, shape ``(num, d)``.
    :param seed: seed of the folds and of the network.
    :param num_folds: number of folds.
    :param num_jobs: folds that run at the same time; the value does not depend on it.
    :return: accuracy: 0.5 where the two cannot be told apart, 1 where they always can.
    :raises ValueError: if the two differ in shape or one is not finite.

    1. Lopez-Paz & Oquab (2017), *Revisiting classifier two-sample tests*, ICLR.
    2. Lueckmann, Boelts, Greenberg, Gonçalves & Macke (2021), *Benchmarking simulation-based
       inference*, AISTATS.
    """
    reference, samples = np.asarray(reference, np.float32), np.asarray(samples, np.float32)
    if reference.ndim != 2 or reference.shape != samples.shape:
        raise ValueError(
            f"c2st: expected two arrays of one shape (num, d), got {reference.shape} and "
            f"{samples.shape}; draw as many samples as the reference has"
        )
    centre, scale = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    values = (np.concatenate([reference, samples]) - centre) / scale
    labels = np.repeat([0.0, 1.0], len(reference))
    units = 10 * reference.shape[1]
    network = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(units, units),
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    folds = KFold(n_splits=num_folds, shuffle=True, random_state=seed)
    options = {"cv": folds, "scoring": "accuracy", "n_jobs": num_jobs, "error_score": "raise"}
    with threadpool_limits(1):  # matrices this small are slower on more threads
        scores = cross_val_score(network, values, labels, **options)
    return float(scores.mean())
