# SPDX-License-Identifier: Apache-2.0
"""The bijection between the latent sites and one unconstrained, standardized vector."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from numpyro.distributions import biject_to

from numpyro_amortized.adapters.base import Bijection, Data, Draws
from numpyro_amortized.adapters.quantiles import from_normal, has_quantiles, to_normal
from numpyro_amortized.simulators.dependence import Varying, varying_sites
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site, has_bijection


def base_distribution(fn: dist.Distribution) -> dist.Distribution:
    """Unwrap expanded, masked and independent distributions; their parameters broadcast."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


_HEAVY = 20.0  # robust standard deviations; the largest of 2,000 normal draws is near 3.5


class SiteMap(NamedTuple):
    """How one latent site becomes real numbers."""

    name: str
    shape: tuple[int, ...]  # of the unconstrained value
    by_prior: bool  # by its prior's CDF, else by the bijection of its support
    support: dist.constraints.Constraint | None  # where the map must not follow the trace

    def forward(self, fn: dist.Distribution, x: Array) -> tuple[Array, Array]:
        """Unconstrained value, and the log-determinant of the site's batch shape."""
        batch_ndim = jnp.ndim(x) - fn.event_dim
        if self.by_prior:
            z, log_slope = to_normal(base_distribution(fn), x)
            return z, _summed(log_slope, batch_ndim)
        transform = self._bijection(fn)
        z = transform.inv(x)
        return z, -_summed(transform.log_abs_det_jacobian(z, x), batch_ndim)

    def inverse(self, fn: dist.Distribution, z: Array) -> Array:
        """Constrained value."""
        if self.by_prior:
            return from_normal(base_distribution(fn), z)
        return self._bijection(fn)(z)

    def _bijection(self, fn: dist.Distribution) -> dist.transforms.Transform:
        return biject_to(fn.support if self.support is None else self.support)


