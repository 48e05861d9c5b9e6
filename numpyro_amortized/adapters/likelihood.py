# SPDX-License-Identifier: Apache-2.0
"""Derive the adapter for a likelihood from a traced model."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Draws
from numpyro_amortized.adapters.latents import robust_moments, unconstrain_latents
from numpyro_amortized.adapters.members import Members, find_members
from numpyro_amortized.adapters.observations import StandardizeObserved, fit_standardization
from numpyro_amortized.adapters.observed_variables import (
    CollectObservations,
    ConditionOnLatents,
    ObservedMap,
)
from numpyro_amortized.adapters.parts import Category, Count, Numbers, Part
from numpyro_amortized.adapters.posterior import inferred_sites, pilot_draws
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site, has_bijection

_MOST_CATEGORIES = 32


def likelihood_adapter(
    simulator: ModelSimulator, *, sets: Mapping[str, int | None] | None, pilot: Draws | None
) -> Adapter:
    """See :meth:`Adapter.for_likelihood`."""
    _refuse(simulator)
    names = inferred_sites(simulator, None)
    draws = pilot_draws(simulator, pilot)
    members = _members_said(simulator, sets) or find_members(simulator, names, draws)
    axes = members.axes
    sites = simulator.sites
    observed = [site for site in sites.values() if site.role == "observed"]
    context = [site for site in sites.values() if site.role == "context"]
    latents = unconstrain_latents(simulator, names, draws)
    if local := [name for name in latents.needs if name in axes]:
        raise ValueError(
            f"The priors depend on the context {local}, which belongs to the observations; say "
            f"that observations are to be taken jointly: sets={{'{observed[0].name}': None}}."
        )
    maps = tuple(_observed_map(site, axes.get(site.name), draws[site.name]) for site in observed)
    standardizations = {
        site.name: fit_standardization(
            _member_rows(draws[site.name].astype(jnp.result_type(float)), axes.get(site.name)), ()
        )
        for site in context
    }
    steps = [
        ConditionOnLatents(latents, StandardizeObserved(standardizations, {})),
        CollectObservations(maps, axes, members.reason),
    ]
    entries = [*context, *(sites[name] for name in names), *observed]
    shapes = {s.name: jax.ShapeDtypeStruct(_shape(s, axes.get(s.name)), s.dtype) for s in entries}
    return Adapter(steps, _shapes=shapes)


def _refuse(simulator: ModelSimulator) -> None:
    if simulator.varying_size is not None:
        raise ValueError(
            "Adapter.for_likelihood: expected a simulator of one size, got one whose "
            f"'{simulator.varying_size.name}' varies. Leave `sizes` out: the likelihood of an "
            "observation serves any number of them."
        )
    if masked := [site.name for site in simulator.sites.values() if site.mask is not None]:
        raise ValueError(
            f"Adapter.for_likelihood: the sites {masked} are masked. Simulate without the mask, "
            "and use it in the model that the likelihood becomes part of."
        )


def _members_said(
    simulator: ModelSimulator, sets: Mapping[str, int | None] | None
) -> Members | None:
    """What the user says of the observed sites."""
    if sets is None:
        return None
    sites = simulator.sites
    given = {site.name: site for site in sites.values() if site.is_given}
    observed = {site.name for site in sites.values() if site.role == "observed"}
    if sets.keys() - given.keys() or observed - sets.keys():
        raise ValueError(f"`sets`: expected all of {sorted(observed)}, got {list(sets)}.")
    axes = {name: axis for name, axis in sets.items() if axis is not None}
    wrong = [n for n, k in axes.items() if not -len(given[n].shape) <= k < len(given[n].shape)]
    axes = {name: axis % max(1, len(given[name].shape)) for name, axis in axes.items()}
    sizes = {n: given[n].shape[k] for n, k in axes.items() if n not in wrong}
    if wrong or len(set(sizes.values())) > 1 or 0 < len(observed & axes.keys()) < len(observed):
        shapes = {name: given[name].shape for name in sets}
        raise ValueError(
            "`sets`: expected an axis of the same length for all observed sites, or None for all, "
            f"got {dict(sets)} of sites with shapes {shapes}."
        )
    return Members(axes, "as you said")


def _shape(site: Site, axis: int | None) -> tuple[int, ...]:
    """Of one observation."""
    return site.shape if axis is None else site.shape[:axis] + site.shape[axis + 1 :]


def _member_rows(draws: np.ndarray, axis: int | None) -> np.ndarray:
    """Draws of a site with the members along the leading axis."""
    if axis is None:
        return draws
    moved = np.moveaxis(draws, axis + 1, 1)
    return moved.reshape(-1, *moved.shape[2:])


def _observed_map(site: Site, axis: int | None, draws: np.ndarray) -> ObservedMap:
    shape, rows = _shape(site, axis), _member_rows(draws, axis)
    if not jnp.issubdtype(site.dtype, jnp.floating):
        part = _discrete_part(site, rows)
        first = int(_bounds(site)[0]) if isinstance(part, Category) else 0
        parts: tuple[Part, ...] = (part,) * int(np.prod(shape))
        return ObservedMap(site.name, shape, site.dtype, _support(site), parts, first=first)
    onto = _onto(site, rows)
    transform = biject_to(onto)
    z = np.asarray(jax.jit(jax.vmap(transform.inv))(jnp.asarray(rows)))
    z = z.reshape(len(z), -1)
    mean, scale, heavy = robust_moments(z, np.zeros(z.shape[1], bool))
    numbers = (Numbers(z.shape[1]),)
    return ObservedMap(site.name, shape, site.dtype, onto, numbers, onto, mean, scale, heavy)


def _onto(site: Site, rows: np.ndarray) -> Constraint:
    """A support with a bijection that contains the site's, whatever the latents are."""
    support = site.support
    fixed = isinstance(support, Constraint) and not any(map(np.ndim, jax.tree.leaves(support)))
    if fixed and has_bijection(support):
        return support
    if isinstance(support, Constraint) and not has_bijection(support):
        raise ValueError(
            f"Site '{site.name}' has support {support}, which has no bijection to real numbers, so "
            "its density cannot be learned. Observe coordinates of it that have one."
        )
    return constraints.positive if (rows > 0).all() else constraints.real


