# SPDX-License-Identifier: Apache-2.0
"""Groups of data with latents of their own, which are independent given the global latents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.base import Data, Draws
from numpyro_amortized.adapters.exchangeability import plate_axes
from numpyro_amortized.simulators.arguments import Arguments, is_array
from numpyro_amortized.simulators.leaks import data_leaves
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["Hierarchy", "Refusal", "find_hierarchy"]

_NUM_PILOTS = 64
_TOLERANCE = 1e-4  # relative, of log densities: rounding of float32


class Hierarchy(NamedTuple):
    """The groups of a model, and what belongs to them."""

    plate: str
    size: int
    axes: dict[str, int]  # site, observed, latent or context, to the axis of its shape
    covariates: dict[str, np.ndarray]  # array arguments of the model, the first axis of groups
    reason: str


class Refusal(NamedTuple):
    """Why the posterior does not factorize over groups."""

    reason: str


class _Terms(NamedTuple):
    """Log densities of all random sites."""

    groups: list[Array]  # of each group, shape (size,)
    rest: list[Array]  # of each site that has no groups, a scalar


def find_hierarchy(
    simulator: ModelSimulator, inferred: Sequence[str], pilot: Draws, *, few: int = 0
) -> Hierarchy | Refusal | None:
    """Find the plate over whose groups the posterior factorizes.

    That is ``p(globals | data) prod_j p(locals_j | globals, data_j)`` where, first, permuting the
    groups, each with its latents, data and covariates, permutes their log densities and changes no
    others; and where, second, other values of one group leave the log densities of all others
    unchanged.

    :param simulator: the traced model.
    :param inferred: names of the latents that are inferred.
    :param pilot: draws of all sites, a leading axis of simulations.
    :param few: up to so many latent numbers, groups of a fixed number are refused.
    :return: the groups; why there are none; ``None`` where no latent shares a plate with data.
    """
    sites = simulator.sites
    latents = [sites[name] for name in inferred]
    plates = _plates(latents) & _plates(s for s in sites.values() if s.role == "observed")
    if not plates:
        return None
    if len(plates) > 1:
        return Refusal(
            f"latents are in the plates {sorted(plates)} of the data, and only one level of groups "
            "is factorized"
        )
    [plate] = plates
    axes = _axes(sites.values(), plate)
    varying = simulator.varying_size
    is_sized = varying is not None and any(site.name in varying.axes for site in latents)
    numbers = sum(prod(site.shape) for site in latents)
    if numbers <= few and not is_sized:
        return Refusal(f"the latents of the groups are few, {numbers} numbers with the shared ones")
    if all(name in axes for name in inferred):
        return Refusal(f"no latent is shared by the groups of plate '{plate}'")
    marginal = [s.name for s in sites.values() if s.role == "latent" and s.name not in inferred]
    if shared := [name for name in marginal if name not in axes]:
        return Refusal(f"latents {shared} are not inferred, and shared by the groups")
    if unknown := [s.name for s in sites.values() if s.is_random and not s.has_density]:
        return Refusal(f"sites {unknown} have no density, so that it cannot be checked")
    return _checked(simulator, plate, axes, pilot)


def _plates(sites: Iterable[Site]) -> set[str]:
    return {name for site in sites for name, _, size in site.plates if size > 1}


def _axes(sites: Iterable[Site], plate: str) -> dict[str, int]:
    pairs = (
        (site.name, axis) for site in sites for axis, n in plate_axes(site).items() if n == plate
    )
    return dict(pairs)


def _checked(
    simulator: ModelSimulator, plate: str, axes: dict[str, int], pilot: Draws
) -> Hierarchy | Refusal:
    sites = simulator.sites
    own = {name: axis for name, axis in axes.items() if sites[name].role != "deterministic"}
    first = next(iter(own))
    size = sites[first].shape[own[first]]
    known = [s.name for s in sites.values() if s.is_random or s.role == "context"]
    draws = {name: np.asarray(pilot[name])[:_NUM_PILOTS] for name in known}
    context = {
        s.name: s.shape.index(size)
        for s in sites.values()
        if s.role == "context" and size in s.shape
    }
    arguments = _arguments(simulator, size)
    moved = [own | context, own] if context else [own]
    for moved_sites, covariates in product(moved, [{}, arguments] if arguments else [{}]):
        if _is_permuted(simulator, moved_sites, covariates, draws):
            break
    else:
        return Refusal(
            f"permuting the groups of plate '{plate}', with all that belongs to them, changes the "
            "log density"
        )
    if not _is_independent(simulator, moved_sites, draws):
        return Refusal(f"groups of plate '{plate}' depend on each other")
    reason = "permuting groups permutes their log densities, and none depends on another's values"
    leaves = Arguments.of(simulator.model, simulator.args, simulator.kwargs)
    arrays = {
        leaves.labels[i]: np.moveaxis(np.asarray(leaves.leaves[i]), axis, 0)
        for i, axis in covariates.items()
    }
    return Hierarchy(plate, size, moved_sites, arrays, reason)


def _arguments(simulator: ModelSimulator, size: int) -> dict[int, int]:
    """Array arguments of the model, besides its data, by index, and their axis of groups."""
    if simulator.varying_size is not None:  # arguments of that length are refused there
        return {}
    arguments = Arguments.of(simulator.model, simulator.args, simulator.kwargs)
    data = data_leaves(arguments, simulator.passed) if simulator.data else []
    return {
        i: np.shape(leaf).index(size)
        for i, leaf in enumerate(arguments.leaves)
        if i not in data and is_array(leaf) and size in np.shape(leaf)
    }


def _evaluator(
    simulator: ModelSimulator, axes: Mapping[str, int]
) -> Callable[[Mapping[str, np.ndarray]], _Terms]:
    """Of draws with a leading axis."""
    evaluate = jax.jit(jax.vmap(partial(_terms, simulator, axes)))
    return lambda draws: jax.device_get(evaluate(dict(draws)))


def _terms(simulator: ModelSimulator, axes: Mapping[str, int], values: Data) -> _Terms:
    trace = simulator.trace(random.key(0), values)
    groups, rest = [], []
    for site in simulator.sites.values():
        if not site.is_random:
            continue
        term = trace[site.name]["fn"].log_prob(trace[site.name]["value"])
        if site.name in axes:
            moved = jnp.moveaxis(term, axes[site.name], 0)
            groups.append(moved.reshape(len(moved), -1).sum(1))
        else:
            rest.append(jnp.sum(term))
    return _Terms(groups, rest)


def _is_permuted(
    simulator: ModelSimulator,
    axes: Mapping[str, int],
    covariates: Mapping[int, int],
    draws: Mapping[str, np.ndarray],
) -> bool:
    """Whether every group keeps its log density wherever it stands."""
    arguments = Arguments.of(simulator.model, simulator.args, simulator.kwargs)
    evaluate = _evaluator(simulator, axes)
    before = evaluate(draws)
    generator = np.random.default_rng(0)
    size = before.groups[0].shape[1]
    # the first one is a plain shift, so that two groups are certainly exchanged
    for order in (np.roll(np.arange(size), 1), generator.permutation(size)):
        moved = {
            name: np.take(x, order, axis=axes[name] + 1) if name in axes else x
            for name, x in draws.items()
        }
        changes = {
            i: np.take(np.asarray(arguments.leaves[i]), order, axis=axis)
            for i, axis in covariates.items()
        }
        if changes:
            same = simulator.with_arguments(*arguments.changed(changes))
            evaluate = _evaluator(same, axes)
        after = evaluate(moved)
        expected = [term[:, order] for term in before.groups]
        if not _agree((expected, before.rest), (after.groups, after.rest)):
            return False
    return True


def _is_independent(
    simulator: ModelSimulator, axes: Mapping[str, int], draws: Mapping[str, np.ndarray]
) -> bool:
    """Whether other values of the first group leave the log densities of all others unchanged."""
    changed = {name: x.copy() for name, x in draws.items()}
    for name, axis in axes.items():
        first = np.moveaxis(changed[name], axis + 1, 1)
        first[:, 0] = np.roll(first[:, 0], 1, axis=0)  # a view: those of another simulation
    before, after = map(_evaluator(simulator, axes), (draws, changed))
    others = [[term[:, 1:] for term in terms.groups] for terms in (before, after)]
    return _agree((others[0], before.rest), (others[1], after.rest))


def _agree(before: object, after: object) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(
        np.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True) for x, y in pairs
    )