class UnconstrainLatents(Bijection):
    """Latent sites to ``inference_variables``, one standardized vector in trace order.

    Each site goes by the CDF of its own prior, which makes the prior N(0, 1) exactly, or by the
    bijection of its own support; both are read from a trace of the model at the values of the
    sites before it, so supports that depend on other sites are right.

    :param simulator: the traced model.
    :param maps: one for each latent site to infer, in trace order.
    :param mean: shape ``(size,)``, subtracted from the unconstrained vector.
    :param scale: shape ``(size,)``, divides it afterwards.
    :param heavy: booleans, shape ``(size,)``: those that are squashed by asinh at last.
    :param needs: names of the context on which the priors depend: without it nothing can be mapped.
    """

    def __init__(
        self,
        simulator: ModelSimulator,
        maps: tuple[SiteMap, ...],
        mean: np.ndarray,
        scale: np.ndarray,
        heavy: np.ndarray,
        needs: tuple[str, ...] = (),
    ) -> None:
        self.needs = needs
        self.simulator = simulator
        self.maps = maps
        self.mean = mean
        self.scale = scale
        self.heavy = heavy

    @property
    def names(self) -> tuple[str, ...]:
        """The latent sites inferred."""
        return tuple(site_map.name for site_map in self.maps)

    @property
    def size(self) -> int:
        """Length of the unconstrained vector."""
        return sum(int(np.prod(site_map.shape)) for site_map in self.maps)

    def forward(self, data: Data) -> dict[str, Array]:
        present = [name for name in self.names if name in data]
        rest = {name: value for name, value in data.items() if name not in self.names}
        if not present:
            return rest
        if len(present) < len(self.names):
            missing = [name for name in self.names if name not in data]
            raise ValueError(
                f"Adapter: expected all latent sites {list(self.names)}, but {missing} are missing."
            )
        vector, _ = self._unconstrain(data)
        standard = (vector - self.mean) / self.scale
        return rest | {
            "inference_variables": jnp.where(self.heavy, jnp.arcsinh(standard), standard)
        }

    def inverse(self, data: Data) -> dict[str, Array]:
        rest = {name: value for name, value in data.items() if name != "inference_variables"}
        trace = self._constrain(data["inference_variables"], self._context(data))
        return rest | {name: trace[name]["value"] for name in self.names}

    def log_det_jac(self, data: Data) -> Array:
        return reduce(add, map(jnp.sum, self.log_dets(data).values()))

    def log_dets(self, data: Data) -> dict[str, Array]:
        """The log-determinant of each latent site, of its batch shape; :meth:`log_det_jac` adds up.

        :param data: values of the sites and of the context on which they depend.
        """
        vector, own = self._unconstrain(data)
        standard = (vector - self.mean) / self.scale
        log_slope = jnp.where(self.heavy, -0.5 * jnp.log1p(standard**2), 0) - jnp.log(self.scale)
        return {
            name: own[name] + _summed(piece, jnp.ndim(own[name]))
            for name, piece in self.split(log_slope).items()
        }

    def _context(self, data: Data) -> dict[str, Array]:
        if missing := [name for name in self.needs if name not in data]:
            raise ValueError(
                f"Adapter: the priors of {list(self.names)} depend on the context {missing}, which "
                "is missing from the data."
            )
        return {name: data[name] for name in self.needs}

    def _constrain(self, vector: Array, context: Data) -> OrderedDict:
        """Trace of the model at an inference vector; sites left out are simulated."""
        # the inner `where` keeps the gradient of the branch not taken finite
        squashed = jnp.where(self.heavy, vector, 0)
        standard = jnp.where(self.heavy, jnp.sinh(squashed), vector)
        pieces = self.split(standard * self.scale + self.mean)
        maps = {site_map.name: site_map for site_map in self.maps}

        def value_of(site: Mapping) -> Array | None:
            name = site["name"]
            if name not in maps:
                return None
            return maps[name].inverse(site["fn"], _at_index(pieces[name], site))

        return self.simulator.trace(random.key(0), context, substitute_fn=value_of)

    def describe(self) -> list[str]:
        return [
            f"{site_map.name}: inferred, {_numbers(site_map.shape)} "
            + ("by the normal quantiles of its prior" if site_map.by_prior else "by its support")
            for site_map in self.maps
        ]

    def _unconstrain(self, data: Data) -> tuple[Array, dict[str, Array]]:
        """The vector before it is standardized, and the log-determinants of the sites."""
        values = {name: data[name] for name in self.names} | self._context(data)
        trace = self.simulator.trace(random.key(0), values)
        with numpyro.validation_enabled(False):  # values may be missing, or left a support
            pairs = {
                m.name: m.forward(trace[m.name]["fn"], trace[m.name]["value"]) for m in self.maps
            }
        vector = jnp.concatenate([jnp.ravel(z) for z, _ in pairs.values()])
        return vector, {name: log_det for name, (_, log_det) in pairs.items()}

    def split(self, vector: Array) -> dict[str, Array]:
        """The numbers of each site, of its unconstrained shape.

        :param vector: shape ``(size,)``.
        """
        sizes = [int(np.prod(site_map.shape)) for site_map in self.maps]
        parts = jnp.split(vector, np.cumsum(sizes)[:-1])
        return {
            site_map.name: part.reshape(site_map.shape)
            for site_map, part in zip(self.maps, parts, strict=True)
        }


def _summed(terms: Array, batch_ndim: int) -> Array:
    """Sum over the axes of the event."""
    return jnp.sum(terms, axis=tuple(range(batch_ndim, jnp.ndim(terms))))


def _at_index(value: Array, site: Mapping) -> Array:
    """The value of the current step where the site stands inside a ``scan``."""
    index = site["infer"].get("_scan_current_index")
    return value if index is None else value[index]


def _numbers(shape: tuple[int, ...]) -> str:
    count = int(np.prod(shape))
    return "1 number" if count == 1 else f"{count} numbers"


