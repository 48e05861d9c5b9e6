# SPDX-License-Identifier: Apache-2.0
"""Scoring rules of distributions that are represented by points of equal weight."""

from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
from jax import Array

from numpyro_amortized.scoring_rules.base import Estimates, Heads, ScoringRule, with_shape

__all__ = ["CRPS", "EnergyScore", "SampleRule"]


@dataclass(frozen=True)
class SampleRule(ScoringRule):
    """A scoring rule whose estimates are points of equal weight.

    :param num_points: of the estimate.
    """

    num_points: int = 20

    def heads(self, size: int) -> Heads:
        return {"points": (self.num_points, size)}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        return {"points": with_shape(outputs, (self.num_points, size))}


@final
@dataclass(frozen=True)
class EnergyScore(SampleRule):
    """``E|X - y| - E|X - X'| / 2``, for X and X' uniform over the points of the estimate.

    Eq. 22 of Gneiting and Raftery (2007) with beta = 1, with the sign of a loss; strictly proper.

    :param num_points: of the estimate.
    """

    def score(self, estimates: Estimates, variables: Array) -> Array:
        points = estimates["points"]
        to_truth = _norm(points - variables[..., None, :])
        between = _norm(points[..., :, None, :] - points[..., None, :, :])
        return to_truth.mean(-1) - between.mean((-2, -1)) / 2


@final
@dataclass(frozen=True)
class CRPS(SampleRule):
    """The continuous ranked probability score, summed over the variables.

    It is the energy score of each variable alone, eq. 21 of Gneiting and Raftery (2007), and so
    estimates the marginal distributions. The best points are the quantiles of levels
    ``(k - 1/2) / num_points``.

    :param num_points: of the estimate of each variable.
    """

    def score(self, estimates: Estimates, variables: Array) -> Array:
        points = estimates["points"]
        to_truth = jnp.abs(points - variables[..., None, :]).mean(-2)
        between = jnp.abs(points[..., :, None, :] - points[..., None, :, :]).mean((-3, -2))
        return jnp.sum(to_truth - between / 2, axis=-1)


def _norm(x: Array) -> Array:
    """Euclidean norm of the last axis, with the gradient zero at zero."""
    square = jnp.sum(x**2, axis=-1)
    is_zero = square == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))
