# SPDX-License-Identifier: Apache-2.0
"""Whether many short chains have forgotten where they started, and what their draws are worth.

**References**

1. *Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short
   chains*, Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024).
"""

import numpy as np
from numpyro.diagnostics import effective_sample_size

__all__ = ["least_ess", "nested_rhat"]


def nested_rhat(draws: np.ndarray, num_superchains: int) -> float:
    """The largest nested R-hat of all variables, eqs. 4 to 8 of [1].

    :param draws: shape ``(num_draws, num_chains, size)``; chains that started at the same point
        stand side by side.
    :param num_superchains: number of starting points.
    """
    num_draws, num_chains, size = draws.shape
    nested = draws.reshape(num_draws, num_superchains, num_chains // num_superchains, size)
    means = nested.mean(0)
    between = means.mean(1).var(0, ddof=1)
    within = (means.var(1, ddof=1) + nested.var(0, ddof=1).mean(1)).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = np.sqrt(1 + between / within)
    return float(np.max(np.where(np.isnan(rhat), np.inf, rhat)))


def least_ess(draws: np.ndarray) -> float:
    """The least effective sample size of all variables.

    :param draws: shape ``(num_draws, num_chains, size)``.
    """
    return float(np.min(effective_sample_size(np.moveaxis(draws, 1, 0))))
