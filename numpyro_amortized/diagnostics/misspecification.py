# SPDX-License-Identifier: Apache-2.0
"""Whether data are unlike all that was simulated, so that no network can be trusted with them."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import check_positive
from numpyro_amortized.diagnostics.labelled import labelled
from numpyro_amortized.diagnostics.simulated import DrawsApproximator, simulations_of
from numpyro_amortized.diagnostics.two_sample import median_bandwidth, squared_distances
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

    from numpyro_amortized.distributions import AmortizedPosterior

__all__ = ["SummarizingApproximator", "mahalanobis", "misspecification", "summaries", "summary_mmd"]


class SummarizingApproximator(DrawsApproximator, Protocol):
    """An approximator that summarizes data sets."""

    def posterior(self, conditions: Mapping[str, ArrayLike]) -> "AmortizedPosterior":
        """Posterior whose ``context`` is what the network is conditioned on."""


def misspecification(
    rng_key: Array,
    approximator: SummarizingApproximator,
    conditions: Mapping[str, ArrayLike],
    *,
    num_datasets: int = 1000,
    simulations: Mapping[str, ArrayLike] | None = None,
) -> "xarray.Dataset":
    """How far summaries of data are from summaries of simulations.

    :param rng_key: a key.
    :param approximator: a trained approximator.
    :param conditions: values of the observed sites, one data set or a leading axis of them.
    :param num_datasets: number of data sets to simulate.
    :param simulations: held-out simulations to use instead of new ones.
    :return: the results of :func:`mahalanobis`, for each data set, and those of
        :func:`summary_mmd`, for all of them together, named ``mmd`` and ``mmd_p_value``.
    """
    simulate_key, mmd_key = random.split(typed_key(rng_key))
    held_out = simulations_of(simulate_key, approximator, num_datasets, simulations)
    reference = summaries(approximator, held_out.observed)
    observed = np.atleast_2d(summaries(approximator, conditions))
    together = summary_mmd(mmd_key, reference, observed)
    return mahalanobis(reference, observed).assign(
        mmd=together["mmd"], mmd_p_value=together["p_value"]
    )


def summaries(
    approximator: SummarizingApproximator, conditions: Mapping[str, ArrayLike]
) -> np.ndarray:
    """What the network is conditioned on, shape ``(num_conditions, summary_size)``.

    :param approximator: a trained approximator.
    :param conditions: values of the observed sites; without the first axis for one data set.
    """
    return np.asarray(approximator.posterior(conditions).context)


def mahalanobis(reference: ArrayLike, observed: ArrayLike) -> "xarray.Dataset":
    """Mahalanobis distance of each data set's summaries from those of simulations.

    Mean and covariance are those of one half of the reference, and the other half shows which
    distances are usual, so that the p-value is exact whatever the distribution of the summaries.

    :param reference: summaries of simulations, shape ``(num_simulations, size)``.
    :param observed: summaries of data sets, shape ``(num_datasets, size)``.
    :return: ``distance`` and ``p_value`` with the dimension ``dataset``, and ``null``, the
        distances of simulations.
    :raises ValueError: where shapes do not fit, or there are too few simulations.
    """
    known, data = _checked(reference, observed)
    half = len(known) // 2
    if half <= known.shape[1]:
        raise ValueError(
            f"reference: expected more than {2 * (known.shape[1] + 1)} simulations for summaries "
            f"of size {known.shape[1]}, got {len(known)}."
        )
    centre, scale = known[:half].mean(0), _scale(known[:half])
    covariance = np.cov((known[:half] / scale).T, ddof=1)
    variances, directions = np.linalg.eigh(np.atleast_2d(covariance))
    whiten = directions / np.sqrt(np.maximum(variances, 1e-6))  # summaries may be collinear
    distance, null = (
        np.linalg.norm((x - centre) / scale @ whiten, axis=1) for x in (data, known[half:])
    )
    p_value = (1 + (null >= distance[:, None]).sum(1)) / (len(null) + 1)
    dims = {"distance": ["dataset"], "p_value": ["dataset"], "null": ["simulation"]}
    return labelled({"distance": distance, "p_value": p_value, "null": null}, [], dims)


def summary_mmd(
    rng_key: Array, reference: ArrayLike, observed: ArrayLike, *, num_null: int = 500
) -> "xarray.Dataset":
    """Maximum mean discrepancy between summaries of data and of simulations [1].

    The null distribution is that of as many simulated data sets as there are observed ones, each
    time drawn from one half of the reference and compared with the other half.

    :param rng_key: a key, for the null.
    :param reference: summaries of simulations, shape ``(num_simulations, size)``.
    :param observed: summaries of data sets, shape ``(num_datasets, size)``.
    :param num_null: number of draws from the null.
    :return: ``mmd``, ``p_value`` and ``null``.
    :raises ValueError: where shapes do not fit, or there are too few simulations.

    1. Schmitt, Bürkner, Köthe & Radev (2023), *Detecting model misspecification in amortized
       Bayesian inference with neural networks*, GCPR.
    """
    check_positive(num_null=num_null)
    known, data = _checked(reference, observed)
    half = len(known) // 2
    if half < len(data):
        raise ValueError(
            f"reference: expected at least {2 * len(data)} simulations for {len(data)} data sets, "
            f"got {len(known)}."
        )
    scale = _scale(known[:half])
    arrays = [jnp.asarray(x / scale) for x in (known[:half], known[half:], data)]
    value, null = _summary_mmd(typed_key(rng_key), *arrays, num_null)
    p_value = (1 + (null >= value).sum()) / (num_null + 1)
    values = {"mmd": value, "p_value": p_value, "null": null}
    return labelled(values, [], {"null": ["simulation"]})


@partial(jax.jit, static_argnums=4)
def _summary_mmd(
    rng_key: Array, reference: Array, others: Array, data: Array, num_null: int
) -> tuple[Array, Array]:
    squares = squared_distances(reference, reference)
    bandwidth = median_bandwidth(squares)

    def kernel(squares: Array) -> Array:
        return jnp.exp(-squares / (2 * bandwidth**2))

    within = jnp.mean(kernel(squares))

    def statistic(points: Array) -> Array:
        cross = kernel(squared_distances(reference, points))
        own = kernel(squared_distances(points, points))
        return jnp.sqrt(jnp.maximum(within - 2 * jnp.mean(cross) + jnp.mean(own), 0))

    def simulated(rng_key: Array) -> Array:
        return statistic(random.choice(rng_key, others, (len(data),), replace=False))

    return statistic(data), lax.map(simulated, random.split(rng_key, num_null))


def _scale(summaries: np.ndarray) -> np.ndarray:
    """Standard deviations; what does not vary in simulations is measured by its own size."""
    scale = summaries.std(0)
    return np.where(scale > 0, scale, np.maximum(np.abs(summaries).max(0), 1))


def _checked(reference: ArrayLike, observed: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    known, data = np.asarray(reference, float), np.asarray(observed, float)
    if known.ndim != 2 or data.ndim != 2 or known.shape[1] != data.shape[1]:
        raise ValueError(
            "Expected summaries of shapes (num_simulations, size) and (num_datasets, size), got "
            f"{known.shape} and {data.shape}."
        )
    return known, data
