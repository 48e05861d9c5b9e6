# SPDX-License-Identifier: Apache-2.0
"""Whether the prior finds posterior mass where the network does not draw.

Importance weights tell nothing of a mode that is never drawn. Draws of the prior, whose weights are
the likelihood, know it too: the share of the evidence that they find at points whose weights under
the network are above all that were drawn is what the network misses. It is a check that can
only reject: where data say much, few draws of the prior are near the posterior.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from scipy.special import logsumexp

from numpyro_amortized.approximators.conditions import map_in_chunks
from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.refinement.proposals import ROWS, DataSets, Proposer
from numpyro_amortized.refinement.weighting import Weighted

__all__ = ["missed_mass"]

_FACTOR = 2.0  # by which a weight is above all that were drawn


def missed_mass(
    proposer: Proposer, data: DataSets, dispersed: np.ndarray, weighted: Sequence[Weighted]
) -> np.ndarray:
    """Share of the posterior of each data set that its draws miss, as far as the prior tells.

    :param proposer: whose networks they are.
    :param data: the data sets.
    :param dispersed: draws of the prior in the networks' space, ``(num, size)``.
    :param weighted: draws of each data set.
    :return: shape ``(num_datasets,)``; zeros where the prior has no density of its own.
    """
    if not proposer.density.predictive.prior_sites:
        return np.zeros(len(weighted))
    program = proposer.density.program(_at_prior, static=(0,))
    log_ratios, log_likelihood = jax.device_get(program(*proposer.networks, dispersed, data))
    log_weights = [own.proposals.log_weights for own in weighted]
    largest = np.array([x.max() for x in log_weights])
    log_evidence = np.array([logsumexp(x) - np.log(len(x)) for x in log_weights])
    with np.errstate(invalid="ignore"):
        share = np.exp(np.minimum(log_likelihood - log_evidence[:, None], 50))
        is_missed = log_ratios > largest[:, None] + np.log(_FACTOR)
    missed = np.where(is_missed & ~np.isnan(share), share, 0)
    missed = (missed.sum(1) - missed.max(1)) / missed.shape[1]  # one draw alone may be chance
    return missed / (1 + missed)  # the evidence of the weights is that of the rest


def _at_prior(
    density: VectorDensity,
    graphdef: nnx.GraphDef,
    state: nnx.State,
    vectors: Array,
    data: DataSets,
) -> tuple[Array, Array]:
    """Log weights under the network and log likelihoods, ``(num_datasets, num)``."""
    network = density.approximator.density(nnx.merge(graphdef, state))
    context = density.approximator.encode(graphdef, state, data.observed)

    def one(context: Array, data: DataSets) -> tuple[Array, Array]:
        log_p = jax.vmap(lambda z: density(z, *data))(vectors)
        log_likelihood = jax.vmap(lambda z: density.log_likelihood(z, *data))(vectors)
        return log_p - network.log_prob(vectors, context[None]), log_likelihood

    chunk = max(1, ROWS // len(vectors))
    log_ratios, log_likelihood = map_in_chunks(one, (context, data), chunk)
    return jnp.where(jnp.isnan(log_ratios), -jnp.inf, log_ratios), log_likelihood