def _support(site: Site) -> Constraint:
    low, high = _bounds(site)
    if np.isinf(high):
        return constraints.integer_greater_than(int(low)) if low > -np.inf else constraints.integer
    return constraints.integer_interval(int(low), int(high))


def _discrete_part(site: Site, rows: np.ndarray) -> Part:
    """Few categories have a probability each; counts that of a bin of a continuous density."""
    low, high = _bounds(site)
    if high - low < _MOST_CATEGORIES:
        return Category(int(high - low) + 1)
    lower, center, upper = np.quantile(rows, [0.1587, 0.5, 0.8413])
    return Count(low, high, float(center), float(max((upper - lower) / 2, 0.5)))


def _bounds(site: Site) -> tuple[float, float]:
    """The least and the greatest value of a discrete site."""
    support = site.support
    if support is constraints.boolean or site.dtype == np.bool_:
        return 0, 1
    if isinstance(support, type) or type(support) not in _DISCRETE:
        raise ValueError(
            f"Site '{site.name}' is discrete, and its support {support} is not that of categories "
            "or of counts with fixed bounds, so its likelihood cannot be learned. Observe numbers "
            "with such a support, or add uniform noise to it in the model."
        )
    low = np.min(getattr(support, "lower_bound", -np.inf))
    return float(low), float(np.max(getattr(support, "upper_bound", np.inf)))


_DISCRETE = {
    type(constraints.nonnegative_integer),
    type(constraints.positive_integer),
    type(constraints.integer_interval(0, 1)),
    type(constraints.integer_greater_than(0)),
}
