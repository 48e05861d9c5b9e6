# SPDX-License-Identifier: Apache-2.0
"""Derive the adapter for a posterior that factorizes over groups."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Draws, Transform
from numpyro_amortized.adapters.grouping import Said, find_groups
from numpyro_amortized.adapters.groups import ArrangeGroups, CollectGroups, Factors
from numpyro_amortized.adapters.hierarchy import Hierarchy, Refusal
from numpyro_amortized.adapters.latents import UnconstrainLatents
from numpyro_amortized.adapters.observations import (
    CollectConditions,
    DropSites,
    MaskBeyondSize,
    StandardizeObserved,
    fit_standardization,
)
from numpyro_amortized.adapters.summarized import Summarized
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["data_steps", "latent_steps", "of_other_size"]


def latent_steps(latents: UnconstrainLatents, axes: Mapping[str, int]) -> list[Transform]:
    """The latents' bijection, alike for all groups, and their order by groups.

    :param latents: all latents to one vector.
    :param axes: latent site to its axis of groups.
    """
    mean, scale, heavy = (_pieces(latents, x) for x in (latents.mean, latents.scale, latents.heavy))
    for name in mean.keys() & axes.keys():
        for pieces, pool in ((mean, np.mean), (scale, np.mean), (heavy, np.any)):
            alike = pool(pieces[name], axis=axes[name], keepdims=True)
            pieces[name] = np.broadcast_to(alike, pieces[name].shape)
    pooled = [np.concatenate([np.ravel(x) for x in p.values()]) for p in (mean, scale, heavy)]
    dtype = latents.mean.dtype
    same = UnconstrainLatents(
        latents.simulator,
        latents.maps,
        pooled[0].astype(dtype),
        pooled[1].astype(dtype),
        pooled[2],
        latents.needs,
    )
    return [same, ArrangeGroups(np.concatenate(_order(same, axes)))]


def _pieces(latents: UnconstrainLatents, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Of each site, in its unconstrained shape."""
    parts = np.split(vector, np.cumsum([int(np.prod(m.shape)) for m in latents.maps])[:-1])
    return {m.name: part.reshape(m.shape) for m, part in zip(latents.maps, parts, strict=True)}


