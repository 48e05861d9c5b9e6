# SPDX-License-Identifier: Apache-2.0
"""Derive the adapter for a posterior from a traced model."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Draws, Transform
from numpyro_amortized.adapters.factorized import data_steps, latent_steps
from numpyro_amortized.adapters.grouping import Said, find_groups, said
from numpyro_amortized.adapters.groups import OneVector
from numpyro_amortized.adapters.hierarchy import Hierarchy, Refusal, find_hierarchy
from numpyro_amortized.adapters.latents import UnconstrainLatents, unconstrain_latents
from numpyro_amortized.adapters.observations import (
    CollectConditions,
    DropSites,
    MaskBeyondSize,
    StandardizeObserved,
    fit_standardization,
)
from numpyro_amortized.adapters.summarized import CollectSummaries, Summarized
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.simulators.varying_size import VaryingSize

NUM_PILOTS = 2000
_FEW = 16  # latent numbers, which are best inferred as one vector


def posterior_adapter(
    simulator: ModelSimulator,
    *,
    sites: Sequence[str] | None,
    sets: Mapping[str, int | None] | None,
    series: Mapping[str, int | None] | None,
    images: Mapping[str, Sequence[int] | None] | None,
    hierarchical: bool | None,
    prior_to_normal: bool,
    pilot: Draws | None,
) -> Adapter:
    """See :meth:`Adapter.for_posterior`."""
    draws = pilot_draws(simulator, pilot)
    overrides = said(simulator, sets, series, images)
    why: list[Transform] = []
    if hierarchical is not False:
        steps = _by_groups(
            simulator, sites, draws, overrides, prior_to_normal, insist=bool(hierarchical)
        )
        if isinstance(steps, list):
            return Adapter(steps, ranks=_ranks(simulator))
        if hierarchical:
            reason = steps.reason if steps else "no latent is in a plate of the data"
            raise ValueError(f"hierarchical: the posterior does not factorize: {reason}.")
        why = [OneVector(steps.reason)] if steps else []
    names = inferred_sites(simulator, sites)
    latents = unconstrain_latents(simulator, names, draws, prior_to_normal=prior_to_normal)
    groups, reasons = find_groups(simulator, names, draws, overrides)
    varying = simulator.varying_size
    given = [site for site in simulator.sites.values() if site.is_given]
    observed = [site for site in given if varying is None or site.name != varying.name]
    transforms: list[Transform] = [
        DropSites(_left_out(simulator, names)),
        latents,
        *why,
        _standardize(observed, groups, draws),
        *([] if varying is None else [MaskBeyondSize(varying)]),
        *([CollectSummaries(groups, varying)] if groups else []),
        *([] if varying is None else _size_condition(simulator, varying, groups, reasons, draws)),
        CollectConditions(reasons),
    ]
    return Adapter(transforms, ranks=_ranks(simulator))


def _ranks(simulator: ModelSimulator) -> dict[str, int]:
    ranks = {site.name: len(site.shape) for site in simulator.sites.values()}
    return ranks | {"inference_variables": 1, "inference_conditions": 1}


def _by_groups(
    simulator: ModelSimulator,
    sites: Sequence[str] | None,
    pilot: Draws,
    overrides: Mapping[str, Said],
    prior_to_normal: bool,
    *,
    insist: bool,
) -> list[Transform] | Refusal | None:
    """The steps where the posterior factorizes and groups are many, or else why not."""
    names = inferred_sites(simulator, sites, of_any_size=True)
    hierarchy = find_hierarchy(simulator, names, pilot, few=0 if insist else _FEW)
    if not isinstance(hierarchy, Hierarchy):
        return hierarchy
    latents = unconstrain_latents(simulator, names, pilot, prior_to_normal=prior_to_normal)
    own = {name: axis for name, axis in hierarchy.axes.items() if name in names}
    steps = data_steps(simulator, latents, hierarchy, pilot, overrides)
    if isinstance(steps, Refusal):
        return steps
    return [DropSites(_left_out(simulator, names)), *latent_steps(latents, own), *steps]


def makes_prior_normal(adapter: Adapter) -> bool:
    """Whether the prior of the inference variables is known to be N(0, I).

    It is where each latent is mapped by its own prior's quantiles, and no step of the user's own
    may change what comes of that.
    """
    steps = (
        DropSites,
        UnconstrainLatents,
        StandardizeObserved,
        MaskBeyondSize,
        CollectSummaries,
        CollectConditions,
    )
    maps = [m for t in adapter.transforms if isinstance(t, UnconstrainLatents) for m in t.maps]
    derived = all(isinstance(transform, steps) for transform in adapter.transforms)
    return derived and bool(maps) and all(m.by_prior for m in maps)


def pilot_draws(simulator: ModelSimulator, pilot: Draws | None) -> dict[str, np.ndarray]:
    """Finite draws from the simulator, as host arrays.

    :raises ValueError: where most draws are not finite, naming the sites.
    """
    if pilot is None:
        pilot = simulator.sample(random.key(20), NUM_PILOTS)
    draws = {name: np.asarray(value) for name, value in pilot.items()}
    finite = {
        name: np.isfinite(value.astype(np.float64)).reshape(len(value), -1).all(-1)
        for name, value in draws.items()
        if name in simulator.sites and simulator.sites[name].role != "deterministic"
    }
    usable = np.logical_and.reduce(list(finite.values()))
    if usable.mean() <= 0.5:
        shares = {name: f"{1 - ok.mean():.0%}" for name, ok in finite.items() if not ok.all()}
        raise ValueError(
            f"Simulations are not finite in {1 - usable.mean():.0%} of {len(usable)} pilot draws; "
            f"sites and their shares: {shares}. Restrict the priors to values at which the model "
            "can be simulated."
        )
    return {name: value[usable] for name, value in draws.items()}


def _size_condition(
    simulator: ModelSimulator,
    varying: VaryingSize,
    groups: Sequence[Summarized],
    reasons: dict[str, str],
    pilot: Draws,
) -> list[Transform]:
    """Summary networks count their members; otherwise the size is a condition."""
    counted = {(n, a) for group in groups for n, axes in group.axes.items() for a in axes}
    sized = {(n, a) for n, axes in varying.axes.items() for a in axes}
    if all(each in counted for each in sized if simulator.sites[each[0]].is_given):
        return [DropSites({varying.name: "counted by the summary network"})]
    reasons[varying.name] = f"the size, {varying.low} to {varying.high}"
    return [_standardize([simulator.sites[varying.name]], (), pilot)]


def inferred_sites(
    simulator: ModelSimulator, sites: Sequence[str] | None, *, of_any_size: bool = False
) -> tuple[str, ...]:
    """Names of the latent sites asked for, by default of all that have a density.

    :param of_any_size: whether latents of the size that varies may be inferred.
    """
    latents = [site for site in simulator.sites.values() if site.role == "latent"]
    varying = simulator.varying_size
    axes = {} if varying is None or of_any_size else varying.axes
    sized = [site.name for site in latents if site.name in axes]
    if sites is None:
        names = tuple(s.name for s in latents if not _is_discrete(s) and s.name not in sized)
        if not names:
            raise ValueError(
                "The model has no continuous latent site, so there is no density to infer; its "
                f"latent sites are {[s.name for s in latents]}."
            )
        return names
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    known = [site.name for site in latents]
    unknown = [name for name in sites if name not in known]
    if unknown or not sites:
        raise ValueError(
            f"`sites`: expected names of latent sites, from {known}, got {unknown or list(sites)}."
        )
    if refused := [name for name in sites if name in sized]:
        raise ValueError(
            f"`sites`: {refused} have the size that varies, and a posterior has a fixed number of "
            "variables. Leave them out: they are then marginalized by simulation."
        )
    return tuple(name for name in known if name in sites)


def _is_discrete(site: Site) -> bool:
    return not jnp.issubdtype(site.dtype, jnp.floating)


def _left_out(simulator: ModelSimulator, names: Sequence[str]) -> dict[str, str]:
    reasons = {}
    for site in simulator.sites.values():
        if site.role == "deterministic":
            reasons[site.name] = "deterministic, computed from the latents"
        elif site.role == "latent" and site.name not in names:
            kind = "discrete, " if _is_discrete(site) else ""
            reasons[site.name] = f"{kind}not inferred: marginalized by simulation"
    return reasons


def _standardize(
    observed: Sequence[Site], groups: Sequence[Summarized], pilot: Draws
) -> StandardizeObserved:
    pooled = {name: axes for group in groups for name, axes in group.axes.items()}
    dtype = jnp.zeros(()).dtype
    standardizations = {
        site.name: fit_standardization(
            np.asarray(pilot[site.name], dtype), pooled.get(site.name, ())
        )
        for site in observed
    }
    masks = {site.name: mask for site in observed if (mask := site.event_mask) is not None}
    return StandardizeObserved(standardizations, masks)
