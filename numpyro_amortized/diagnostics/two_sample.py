# SPDX-License-Identifier: Apache-2.0
"""Whether two sets of draws come from one distribution."""

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import check_positive
from numpyro_amortized.diagnostics.labelled import labelled
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

__all__ = ["c2st", "mmd"]


def c2st(
    reference: ArrayLike,
    samples: ArrayLike,
    *,
    seed: int = 1,
    num_folds: int = 5,
    num_jobs: int | None = None,
) -> float:
    """Cross-validated accuracy of a network that tells samples from reference draws [1, 2].

    Both are standardized by the mean and standard deviation of the reference. Needs scikit-learn,
    the extra ``c2st``.

    :param reference: draws of the reference posterior, shape ``(num, d)``.
    :param samples: draws to be judged, shape ``(num, d)``.
    :param seed: seed of the folds and of the network.
    :param num_folds: number of folds.
    :param num_jobs: folds that run at the same time; the value does not depend on it.
    :return: accuracy: 0.5 where the two cannot be told apart, 1 where they always can.
    :raises ValueError: if the two differ in shape or one is not finite.
    :raises ImportError: without scikit-learn.

    1. Lopez-Paz & Oquab (2017), *Revisiting classifier two-sample tests*, ICLR.
    2. Lueckmann, Boelts, Greenberg, Gonçalves & Macke (2021), *Benchmarking simulation-based
       inference*, AISTATS.
    """
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError(
            "c2st needs scikit-learn: pip install 'numpyro_amortized[c2st]'."
        ) from error
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


def mmd(
    rng_key: Array,
    reference: ArrayLike,
    samples: ArrayLike,
    *,
    bandwidth: float | None = None,
    num_permutations: int = 500,
) -> "xarray.Dataset":
    """Maximum mean discrepancy of two sets of draws, with a permutation test [1].

    :param rng_key: a key, for the permutations.
    :param reference: draws of one distribution, shape ``(num_reference, d)``.
    :param samples: draws of the other, shape ``(num_samples, d)``.
    :param bandwidth: of the Gaussian kernel, by default the median distance between all draws.
    :param num_permutations: of the labels; the least p-value is one by this number and one.
    :return: ``mmd``, the root of the biased statistic with the Gaussian kernel; ``p_value`` of the
        hypothesis that both have one distribution; ``null``, the statistic of each permutation.
    :raises ValueError: where shapes do not fit.

    1. Gretton, Borgwardt, Rasch, Schölkopf & Smola (2012), *A kernel two-sample test*, Journal of
       Machine Learning Research 13.
    """
    check_positive(num_permutations=num_permutations)
    first, second = (jnp.asarray(x, jnp.result_type(float)) for x in (reference, samples))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            "mmd: expected two arrays of shapes (num, d) with the same d, got "
            f"{first.shape} and {second.shape}."
        )
    value, null = _permuted(typed_key(rng_key), first, second, bandwidth, num_permutations)
    p_value = (1 + (null >= value).sum()) / (num_permutations + 1)
    arrays = {"mmd": value, "p_value": p_value, "null": null}
    return labelled(arrays, [], {"null": ["permutation"]})


@partial(jax.jit, static_argnums=4)
def _permuted(
    rng_key: Array, first: Array, second: Array, bandwidth: float | None, num_permutations: int
) -> tuple[Array, Array]:
    pooled = jnp.concatenate([first, second])
    squares = squared_distances(pooled, pooled)
    width = median_bandwidth(squares) if bandwidth is None else jnp.asarray(bandwidth)
    kernel = jnp.exp(-squares / (2 * width**2))
    sizes = (len(first), len(second))
    weights = jnp.concatenate([jnp.full(sizes[0], 1 / sizes[0]), jnp.full(sizes[1], -1 / sizes[1])])

    def statistic(weights: Array) -> Array:
        product = jnp.dot(kernel, weights, precision="highest")
        return jnp.sqrt(jnp.maximum(jnp.dot(weights, product, precision="highest"), 0))

    def permuted(rng_key: Array) -> Array:
        return statistic(random.permutation(rng_key, weights))

    return statistic(weights), lax.map(permuted, random.split(rng_key, num_permutations))


def squared_distances(first: Array, second: Array) -> Array:
    """Between all pairs of rows, shape ``(num_first, num_second)``."""
    product = jnp.dot(first, second.T, precision="highest")
    squares = jnp.sum(first**2, 1)[:, None] + jnp.sum(second**2, 1) - 2 * product
    return jnp.maximum(squares, 0)


def median_bandwidth(squares: Array) -> Array:
    """The median distance between different rows, from the squared distances of all pairs."""
    pairs = squares[jnp.triu_indices(len(squares), 1)]
    median = jnp.sqrt(jnp.median(pairs))
    return jnp.where(median > 0, median, 1)
