# SPDX-License-Identifier: Apache-2.0
"""Scoring rules of means, medians and quantiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortized.scoring_rules.base import Estimates, Heads, ScoringRule

__all__ = ["Mean", "Median", "NormedDifference", "PointRule", "Quantiles"]


class PointRule(ScoringRule):
    """A scoring rule whose estimate is one point."""

    def heads(self, size: int) -> Heads:
        return {"value": (size,)}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        return {"value": outputs}


@final
@dataclass(frozen=True)
class NormedDifference(PointRule):
    """The sum of ``|estimate - variable|^power``; estimates the mean by 2, the median by 1.

    :param power: at least 1, where the loss is convex.
    :raises ValueError: where it is less.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power >= 1:
            raise ValueError(f"power: expected at least 1, got {self.power}.")

    def score(self, estimates: Estimates, variables: Array) -> Array:
        return jnp.sum(jnp.abs(estimates["value"] - variables) ** self.power, axis=-1)


@final
@dataclass(frozen=True)
class Mean(PointRule):
    """The squared error, which estimates the mean."""

    def score(self, estimates: Estimates, variables: Array) -> Array:
        return jnp.sum((estimates["value"] - variables) ** 2, axis=-1)


@final
@dataclass(frozen=True)
class Median(PointRule):
    """The absolute error, which estimates the median."""

    def score(self, estimates: Estimates, variables: Array) -> Array:
        return jnp.sum(jnp.abs(estimates["value"] - variables), axis=-1)


@final
@dataclass(frozen=True)
class Quantiles(ScoringRule):
    """The pinball loss, which estimates quantiles; they are in their order by construction.

    :param levels: increasing, between 0 and 1.
    :raises ValueError: where they are not.

    **Example**

    .. doctest::

        >>> from numpyro_amortized.scoring_rules import Quantiles
        >>> Quantiles([0.1, 0.5, 0.9]).heads(2)
        {'0.1': (2,), '0.5': (2,), '0.9': (2,)}
    """

    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, float)
        inside = levels.ndim == 1 and levels.size and (levels > 0).all() and (levels < 1).all()
        if not inside or (np.diff(levels) <= 0).any():
            raise ValueError(
                f"levels: expected increasing numbers between 0 and 1, got {self.levels}."
            )
        object.__setattr__(self, "levels", tuple(map(float, levels)))

    def heads(self, size: int) -> Heads:
        return {str(level): (size,) for level in self.levels}

    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        middle = len(self.levels) // 2
        outputs = outputs.reshape(*outputs.shape[:-1], len(self.levels), size)
        center = outputs[..., middle : middle + 1, :]
        steps = jax.nn.softplus(outputs)
        above = center + jnp.cumsum(steps[..., middle + 1 :, :], axis=-2)
        below = center - jnp.cumsum(steps[..., :middle, :][..., ::-1, :], axis=-2)
        values = jnp.concatenate([below[..., ::-1, :], center, above], axis=-2)
        return {str(level): values[..., k, :] for k, level in enumerate(self.levels)}

    def score(self, estimates: Estimates, variables: Array) -> Array:
        losses = [_pinball(level, variables - estimates[str(level)]) for level in self.levels]
        return jnp.sum(jnp.stack(losses), axis=(0, -1))


def _pinball(level: float, excess: Array) -> Array:
    return jnp.maximum(level * excess, (level - 1) * excess)