def unconstrain_latents(
    simulator: ModelSimulator,
    names: tuple[str, ...],
    pilot: Draws,
    *,
    prior_to_normal: bool = True,
) -> UnconstrainLatents:
    """Choose the map of each site and standardize by pilot draws.

    :param simulator: the traced model.
    :param names: the latent sites to infer, in trace order.
    :param pilot: draws of all sites, a leading axis of simulations.
    :param prior_to_normal: whether to map by the prior's CDF where that can be done.
    :raises ValueError: where a site's support has no bijection, or depends on sites left out.
    """
    context = tuple(s.name for s in simulator.sites.values() if s.role == "context")
    values = {name: pilot[name][0] for name in (*names, *context)}
    varying = varying_sites(simulator, values)
    needs = context if _depends(simulator, names, values, context) else ()
    maps: list[SiteMap] = []

    def choose() -> None:  # traced for types and shapes alone: nothing is computed
        trace = simulator.trace(random.key(0), values)
        for name in names:
            site, fn = simulator.sites[name], trace[name]["fn"]
            maps.append(_choose_map(site, fn, varying[name], prior_to_normal))

    jax.eval_shape(choose)
    size = sum(int(np.prod(site_map.shape)) for site_map in maps)
    dtype = jnp.result_type(float)
    raw = UnconstrainLatents(
        simulator,
        tuple(maps),
        np.zeros(size, dtype),
        np.ones(size, dtype),
        np.zeros(size, bool),
        needs,
    )
    draws = jax.jit(jax.vmap(raw.forward))({name: pilot[name] for name in (*names, *needs)})
    vectors = np.asarray(draws["inference_variables"])
    exact = np.concatenate([np.full(int(np.prod(m.shape)), m.by_prior) for m in maps])
    return UnconstrainLatents(simulator, tuple(maps), *robust_moments(vectors, exact), needs)


def _depends(
    simulator: ModelSimulator, names: Sequence[str], values: Draws, context: Sequence[str]
) -> bool:
    """Whether the priors of the inferred sites vary with the context."""
    if not context:
        return False
    free = varying_sites(simulator, {name: values[name] for name in names})
    return any(free[name].distribution for name in names)


def _choose_map(
    site: Site, fn: dist.Distribution, varying: Varying, prior_to_normal: bool
) -> SiteMap:
    if varying.support:
        raise ValueError(
            f"Site '{site.name}' is to be inferred, but its support depends on sites that are not. "
            "Infer those too: add them to `sites`. Discrete ones cannot be inferred, so that no "
            "support of an inferred site may depend on them."
        )
    if fn.support.is_discrete:
        raise ValueError(
            f"Site '{site.name}' is discrete and cannot be inferred as a density. Leave it out of "
            "`sites`: it is then marginalized by simulation."
        )
    if not has_bijection(fn.support):
        raise ValueError(
            f"Site '{site.name}' has support {fn.support}, which has no bijection to real numbers. "
            "Leave it out of `sites`, or write the model with an unconstrained parametrization "
            "of it, for example through `numpyro.handlers.reparam`."
        )
    by_prior = prior_to_normal and not varying.distribution and has_quantiles(base_distribution(fn))
    shape = biject_to(fn.support).inverse_shape(site.shape)
    follows_trace = by_prior or not varying.distribution
    return SiteMap(site.name, tuple(shape), by_prior, None if follows_trace else site.support)


def robust_moments(
    draws: np.ndarray, exact: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robust moments, and which tails are heavy; those mapped by their prior are standard."""
    draws = draws[np.isfinite(draws).all(-1)]
    low, middle, high = np.quantile(draws, [0.1587, 0.5, 0.8413], axis=0)
    scale = np.where(high > low, (high - low) / 2, 1.0)
    mean, scale = np.where(exact, 0.0, middle), np.where(exact, 1.0, scale)
    heavy = ~exact & (np.abs(draws - mean).max(0) > _HEAVY * scale)
    return mean.astype(draws.dtype), scale.astype(draws.dtype), heavy
