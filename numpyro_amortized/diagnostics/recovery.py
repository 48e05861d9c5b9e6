# SPDX-License-Identifier: Apache-2.0
"""How well latents are recovered from data simulated at them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from numpyro_amortized.diagnostics.labelled import Dims, labelled
from numpyro_amortized.diagnostics.simulated import check_draws

if TYPE_CHECKING:
    import xarray

__all__ = ["contraction", "posterior_mean", "recovery"]


def posterior_mean(draws: np.ndarray) -> np.ndarray:
    """Of draws ``(num_datasets, num_samples, *shape)``."""
    return draws.mean(axis=1)


def recovery(
    truth: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    *,
    estimate: Callable[[np.ndarray], np.ndarray] = posterior_mean,
    dims: Dims | None = None,
) -> "xarray.Dataset":
    """Agreement of point estimates with the true latents, over data sets.

    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: posterior draws, values ``(num_datasets, num_samples, *shape)``.
    :param estimate: draws to estimates ``(num_datasets, *shape)``, by default their mean.
    :param dims: names of each site's own dimensions.
    :return: along the dimension ``metric``: ``rmse``, the root of the mean squared error;
        ``nrmse``, divided by the standard deviation of the true latents, 1 where the data tell
        nothing and the estimate is the prior mean; and the ``correlation``. NaN where a latent does
        not vary.
    """
    known, drawn = check_draws(truth, draws)
    metrics = {
        name: _recovered(value.astype(float), estimate(drawn[name].astype(float)))
        for name, value in known.items()
    }
    return labelled(metrics, ["metric"], dims, {"metric": ["rmse", "nrmse", "correlation"]})


def contraction(
    truth: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    *,
    prior_variance: Mapping[str, ArrayLike] | None = None,
    dims: Dims | None = None,
) -> "xarray.Dataset":
    """Posterior contraction and z-score of each data set [1].

    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: posterior draws, values ``(num_datasets, num_samples, *shape)``.
    :param prior_variance: of each latent, ``shape``; by default that of the true latents.
    :param dims: names of each site's own dimensions.
    :return: along the dimensions ``metric`` and ``dataset``: the ``contraction``, one minus the
        ratio of posterior to prior variance, 1 where the data tell everything; and the ``z_score``,
        the posterior mean minus the true latent in posterior standard deviations.

    1. Schad, Betancourt & Vasishth (2021), *Toward a principled Bayesian workflow in cognitive
       science*, Psychological Methods 26.
    """
    known, drawn = check_draws(truth, draws)
    metrics = {}
    for name, value in known.items():
        samples = drawn[name].astype(float)
        variance = samples.var(axis=1, ddof=1)
        prior = value.astype(float).var(axis=0, ddof=1)
        if prior_variance is not None:
            prior = np.asarray(prior_variance[name], float)
        with np.errstate(divide="ignore", invalid="ignore"):
            z_score = (samples.mean(axis=1) - value) / np.sqrt(variance)
            metrics[name] = np.stack([1 - variance / prior, z_score])
    return labelled(metrics, ["metric", "dataset"], dims, {"metric": ["contraction", "z_score"]})


def _recovered(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """The metrics of one site, shape ``(3, *shape)``."""
    if estimates.shape != truth.shape:
        raise ValueError(f"estimate: expected estimates {truth.shape}, got {estimates.shape}.")
    rmse = np.sqrt(np.mean((estimates - truth) ** 2, axis=0))
    deviations = truth - truth.mean(0), estimates - estimates.mean(0)
    norms = [np.sqrt(np.mean(x**2, axis=0)) for x in deviations]
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.mean(deviations[0] * deviations[1], axis=0) / (norms[0] * norms[1])
        return np.stack([rmse, rmse / norms[0], correlation])
