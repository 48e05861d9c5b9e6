# SPDX-License-Identifier: Apache-2.0
"""Scoring rules of probabilities of categories."""

from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.scoring_rules.base import Estimates, Heads, ScoringRule, with_shape

__all__ = ["BrierScore", "CategoricalRule", "CrossEntropy"]


@dataclass(frozen=True)
class CategoricalRule(ScoringRule):
    """A scoring rule whose estimates are the probabilities of each variable's classes.

    :param num_classes: the variables are integers from 0 to one less.
    """

    num_classes: int

    def heads(self, size: int) -> Heads:
        return {"probs": (size, self.num_classes)}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        shaped = with_shape(outputs, (size, self.num_classes))
        return {"probs": jax.nn.softmax(shaped, axis=-1)}


@final
@dataclass(frozen=True)
class CrossEntropy(CategoricalRule):
    """The logarithmic score, summed over the variables.

    :param num_classes: the variables are integers from 0 to one less.
    """

    def score(self, estimates: Estimates, variables: Array) -> Array:
        chosen = _one_hot(variables, self.num_classes) * estimates["probs"]
        smallest = jnp.finfo(chosen.dtype).tiny
        return -jnp.sum(jnp.log(jnp.maximum(chosen.sum(-1), smallest)), axis=-1)


@final
@dataclass(frozen=True)
class BrierScore(CategoricalRule):
    """The squared error of the probabilities, summed over the variables.

    :param num_classes: the variables are integers from 0 to one less.
    """

    def score(self, estimates: Estimates, variables: Array) -> Array:
        error = estimates["probs"] - _one_hot(variables, self.num_classes)
        return jnp.sum(error**2, axis=(-2, -1))


def _one_hot(variables: Array, num_classes: int) -> Array:
    return jax.nn.one_hot(jnp.asarray(variables, int), num_classes)
