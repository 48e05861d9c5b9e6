# SPDX-License-Identifier: Apache-2.0
"""Summing discrete latents out of a joint density.

All values of all sites are tried where these are few. Sites of a plate may have many members: where
each member's terms depend on no other member, as a check at simulated values shows, the sum of the
products over members is the product of the members' sums.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.scipy.special import logsumexp

from numpyro_amortized.concrete import concrete_values
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.simulators.unobserve import unwrap

__all__ = ["Terms", "Values", "enumerated"]

Values = Mapping[str, Array]
Terms = dict[str, Array]  # site to its log density, of its batch shape
_MAX_COMBINATIONS = 1024
_NUM_CHECKS, _TOLERANCE = 3, 1e-3


def enumerated(
    simulator: ModelSimulator, names: Sequence[str], terms: Callable[[Values, Values], Terms]
) -> Callable[[Values, Values], Array]:
    """
    :param simulator: the traced model.
    :param names: its discrete latents that are to be summed out.
    :param terms: log densities of all random sites, given all latents and the data.
    :return: the log density of the other latents and the data.
    :raises ValueError: where the sum cannot be taken, with the site and the reason.
    """
    sites = [simulator.sites[name] for name in names]
    supports = _supports(simulator, sites)
    if _num_combinations(sites, supports) <= _MAX_COMBINATIONS:
        return _over(_combinations(sites, supports), lambda x, given: _total(terms(x, given)))
    single = [site for site in sites if not site.plates]
    members = [site for site in sites if site.plates]
    _refuse_too_many(single, members, supports)
    inner = _over_members(simulator, members, supports, terms)
    _check_independence(simulator, members, inner, terms)
    return _over(_combinations(single, supports), inner.total) if single else inner.total


def _total(terms: Terms) -> Array:
    return sum((jnp.sum(term) for term in terms.values()), jnp.zeros(()))


def _over(
    combinations: dict[str, Array], log_density: Callable[[Values, Values], Array]
) -> Callable[[Values, Values], Array]:
    """The sum over combinations, values ``(num_combinations, *shape)``."""

    def marginal(latents: Values, given: Values) -> Array:
        each = jax.vmap(lambda values: log_density({**latents, **values}, given))
        return logsumexp(each(combinations))

    return marginal


class _Members:
    """The sum over the members of plates, each by itself."""

    def __init__(
        self, sites: Sequence[Site], inside: Sequence[str], terms: Callable[[Values, Values], Terms]
    ) -> None:
        self.dims = sorted(dim for _, dim, _ in sites[0].plates)
        self.inside, self.terms = set(inside), terms
        self.combinations: dict[str, Array] = {}

    def parts(self, latents: Values, given: Values) -> tuple[Array, Array]:
        """What no member has a part in, a scalar, and the terms of each member."""
        terms = self.terms(latents, given)
        outside = _total({name: x for name, x in terms.items() if name not in self.inside})
        inside = [self._by_member(x) for name, x in terms.items() if name in self.inside]
        return outside, sum(inside[1:], inside[0])

    def total(self, latents: Values, given: Values) -> Array:
        each = jax.vmap(lambda values: self.parts({**latents, **values}, given))
        outside, inside = each(self.combinations)
        return outside[0] + jnp.sum(logsumexp(inside, axis=0))

    def _by_member(self, term: Array) -> Array:
        others = tuple(axis for axis in range(-term.ndim, 0) if axis not in self.dims)
        return jnp.sum(term, axis=others)


def _over_members(
    simulator: ModelSimulator,
    sites: Sequence[Site],
    supports: Mapping[str, np.ndarray],
    terms: Callable[[Values, Values], Terms],
) -> _Members:
    plates = set(sites[0].plates)
    random_sites = [s for s in simulator.sites.values() if s.is_random]
    inside = [s.name for s in random_sites if plates <= set(s.plates)]
    members = _Members(sites, inside, terms)
    alone = [site._replace(shape=()) for site in sites]
    members.combinations = {
        site.name: jnp.broadcast_to(x.reshape(-1, *[1] * len(site.shape)), (len(x), *site.shape))
        for site, x in zip(sites, _combinations(alone, supports).values(), strict=True)
    }
    return members


def _supports(simulator: ModelSimulator, sites: Sequence[Site]) -> dict[str, np.ndarray]:
    """The values of each site, a vector."""
    with concrete_values():  # it may be asked for first while tracing
        trace = simulator.trace(random.key(0))
        return {site.name: _support(site, unwrap(trace[site.name]["fn"])) for site in sites}


def _support(site: Site, fn: object) -> np.ndarray:
    reason = None
    if site.scanned:
        reason = "stands in a `scan`, where each step depends on the one before"
    elif site.event_dim:
        reason = "is a vector"
    elif isinstance(site.support, type):
        reason = "has a support that depends on other sites"
    elif not getattr(fn, "has_enumerate_support", False):
        reason = "has no finite support"
    if reason is None:
        try:
            return np.ravel(np.asarray(fn.enumerate_support(expand=False)))  # type: ignore[attr-defined]
        except NotImplementedError as error:
            reason = f"cannot be enumerated ({error})"
    raise ValueError(
        f"Site '{site.name}' is a discrete latent that is not inferred, and it {reason}, so it "
        "cannot be summed out of the model's density. Write the model without it, as a mixture."
    )


def _num_combinations(sites: Sequence[Site], supports: Mapping[str, np.ndarray]) -> float:
    counts = [int(np.prod(site.shape)) * np.log(len(supports[site.name])) for site in sites]
    return float(np.exp(min(sum(counts), 50.0)))


def _combinations(sites: Sequence[Site], supports: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """All values of the sites together, ``(num_combinations, *shape)`` each."""
    sizes = [int(np.prod(site.shape)) for site in sites]
    axes = [supports[s.name] for s, n in zip(sites, sizes, strict=True) for _ in range(n)]
    table = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=-1)
    columns = np.split(table, np.cumsum(sizes)[:-1], axis=-1)
    return {
        site.name: jnp.asarray(part.reshape(-1, *site.shape), site.dtype)
        for site, part in zip(sites, columns, strict=True)
    }


def _refuse_too_many(
    single: Sequence[Site], members: Sequence[Site], supports: Mapping[str, np.ndarray]
) -> None:
    alone = [site._replace(shape=()) for site in members]
    count = max(_num_combinations(single, supports), _num_combinations(alone, supports))
    shapes = {(site.plates, site.shape) for site in members}
    own = all(int(np.prod(s.shape)) == int(np.prod([n for *_, n in s.plates])) for s in members)
    if len(shapes) != 1 or not own or count > _MAX_COMBINATIONS:
        raise ValueError(
            f"Sites {[s.name for s in (*single, *members)]} are discrete latents that are not "
            f"inferred, with more than {_MAX_COMBINATIONS} combinations of values: too many to be "
            "summed out, unless they stand in the same plates. Write the model without them, as a "
            "mixture."
        )


def _check_independence(
    simulator: ModelSimulator,
    sites: Sequence[Site],
    members: _Members,
    terms: Callable[[Values, Values], Terms],
) -> None:
    """At simulated values, a member's terms must be those where all members have its value."""
    names = [site.name for site in sites]

    def differences(draw: Values) -> tuple[Array, Array]:
        given = {n: x for n, x in draw.items() if simulator.sites[n].is_given}
        latents = {n: x for n, x in draw.items() if simulator.sites[n].role == "latent"}
        outside, inside = members.parts(latents, given)
        each = jax.vmap(lambda values: members.parts({**latents, **values}, given))
        outsides, insides = each(members.combinations)
        own = jnp.stack([members.combinations[n] == draw[n] for n in names]).all(0)
        chosen = jnp.sum(jnp.where(own.reshape(insides.shape), insides, 0), axis=0)
        scale = 1 + jnp.abs(inside)
        return jnp.max(jnp.abs(outsides - outside)), jnp.max(jnp.abs(chosen - inside) / scale)

    with concrete_values():
        draws = simulator.sample(random.key(24), _NUM_CHECKS)
        errors = jax.jit(jax.vmap(differences))(draws)
    if not all(bool((np.asarray(error) < _TOLERANCE).all()) for error in errors):
        raise ValueError(
            f"Sites {names} are discrete latents that are not inferred, and the members of their "
            "plate depend on each other, so they cannot be summed out one by one. Write the model "
            "without them, as a mixture."
        )
