# SPDX-License-Identifier: Apache-2.0
"""Which observations form sets, given the latents that are inferred."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import groupby
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.base import Data, Draws
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

_NUM_PILOTS = 256
_NUM_PERMUTATIONS = 3
_TOLERANCE = 1e-5  # of the summed absolute log densities: rounding of a reordered float32 sum


class ObservedSet(NamedTuple):
    """Observed sites whose members, along one axis each, form one set."""

    axes: dict[str, int]  # site -> axis of its shape
    size: int
    reason: str


def find_sets(
    simulator: ModelSimulator, inferred: Sequence[str], pilot: Draws
) -> tuple[list[ObservedSet], dict[str, str]]:
    """Find the sets by permuting members while every inferred latent is held fixed.

    If ``log p(everything)`` does not change when the members of an observed axis are permuted,
    together with those of the marginalized latents in the same plate, then neither does
    ``p(observed | inferred)``: substitute the permuted latents in the integral over them.

    :param simulator: the traced model.
    :param inferred: names of the latents that are inferred.
    :param pilot: draws of all sites, a leading axis of simulations.
    :return: the sets, and for every other observed site the reason why it is none.
    """
    sites = simulator.sites
    observed = [site for site in sites.values() if site.role == "observed"]
    varying = simulator.varying_size
    context = [
        s
        for s in sites.values()
        if s.role == "context" and (varying is None or s.name != varying.name)
    ]
    marginal = [s for s in sites.values() if s.role == "latent" and s.name not in inferred]
    draws = {name: np.asarray(value[:_NUM_PILOTS]) for name, value in pilot.items()}
    sets: list[ObservedSet] = []
    reasons = {site.name: "no axis with several members" for site in observed}
    reasons |= {site.name: "context of the whole data set" for site in context}
    for axes in _candidates(observed):
        axes = {name: axis for name, axis in axes.items() if not _in_sets(name, sets)}
        if not axes:
            continue
        name = next(iter(axes))
        size = sites[name].shape[axes[name]]
        label = _label(sites[name], axes[name])
        local = companions(sites[name], axes[name], marginal)
        pairs = {s.name: s.shape.index(size) for s in context if size in s.shape}
        # members and their covariates are moved together first
        for moved in (axes | pairs, axes) if pairs else (axes,):
            if _is_invariant(simulator, moved | local, draws):
                reason = f"permuting the {size} members of {label} leaves the log density unchanged"
                sets.append(ObservedSet(moved, size, reason))
                break
        else:
            for each in axes:
                reasons[each] = f"permuting the members of {label} changes the log density"
    return sets, {name: reason for name, reason in reasons.items() if not _in_sets(name, sets)}


def _candidates(observed: Sequence[Site]) -> list[dict[str, int]]:
    """Axes to try: those of several sites jointly first, longer ones first."""
    axes = [
        (_axis_key(site, axis), site.name, axis)
        for site in observed
        for axis, size in enumerate(site.shape)
        if size > 1
    ]
    axes.sort(key=lambda entry: (-entry[0][0], str(entry[0])))
    joint = [
        {name: axis for _, name, axis in group} for _, group in groupby(axes, key=lambda e: e[0])
    ]
    single = [{name: axis} for group in joint if len(group) > 1 for name, axis in group.items()]
    return joint + single


def _axis_key(site: Site, axis: int) -> tuple[int, str]:
    """Size, and the plate or position that sites must share to have it in common."""
    return site.shape[axis], _label(site, axis)


def plate_axes(site: Site) -> dict[int, str]:
    """The axes of a site's shape that belong to plates, and their names."""
    rank = len(site.shape)
    return {rank + dim - site.event_dim: name for name, dim, _ in site.plates}


def _label(site: Site, axis: int) -> str:
    plate = plate_axes(site).get(axis)
    return f"plate '{plate}'" if plate else f"axis {axis - len(site.shape)}"


def companions(site: Site, axis: int, marginal: Sequence[Site]) -> dict[str, int]:
    """The axis of every marginalized latent that belongs to the members of a site's axis."""
    size, label = _axis_key(site, axis)
    batch_axis = axis - (len(site.shape) - site.event_dim)  # negative: counted in the batch
    chosen = {}
    for other in marginal:
        own = [a for a, length in enumerate(other.shape) if length == size]
        same_plate = [a for a in own if _label(other, a) == label and label.startswith("plate")]
        aligned = [a for a in own if a - (len(other.shape) - other.event_dim) == batch_axis]
        if own:
            chosen[other.name] = (same_plate or aligned or own)[0]
    return chosen


def _in_sets(name: str, sets: Sequence[ObservedSet]) -> bool:
    return any(name in found.axes for found in sets)


def _is_invariant(
    simulator: ModelSimulator, axes: dict[str, int], pilot: Mapping[str, np.ndarray]
) -> bool:
    names = [site.name for site in simulator.sites.values() if site.is_random]
    context = [site.name for site in simulator.sites.values() if site.role == "context"]

    def log_densities(values: Data) -> tuple[Array, Array]:
        trace = simulator.trace(random.key(0), values)
        terms = [trace[name]["fn"].log_prob(trace[name]["value"]) for name in names]
        magnitudes = [jnp.sum(jnp.abs(t)) for t in terms]
        return reduce(add, map(jnp.sum, terms)), reduce(add, magnitudes)

    evaluate = jax.jit(jax.vmap(log_densities))
    values = {name: pilot[name] for name in (*names, *context)}
    before, magnitude = (np.asarray(part) for part in evaluate(values))
    size = next(values[name].shape[axis + 1] for name, axis in axes.items())
    usable = np.isfinite(before) & np.isfinite(magnitude)
    generator = np.random.default_rng(0)
    for shift in range(1, _NUM_PERMUTATIONS + 1):
        # the first one is a plain shift, so that two members are certainly exchanged
        order = np.roll(np.arange(size) if shift == 1 else generator.permutation(size), 1)
        permuted = {
            name: np.take(value, order, axis=axes[name] + 1) if name in axes else value
            for name, value in values.items()
        }
        after = np.asarray(evaluate(permuted)[0])
        change = np.abs(after - before)[usable]
        if not np.all(change <= _TOLERANCE * (1 + magnitude[usable])):
            return False
    return bool(usable.any())