def _order(latents: UnconstrainLatents, axes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the global numbers, and of the groups' one after the other."""
    places = _pieces(latents, np.arange(latents.size))
    shared = [x.ravel() for name, x in places.items() if name not in axes]
    own = [
        np.moveaxis(x, axes[name], 0).reshape(x.shape[axes[name]], -1)
        for name, x in places.items()
        if name in axes
    ]
    return np.concatenate(shared), np.concatenate(own, axis=1).ravel()


def data_steps(
    simulator: ModelSimulator,
    latents: UnconstrainLatents,
    hierarchy: Hierarchy,
    pilot: Draws,
    overrides: Mapping[str, Said],
) -> list[Transform] | Refusal:
    """The steps of observed sites and context; or why they cannot be taken group by group.

    :param simulator: the traced model.
    :param latents: all latents to one vector.
    :param hierarchy: the groups.
    :param pilot: draws of all sites, a leading axis of simulations.
    :param overrides: what the user says of the observed sites.
    """
    varying = simulator.varying_size
    axes = {n: a for n, a in hierarchy.axes.items() if simulator.sites[n].is_given}
    given = [s for s in simulator.sites.values() if s.is_given]
    observed = [s for s in given if varying is None or s.name != varying.name]
    found, _ = find_groups(simulator, latents.names, pilot, overrides)
    inner = tuple(each for each in found if not _runs_over_groups(each, axes))
    if alone := [each.name for each in inner if not any(name in axes for name in each.axes)]:
        return Refusal(f"{alone} are summarized, and in no group of plate '{hierarchy.plate}'")
    taken = {name for each in inner for name in each.axes}
    numbers = tuple(s.name for s in observed if s.name in axes and s.name not in taken)
    shared = {
        s.name: "shared by all groups"
        for s in observed
        if s.name not in axes and s.name not in taken
    }
    own_latents = {n: a for n, a in hierarchy.axes.items() if n in latents.names}
    shared_places, _ = _order(latents, own_latents)
    factors = Factors(
        tuple(n for n in latents.names if n not in own_latents),
        tuple(n for n in latents.names if n in own_latents),
        len(shared_places),
        hierarchy.size,
    )
    covariates = {n: _standardized(x) for n, x in hierarchy.covariates.items()}
    collect = CollectGroups(
        hierarchy.plate, factors, axes, numbers, inner, covariates, varying, hierarchy.reason
    )
    steps: list[Transform] = [
        _standardize(observed, axes, inner, pilot),
        *([] if varying is None else [MaskBeyondSize(varying)]),
        collect,
    ]
    if varying is not None and (collect.is_varying or _is_counted(simulator, inner)):
        steps += [DropSites({varying.name: "counted by the summary network"})]
    elif varying is not None:
        shared[varying.name] = f"the size, {varying.low} to {varying.high}"
        steps += [_standardize([simulator.sites[varying.name]], {}, (), pilot)]
    return [*steps, CollectConditions(shared)]


def _runs_over_groups(each: Summarized, axes: Mapping[str, int]) -> bool:
    return any(axes.get(name) in own for name, own in each.axes.items())


def _is_counted(simulator: ModelSimulator, inner: Sequence[Summarized]) -> bool:
    """Whether every axis that varies is one of members that are summarized."""
    counted = {(n, a) for each in inner for n, own in each.axes.items() for a in own}
    varying = simulator.varying_size
    assert varying is not None
    sized = {(n, a) for n, own in varying.axes.items() for a in own}
    return all(each in counted for each in sized if simulator.sites[each[0]].is_given)


def _standardize(
    sites: Sequence[Site],
    axes: Mapping[str, int],
    inner: Sequence[Summarized],
    pilot: Draws,
) -> StandardizeObserved:
    """Moments that all groups and members share."""
    members = {name: own for each in inner for name, own in each.axes.items()}
    dtype = jnp.zeros(()).dtype
    standardizations = {}
    for site in sites:
        own = (axes[site.name],) if site.name in axes else ()
        pooled = (*own, *members.get(site.name, ()))
        standardizations[site.name] = fit_standardization(
            np.asarray(pilot[site.name], dtype), pooled
        )
    masks = {site.name: mask for site in sites if (mask := site.event_mask) is not None}
    return StandardizeObserved(standardizations, masks)


def _standardized(covariate: np.ndarray) -> np.ndarray:
    values = covariate.reshape(len(covariate), -1).astype(jnp.zeros(()).dtype)
    return np.asarray(fit_standardization(values, ())(jnp.asarray(values)))


def of_other_size(adapter: Adapter, simulator: ModelSimulator, size: int) -> Adapter:
    """The adapter of the same model with another number of groups.

    :param adapter: that of the posterior, by groups.
    :param simulator: the model with ``size`` groups.
    :param size: their number.
    :raises ValueError: where groups have fixed covariates, which are not known for others.
    """
    groups = adapter.groups
    assert groups is not None
    if groups.covariates:
        raise ValueError(
            f"{list(groups.covariates)} of the model has a value for each of the "
            f"{groups.factors.num_groups} groups; those of other groups are not known. Draw it for "
            "every simulation: ModelSimulator(model, context=...)."
        )
    steps: list[Transform] = []
    for step in adapter.transforms:
        if isinstance(step, UnconstrainLatents):
            own = groups.latent_axes(simulator.sites)
            resized = _resized(step, simulator, own, size)
            steps += [resized, ArrangeGroups(np.concatenate(_order(resized, own)))]
        elif isinstance(step, CollectGroups):
            factors = step.factors._replace(num_groups=size)
            arguments = (step.plate, factors, step.axes, step.numbers, step.summarized)
            varying = None if step.is_varying else step.varying
            steps += [CollectGroups(*arguments, step.covariates, varying, step.reason)]
        elif not isinstance(step, ArrangeGroups | MaskBeyondSize):
            steps += [step]
    shapes = {s.name: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in simulator.sites.values()}
    ranks = {name: len(struct.shape) for name, struct in shapes.items()}
    ranks |= {"inference_variables": 1, "inference_conditions": 1}
    return Adapter(steps, ranks=ranks, _shapes=shapes)


def _resized(
    latents: UnconstrainLatents, simulator: ModelSimulator, axes: Mapping[str, int], size: int
) -> UnconstrainLatents:
    def grow(name: str, x: np.ndarray) -> np.ndarray:
        """All groups are alike."""
        return np.take(x, np.zeros(size, int), axis=axes[name]) if name in axes else x

    mean, scale, heavy = (
        np.concatenate([np.ravel(grow(n, x)) for n, x in _pieces(latents, v).items()])
        for v in (latents.mean, latents.scale, latents.heavy)
    )
    maps = tuple(
        m._replace(shape=grow(m.name, np.zeros(m.shape)).shape) if m.name in axes else m
        for m in latents.maps
    )
    return UnconstrainLatents(simulator, maps, mean, scale, heavy, latents.needs)
