# SPDX-License-Identifier: Apache-2.0
"""Weights of the members of a mixture, and draws in proportion to them."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike

__all__ = ["checked_weights", "draws_of_each", "places_of_draws", "stacking"]

_TOLERANCE = 1e-5  # of a sum of weights in float32
_ITERATIONS = 500


def checked_weights(
    weights: Mapping[str, float] | ArrayLike | None, names: Sequence[str]
) -> np.ndarray:
    """
    :param weights: by name or in the members' order; ``None`` for equal ones.
    :param names: of the members.
    :return: shape ``(num_members,)``.
    :raises ValueError: where they are not one probability for each member.
    """
    if weights is None:
        return np.full(len(names), 1 / len(names))
    values = _in_order(weights, names)
    fits = values.shape == (len(names),) and (values >= 0).all()
    if not fits or not abs(values.sum() - 1) < _TOLERANCE:
        raise ValueError(
            f"member_weights: expected probabilities of the members {list(names)} with a sum of 1, "
            f"got {weights}."
        )
    return values / values.sum()


def _in_order(weights: Mapping[str, float] | ArrayLike, names: Sequence[str]) -> np.ndarray:
    if not isinstance(weights, Mapping):
        return np.asarray(weights, float)
    return np.array([weights[n] for n in names] if set(weights) == set(names) else [], float)


def draws_of_each(weights: np.ndarray, num_samples: int) -> np.ndarray:
    """How many draws of each member may be needed: whole shares, and one more for a remainder."""
    return np.ceil(weights * num_samples - _TOLERANCE).astype(int)


def places_of_draws(rng_key: Array, weights: np.ndarray, num_samples: int) -> Array:
    """Places of draws of the mixture in the draws of its members, one after another.

    Each member gives its whole share, and the remainders are drawn systematically: every draw is
    one of the mixture, and shares vary as little as they can.

    :param rng_key: a key.
    :param weights: shape ``(num_members,)``.
    :param num_samples: number of draws of the mixture.
    :return: shape ``(num_samples,)``, in random order.
    """
    offset_key, order_key = random.split(rng_key)
    shares, available = weights * num_samples, draws_of_each(weights, num_samples)
    whole = np.floor(shares + _TOLERANCE).astype(int)
    starts = np.cumsum(available) - available
    places = jnp.asarray(
        np.concatenate([s + np.arange(n) for s, n in zip(starts, whole, strict=True)])
    )
    partial = np.flatnonzero(available > whole)
    if rest := num_samples - len(places):
        ends = np.cumsum((shares - whole)[partial])
        points = (jnp.arange(rest) + random.uniform(offset_key)) * (ends[-1] / rest)
        chosen = jnp.minimum(jnp.searchsorted(ends, points), len(partial) - 1)
        places = jnp.concatenate([places, jnp.asarray((starts + whole)[partial])[chosen]])
    return random.permutation(order_key, places)


@jax.jit
def stacking(log_densities: Array) -> Array:
    """Weights with the greatest mean log density of the mixture [1], by expectation maximization.

    The objective is concave in the weights: there is one maximum.

    :param log_densities: of each member at each datum, shape ``(num_members, num_data)``.
    :return: shape ``(num_members,)``.

    **References**

    1. Yao, Y., Vehtari, A., Simpson, D. and Gelman, A. (2018). Using stacking to average Bayesian
       predictive distributions. *Bayesian Analysis*, 13(3), 917-1007.
    """
    num_members, num_data = log_densities.shape

    def step(log_weights: Array, _: None) -> tuple[Array, None]:
        shares = jax.nn.log_softmax(log_weights[:, None] + log_densities, axis=0)
        return jax.nn.logsumexp(shares, axis=1) - np.log(num_data), None

    start = jnp.full(num_members, -np.log(num_members), log_densities.dtype)
    return jnp.exp(lax.scan(step, start, length=_ITERATIONS)[0])
