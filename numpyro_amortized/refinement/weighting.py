# SPDX-License-Identifier: Apache-2.0
"""Importance weights of as many draws as it takes, and whether they may be trusted.

**References**

1. *Pareto smoothed importance sampling*, Vehtari, Simpson, Gelman, Yao and Gabry (2024).
"""

import math
from typing import NamedTuple

import numpy as np
from jax import Array, random

from numpyro_amortized.initializers import host_generator
from numpyro_amortized.pareto import are_even, largest_k
from numpyro_amortized.refinement.proposals import DataSets, Proposals, Proposer

__all__ = ["Weighted", "resampled", "weigh", "weighted_draws"]

_WARY_K = 0.5  # below, the variance of the weights is finite too
_HOPELESS_K = 1.0  # above, not even their mean is
_REPEATED = 0.05
_WARY_DRAWS = 8  # for each draw that is wanted


class Weighted(NamedTuple):
    """Draws of one data set, and what their weights tell."""

    proposals: Proposals
    weights: np.ndarray  # Pareto smoothed, sum to one
    pareto_k: float
    ess: float
    repeated: float  # share of resampled draws that are copies of others
    is_accepted: bool

    @property
    def num_draws(self) -> int:
        """How many there are."""
        return len(self.weights)


def weigh(
    rng_key: Array,
    proposer: Proposer,
    data: DataSets,
    num_samples: int,
    *,
    is_wary: np.ndarray,
    max_draws: int,
) -> list[Weighted]:
    """Weighted draws of each data set, doubled until they are enough or there is no hope.

    :param rng_key: a key.
    :param proposer: makes the draws.
    :param data: the data sets.
    :param num_samples: draws that are to be resampled.
    :param is_wary: whether to ask more of a data set's weights, shape ``(num_datasets,)``.
    :param max_draws: the most draws of one data set.
    """
    pools: list[list[Proposals]] = [[] for _ in is_wary]
    found: dict[int, Weighted] = {}
    pending, blocks, turn = list(range(len(is_wary))), 1, 0
    while pending:
        rows = np.repeat(pending, blocks)
        made = proposer(random.fold_in(rng_key, turn), data, rows)
        for place, row in enumerate(rows):
            pools[row].append(Proposals(*(x[place] for x in made)))
        for row in pending:
            pools[row] = [Proposals(*map(np.concatenate, zip(*pools[row], strict=True)))]
            found[row] = weighted_draws(pools[row][0], num_samples, is_wary=bool(is_wary[row]))
        blocks = 1 if not turn else 2 * blocks
        turn += 1
        pending = [row for row in pending if _pays(found[row], num_samples, max_draws)]
    return [found[row] for row in range(len(is_wary))]


def weighted_draws(proposals: Proposals, num_samples: int, *, is_wary: bool) -> Weighted:
    """Smooth the weights of one data set, and judge them.

    They are accepted where Pareto k-hat is at most ``min(1 - 1 / log10(S), 0.7)`` [1], or they are
    even, and where they are worth as many draws as are wanted.

    :param proposals: of one data set.
    :param num_samples: draws that are wanted.
    :param is_wary: whether k-hat must be at most 0.5, and of eight draws for each that is wanted.
    """
    from arviz_stats.base import array_stats  # takes seconds to import

    log_weights = proposals.log_weights
    num_draws = len(log_weights)
    if np.isfinite(log_weights).sum() < max(25, num_draws**0.5):
        return Weighted(proposals, np.full(num_draws, 1 / num_draws), math.inf, 0.0, 1.0, False)
    plain = np.exp(log_weights - log_weights.max())
    plain /= plain.sum()
    smoothed, pareto_k = array_stats.psislw(-log_weights.astype(float))
    weights = np.exp(smoothed)
    weights /= weights.sum()
    ess = 1 / float(np.sum(weights**2))
    repeated = float(np.maximum(num_samples * weights - 1, 0).sum()) / num_samples
    limit = _WARY_K if is_wary else largest_k(num_draws)
    is_stable = bool(pareto_k <= limit or are_even(plain))
    is_enough = ess >= num_samples and (not is_wary or num_draws >= _WARY_DRAWS * num_samples)
    is_accepted = is_stable and is_enough
    return Weighted(proposals, weights, float(pareto_k), ess, repeated, is_accepted)


def resampled(rng_key: Array, weighted: Weighted, num_samples: int) -> np.ndarray:
    """Indices of draws in random order, each drawn as often as its weight says, up to rounding."""
    generator = host_generator(rng_key)
    points = (np.arange(num_samples) + generator.uniform()) / num_samples
    indices = np.searchsorted(np.cumsum(weighted.weights), points)
    return generator.permutation(np.minimum(indices, weighted.num_draws - 1))


def _pays(weighted: Weighted, num_samples: int, max_draws: int) -> bool:
    """Whether more draws may make enough of them."""
    if 2 * weighted.num_draws > max_draws:
        return False
    if weighted.is_accepted:
        return weighted.repeated > _REPEATED
    share = weighted.ess / weighted.num_draws
    return weighted.pareto_k < _HOPELESS_K and share * max_draws >= num_samples
