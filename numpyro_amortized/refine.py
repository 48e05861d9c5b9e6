# SPDX-License-Identifier: Apache-2.0
"""From the amortized posterior of each data set to the exact one."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import check_positive
from numpyro_amortized.approximators.density import DensityApproximator, with_density
from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.datasets import Batch
from numpyro_amortized.importance import model_and_data
from numpyro_amortized.inference_data import Draws, check_chains, describe
from numpyro_amortized.refinement.chains import Chained, run_chains
from numpyro_amortized.refinement.missed import missed_mass
from numpyro_amortized.refinement.proposals import DataSets, Proposer
from numpyro_amortized.refinement.unusual import compare_with_prior
from numpyro_amortized.refinement.weighting import Weighted, resampled, weigh
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

__all__ = ["refine"]

_UNUSUAL = 0.01  # p-value below which the networks are not trusted with the data
_MISSED = 0.01  # share of the posterior that the networks may not draw
_MOST_PROPOSALS = 32  # for each draw that is wanted


class _Refined(NamedTuple):
    """Draws of one data set in the networks' space, and how they came about."""

    vectors: np.ndarray  # (num_samples, size)
    log_density: np.ndarray  # (num_samples,)
    stats: dict[str, float | int | str]


def refine(
    rng_key: Array,
    approximator: DensityApproximator,
    conditions: Mapping[str, ArrayLike],
    *,
    num_samples: int = 2000,
    max_proposals: int | None = None,
    max_rounds: int = 20,
) -> "xarray.DataTree":
    """Draws of the exact posterior, by as little work as each data set needs.

    For each data set, in this order:

    1. The encoded data are compared with those of 1,000 prior-predictive simulations. Where they
       are unusual, nothing is refused, but the next steps ask for more.
    2. Draws of the amortized posterior are weighted by the model's joint density, and resampled
       where the weights can be trusted: Pareto k-hat is at most ``min(1 - 1 / log10(S), 0.7)``
       (0.5 for unusual data) [1], or the weights are nearly all equal, and the effective
       sample size reaches ``num_samples``. The number S of draws is doubled until then. Draws of
       the prior check that no more than 1 % of the posterior is missed.
    3. Otherwise 128 Markov chains start from such draws and from points all over the prior. They
       move by NUTS, and jump to draws of the amortized posterior by independence-Metropolis
       moves, so that modes get their weights. They go on until nested R-hat is at most 1.01 [2]
       and the effective sample size reaches ``num_samples``.

    Where that fails too, a warning names the data sets, whose draws are the last of the chains.

    :param rng_key: a key.
    :param approximator: trained, of a NumPyro model whose joint density is known.
    :param conditions: values of the observed sites, one data set or a leading axis of them.
    :param num_samples: draws for each data set, a multiple of four.
    :param max_proposals: the most draws of the amortized posterior that are weighted for a data
        set, by default 32 for each draw.
    :param max_rounds: the most rounds of 50 steps of the chains after warm-up.
    :return: the groups of :meth:`DensityApproximator.to_inference_data`. In ``sample_stats``,
        ``lp`` is the log joint density of each draw in the networks' space, and for each
        data set: ``step``, which is ``"resampled"``, ``"mcmc"`` or ``"unresolved"``;
        ``pareto_k`` and ``importance_ess`` of the weights; ``ess`` behind the draws;
        ``ood_distance`` and ``ood_p_value`` of the data; ``missed_mass``, the share of the
        posterior that draws of the prior find and the networks do not; ``nested_rhat``,
        ``num_divergences`` and ``num_jumps`` of the chains after warm-up, NaN and 0 without;
        ``num_log_densities``, the evaluations.
    :raises TypeError: where the approximator has no density, or its source is no model.
    :raises ValueError: where the model's joint density is not known, with the site and the reason,
        or an argument does not fit.
    :raises RuntimeError: before ``fit``.

    **References**

    1. *Pareto smoothed importance sampling*, Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    2. *Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short
       chains*, Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024).
    """
    num_samples = check_chains(num_samples)
    max_proposals = _MOST_PROPOSALS * num_samples if max_proposals is None else max_proposals
    check_positive(max_proposals=max_proposals, max_rounds=max_rounds)
    approximator = with_density(approximator).for_groups(conditions)
    checked = approximator.check_conditions(conditions)
    predictive, given = model_and_data(approximator, checked)
    density = approximator.vector_density(predictive)
    data, count = DataSets(checked.values, given), checked.num_datasets
    proposer = Proposer(density, num_rows=count, num_samples=2 * num_samples)
    compare_key, weigh_key, end_key, describe_key = random.split(typed_key(rng_key), 4)
    unusual = compare_with_prior(compare_key, approximator, checked.values)
    is_wary = unusual.p_value <= _UNUSUAL
    weighted = weigh(
        weigh_key, proposer, data, num_samples, is_wary=is_wary, max_draws=max_proposals
    )
    chains = partial(
        run_chains,
        proposer=proposer,
        data=data,
        dispersed=unusual.dispersed,
        num_samples=num_samples,
        max_rounds=max_rounds,
    )
    missed = missed_mass(proposer, data, unusual.dispersed, weighted)
    refined = [
        _from_weights(key, own, num_samples)
        if own.is_accepted and missed[i] <= _MISSED
        else _from_chains(own, chains(key, index=i, weighted=own, is_wary=bool(is_wary[i])))
        for i, (key, own) in enumerate(zip(random.split(end_key, count), weighted, strict=True))
    ]
    _warn_of([r.stats for r in refined], is_batch=checked.is_batch)
    vectors = jnp.asarray(np.stack([r.vectors for r in refined]))
    sites = density.program(_sites)(vectors, checked.values)
    of_datasets = {name: np.array([r.stats[name] for r in refined]) for name in refined[0].stats}
    of_datasets |= {"ood_distance": unusual.distance, "ood_p_value": unusual.p_value}
    of_datasets["missed_mass"] = missed
    stats = {"lp": jnp.asarray(np.stack([r.log_density for r in refined]))}
    return describe(describe_key, approximator, checked, Draws(sites, stats, of_datasets))


