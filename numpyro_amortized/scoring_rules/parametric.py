# SPDX-License-Identifier: Apache-2.0
"""Logarithmic scores of parametric distributions."""

from dataclasses import dataclass
from math import prod
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from numpyro_amortized.scoring_rules.base import Estimates, Heads, ParametricRule, with_shape

__all__ = ["GaussianMixture", "MultivariateNormal"]


@final
@dataclass(frozen=True)
class MultivariateNormal(ParametricRule):
    """The logarithmic score of a normal distribution with full covariance."""

    def heads(self, size: int) -> Heads:
        return {"mean": (size,), "scale_tril": (size, size)}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        mean, scale = jnp.split(outputs, [size], axis=-1)
        return {"mean": mean, "scale_tril": _triangular(with_shape(scale, (size, size)))}

    def log_prob(self, estimates: Estimates, variables: Array) -> Array:
        return _normal(estimates).log_prob(variables)

    def sample(
        self, rng_key: Array, estimates: Estimates, sample_shape: tuple[int, ...] = ()
    ) -> Array:
        return _normal(estimates).sample(rng_key, sample_shape)


@final
@dataclass(frozen=True)
class GaussianMixture(ParametricRule):
    """The logarithmic score of a mixture of normal distributions with full covariances.

    :param num_components: of the mixture.
    """

    num_components: int = 4

    def heads(self, size: int) -> Heads:
        k = self.num_components
        return {"log_weights": (k,), "mean": (k, size), "scale_tril": (k, size, size)}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        shapes = self.heads(size)
        ends = np.cumsum([prod(shape) for shape in shapes.values()])[:-1]
        parts = jnp.split(outputs, ends.tolist(), axis=-1)
        values = {n: with_shape(x, shapes[n]) for n, x in zip(shapes, parts, strict=True)}
        return {
            # components that start at different places learn different things
            "mean": values["mean"] + jnp.linspace(-1, 1, self.num_components)[:, None],
            "log_weights": jax.nn.log_softmax(values["log_weights"], axis=-1),
            "scale_tril": _triangular(values["scale_tril"]),
        }

    def log_prob(self, estimates: Estimates, variables: Array) -> Array:
        return _mixture(estimates).log_prob(variables)

    def sample(
        self, rng_key: Array, estimates: Estimates, sample_shape: tuple[int, ...] = ()
    ) -> Array:
        return _mixture(estimates).sample(rng_key, sample_shape)


def _triangular(matrix: Array) -> Array:
    """Lower triangular, with a positive diagonal; the identity from zeros."""
    size = matrix.shape[-1]
    shift = jnp.log(jnp.expm1(1.0))
    diagonal = jax.nn.softplus(jnp.diagonal(matrix, axis1=-2, axis2=-1) + shift) + 1e-6
    return jnp.tril(matrix, -1) + diagonal[..., None] * jnp.eye(size)


def _normal(estimates: Estimates) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(estimates["mean"], scale_tril=estimates["scale_tril"])


def _mixture(estimates: Estimates) -> dist.MixtureSameFamily:
    weights = dist.Categorical(logits=estimates["log_weights"])
    return dist.MixtureSameFamily(weights, _normal(estimates))
