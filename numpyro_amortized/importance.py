# SPDX-License-Identifier: Apache-2.0
"""Importance weights of amortized posteriors, from the model's own density."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import Conditions, check_num_samples
from numpyro_amortized.approximators.density import DensityApproximator, with_density
from numpyro_amortized.approximators.predictive import ModelPredictive
from numpyro_amortized.pareto import are_even, largest_k, smooth_weights
from numpyro_amortized.simulators.base import typed_key

__all__ = ["ImportanceResult", "importance_sample", "model_and_data", "systematic_resample"]


class ImportanceResult(NamedTuple):
    """Weighted draws. Arrays of one data set have no axis ``num_conditions``.

    ``log_weights`` are the exact ones, ``log p(latents, data) - log q(latents | data)``, neither
    normalized nor smoothed: the mean of their exponentials estimates the evidence, without bias.
    ``smoothed_log_weights`` are normalized and Pareto smoothed: means and resamples use them.
    Where k-hat is above a half, the weights' variance is infinite: ``log_evidence_se`` misleads.
    """

    samples: dict[str, Array]  # (num_conditions, num_samples, *shape)
    log_weights: Array  # (num_conditions, num_samples)
    pareto_k: Array  # (num_conditions,)
    ess: Array  # (num_conditions,): effective number of draws, of the smoothed weights
    log_evidence: Array  # (num_conditions,)
    log_evidence_se: Array  # (num_conditions,): its standard error, by the delta method

    @property
    def smoothed_log_weights(self) -> Array:
        """Pareto smoothed log weights, whose exponentials add up to one."""
        return _smoothed(self.log_weights)

    @property
    def is_reliable(self) -> Array:
        """Whether the weights can be trusted, shape ``(num_conditions,)``.

        Pareto k-hat is at most ``min(1 - 1 / log10(num_samples), 0.7)``; or the weights are so
        nearly equal that k-hat does not matter, the effective sample size being 99 % of all and
        none above ten times their mean. Of too few draws nothing can be said.
        """
        is_even = are_even(jax.nn.softmax(self.log_weights)) & (self.pareto_k < jnp.inf)
        return (self.pareto_k <= largest_k(self.log_weights.shape[-1])) | is_even

    def resample(self, rng_key: Array, n: int) -> dict[str, Array]:
        """Draws without weights, in random order; more than ``ess`` of them repeat each other.

        :param rng_key: a key.
        :param n: number of draws for each data set.
        :return: values ``(num_conditions, n, *shape)``.
        """
        n = check_num_samples(n)
        lead = self.log_weights.shape[:-1]
        keys = random.split(typed_key(rng_key), lead)
        return _resample(n, keys, self.samples, self.log_weights)


def importance_sample(
    rng_key: Array,
    approximator: DensityApproximator,
    conditions: Mapping[str, ArrayLike],
    num_samples: int = 2000,
) -> ImportanceResult:
    """Draws of the amortized posterior, weighted by the model's joint density.

    With the weights, means over the draws are those of the exact posterior, as far as the
    amortized one covers it: Pareto k-hat and the effective number of draws tell. All data sets
    are weighted at once, and a second call of the same shape compiles nothing.

    Discrete latents that are not inferred are summed out of the joint density where that can be
    done: where they have few values together, or are independent members of a plate.

    :param rng_key: a key.
    :param approximator: trained.
    :param conditions: values of the observed sites, one data set or a leading axis of them.
    :param num_samples: draws for each data set.
    :return: draws, weights and what they tell.
    :raises TypeError: where the approximator has no density, or its source is no model.
    :raises ValueError: where the model's joint density is not known: continuous latents that are
        not inferred, observed sites without a density, discrete ones that cannot be summed out.
    :raises RuntimeError: before ``fit``.

    **References**

    1. *Pareto smoothed importance sampling*, Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    """
    num_samples = check_num_samples(num_samples)
    approximator = with_density(approximator).for_groups(conditions)
    checked = approximator.check_conditions(conditions)
    predictive, given = model_and_data(approximator, checked)
    joint = predictive.joint
    samples, log_q = approximator.sample_and_log_prob(rng_key, num_samples, checked.values)
    latents = {name: samples[name] for name in predictive.inferred}
    log_weights = joint.of_draws(latents, given) - log_q
    # a draw at which rounding leaves no density has no weight
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    return checked.unbatch(ImportanceResult(samples, log_weights, *_describe(log_weights)))


def model_and_data(
    approximator: DensityApproximator, checked: Conditions
) -> tuple[ModelPredictive, dict[str, Array]]:
    """The model of the data's size, and the data with a leading axis of data sets.

    :raises TypeError: where the approximator's source is no model.
    :raises ValueError: where the approximator is that of a likelihood.
    """
    if approximator.adapter.observations is not None:
        raise ValueError(
            "approximator: expected one of a posterior, got one of a likelihood. Use "
            "`likelihood(latents)` as the distribution of the observed site in a model, and NUTS."
        )
    predictive = approximator.predictive
    if predictive is None:
        raise TypeError(
            "approximator: expected one of a NumPyro model, whose density is known, got one of "
            f"{type(approximator.source).__name__}."
        )
    return predictive.at_common_size(checked.values)


def systematic_resample(rng_key: Array, log_weights: Array, n: int) -> Array:
    """Indices of ``n`` draws in random order, each drawn as often as its weight says.

    :param log_weights: shape ``(num_samples,)``, of any scale.
    """
    offset_key, order_key = random.split(rng_key)
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    points = (jnp.arange(n) + random.uniform(offset_key)) / n
    indices = jnp.searchsorted(cumulative, points * cumulative[-1])
    return random.permutation(order_key, jnp.minimum(indices, log_weights.shape[0] - 1))


@jax.jit
def _smoothed(log_weights: Array) -> Array:
    smooth = jnp.vectorize(lambda x: smooth_weights(x).log_weights, signature="(s)->(s)")
    return smooth(log_weights)


@jax.jit
@jax.vmap
def _describe(log_weights: Array) -> tuple[Array, Array, Array, Array]:
    """Pareto k, effective number of draws, log evidence and its standard error."""
    num_samples = log_weights.shape[0]
    smoothed, pareto_k = smooth_weights(log_weights)
    log_evidence = logsumexp(log_weights) - jnp.log(num_samples)
    ratios = jnp.exp(log_weights - log_evidence)  # of mean one
    error = jnp.std(ratios, ddof=1) / jnp.sqrt(num_samples)
    ess = jnp.exp(-logsumexp(2 * smoothed))
    none = jnp.isneginf(log_evidence)
    return pareto_k, jnp.where(none, 0, ess), log_evidence, jnp.where(none, jnp.inf, error)


@partial(jax.jit, static_argnums=0)
def _resample(
    n: int, keys: Array, samples: dict[str, Array], log_weights: Array
) -> dict[str, Array]:
    def one(rng_key: Array, samples: dict[str, Array], log_weights: Array) -> dict[str, Array]:
        rows = systematic_resample(rng_key, smooth_weights(log_weights).log_weights, n)
        return {name: value[rows] for name, value in samples.items()}

    return (jax.vmap(one) if log_weights.ndim > 1 else one)(keys, samples, log_weights)