def _from_weights(rng_key: Array, weighted: Weighted, num_samples: int) -> _Refined:
    rows = resampled(rng_key, weighted, num_samples)
    proposals = weighted.proposals
    return _Refined(proposals.vectors[rows], proposals.log_p[rows], _stats(weighted))


def _from_chains(weighted: Weighted, chained: Chained) -> _Refined:
    stats = _stats(weighted) | {
        "step": "mcmc" if chained.has_converged else "unresolved",
        "ess": chained.ess,
        "nested_rhat": chained.nested_rhat,
        "num_divergences": chained.num_divergences,
        "num_jumps": chained.num_jumps,
        "num_log_densities": weighted.num_draws + chained.num_densities,
    }
    return _Refined(chained.vectors, chained.log_density, stats)


def _stats(weighted: Weighted) -> dict[str, float | int | str]:
    """What there is to tell of a data set that needs no chains."""
    return {
        "step": "resampled",
        "pareto_k": weighted.pareto_k,
        "importance_ess": weighted.ess,
        "ess": weighted.ess,
        "nested_rhat": np.nan,
        "num_divergences": 0,
        "num_jumps": 0,
        "num_log_densities": weighted.num_draws,
    }


def _sites(density: VectorDensity, vectors: Array, observed: Batch) -> Batch:
    return density.approximator.sites_at_vectors(vectors, observed)


def _warn_of(stats: list[dict[str, float | int | str]], *, is_batch: bool) -> None:
    """Name the data sets whose draws are not of the exact posterior."""
    failed = [i for i, own in enumerate(stats) if own["step"] == "unresolved"]
    if not failed:
        return
    which = f"of data sets {failed}" if is_batch else "of the data set"
    rhat, ess = (max(stats[i]["nested_rhat"] for i in failed), min(stats[i]["ess"] for i in failed))
    warnings.warn(
        f"refine: the chains {which} did not agree (nested R-hat up to {rhat:.2f}, effective "
        f"sample size down to {ess:.0f}): their draws are not those of the exact posterior. Let "
        "the chains go on with a greater `max_rounds`, train the approximator longer, or write the "
        "model in another parametrization.",
        stacklevel=3,
    )
