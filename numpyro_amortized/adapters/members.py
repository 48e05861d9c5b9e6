# SPDX-License-Identifier: Apache-2.0
"""Whether observations are independent and alike given the latents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.base import Data, Draws
from numpyro_amortized.adapters.exchangeability import companions, find_sets
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

_NUM_PILOTS = 64
_TOLERANCE = 1e-5


class Members(NamedTuple):
    """The axis of the observations of each site, observed or context; none where they depend."""

    axes: dict[str, int]
    reason: str


def find_members(simulator: ModelSimulator, latents: Sequence[str], pilot: Draws) -> Members:
    """Find the axis along which the observations are independent and alike.

    They are alike if their order does not matter, see :func:`find_sets`, and independent if other
    values of one member, its marginalized latents included, leave the log densities of all
    others unchanged.

    :param simulator: the traced model.
    :param latents: names of the latents that are conditioned on.
    :param pilot: draws of all sites, a leading axis of simulations.
    :raises ValueError: where the model's density is not known, so that this cannot be checked.
    """
    sites = simulator.sites
    observed = [site for site in sites.values() if site.role == "observed"]
    names = {site.name for site in observed}
    try:
        if not all(site.has_density for site in observed):
            raise NotImplementedError
        found, reasons = find_sets(simulator, latents, pilot)
    except NotImplementedError as error:
        raise ValueError(
            f"The sites {sorted(names)} have no density, so it is not known "
            "whether observations are independent given the latents. Say so by their axis, "
            f"`sets={{'{observed[0].name}': 0}}`, or by `sets={{'{observed[0].name}': None}}` that "
            "they are not."
        ) from error
    group = next((group for group in found if names <= group.axes.keys()), None)
    if group is None:
        together = "no axis is that of the members of all observed sites"
        return Members({}, "; ".join(reasons.values()) or together)
    first = observed[0]
    marginal = [s for s in sites.values() if s.role == "latent" and s.name not in latents]
    local = companions(first, group.axes[first.name], marginal)
    if shared := [site.name for site in marginal if site.name not in local]:
        return Members({}, f"latents {shared} are marginalized and shared by the members")
    axes = {**group.axes, **local}
    if any(_in_event(sites[name], axis) for name, axis in axes.items()):
        return Members({}, "the members are within an event; put them into a plate")
    if not _is_independent(simulator, axes, pilot):
        return Members({}, "members depend on each other")
    return Members(group.axes, group.reason)


def _in_event(site: Site, axis: int) -> bool:
    return axis >= len(site.shape) - site.event_dim and site.role != "context"


def _is_independent(
    simulator: ModelSimulator, axes: Mapping[str, int], pilot: Mapping[str, Array | np.ndarray]
) -> bool:
    known = [s.name for s in simulator.sites.values() if s.is_random or s.role == "context"]
    draws = {name: np.asarray(pilot[name])[:_NUM_PILOTS] for name in known}
    random_sites = [name for name in axes if simulator.sites[name].is_random]

    def others(values: Data) -> list[Array]:
        """Log densities of all members but the first."""
        trace = simulator.trace(random.key(0), values)
        terms = {n: trace[n]["fn"].log_prob(trace[n]["value"]) for n in random_sites}
        return [jnp.moveaxis(terms[n], axes[n], 0)[1:] for n in random_sites]

    changed = {name: value.copy() for name, value in draws.items()}
    for name, axis in axes.items():
        first = np.moveaxis(changed[name], axis + 1, 1)
        first[:, 0] = np.roll(first[:, 0], 1, axis=0)  # a view: those of another simulation
    evaluate = jax.jit(jax.vmap(others))
    pairs = zip(evaluate(draws), evaluate(changed), strict=True)
    return all(
        np.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for before, after in pairs
    )
