# SPDX-License-Identifier: Apache-2.0
"""Runs of a model as a simulator, and what they tell about its sites."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.simulators.binomial import terminating_binomials
from numpyro_amortized.simulators.exclusive import ONE_AT_A_TIME
from numpyro_amortized.simulators.seeding import seeded
from numpyro_amortized.simulators.unobserve import WRAPPERS, Notes, simulate_observed, unwrap

__all__ = ["Site", "has_bijection", "read_sites", "run_model"]

# Enough that a value which depends on a draw is not the same in all of them by chance.
_NUM_PROBES = 8
_PROCESSES = dist.GaussianRandomWalk | dist.EulerMaruyama | dist.GaussianStateSpace


class Site(NamedTuple):
    """
    What is known of a site without running the model again.

    ``support`` is without ``independent``. Where its bounds depend on other sites it is the
    class of the constraint: the bounds must be read from a trace at the values in question.
    ``plates`` holds (name, dim, size), with dim counted from the right of the batch shape.
    ``mask`` has the batch shape; entries that are False are no part of the likelihood.
    ``has_density`` is False for sites that are deterministic given the others, observed or not.
    """

    name: str
    role: str  # "latent", "observed", "deterministic", or "context": drawn outside the model
    shape: tuple[int, ...]  # of one simulation: batch and event
    dtype: jnp.dtype
    support: Constraint | type[Constraint] | None
    plates: tuple[tuple[str, int, int], ...]
    event_dim: int
    data_sized: tuple[int, ...] = ()  # axes of `shape` whose length follows the data
    mask: np.ndarray | None = None
    scanned: bool = False  # the first axis is that of a `scan`
    time_axis: int | None = None  # that of a `scan`, or of a process in time
    has_density: bool = True

    @property
    def is_random(self) -> bool:
        """Whether the model draws it."""
        return self.role in ("latent", "observed")

    @property
    def is_given(self) -> bool:
        """Whether inference conditions on it."""
        return self.role in ("observed", "context")

    @property
    def event_mask(self) -> np.ndarray | None:
        """The mask with the rank of the value; ``None`` where no entry is left out."""
        if self.mask is None or self.mask.all():
            return None
        return np.reshape(self.mask, np.shape(self.mask) + (1,) * self.event_dim)


def has_bijection(support: Constraint | type[Constraint] | None) -> bool:
    """
    :param support: the support of a site, or the class of one.
    :return: whether NumPyro maps it to the reals by a bijection; none exists for discrete
        supports and for the sphere.
    """
    if isinstance(support, constraints.independent):
        return has_bijection(support.base_constraint)
    kind = support if isinstance(support, type) else type(support)
    return kind in biject_to._registry


def run_model(
    model: Callable[..., Any],
    rng_key: Array,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    keep: Collection[str] | None = (),
    values: Mapping[str, ArrayLike] | None = None,
    substitute_fn: Callable[[dict[str, Any]], Array | None] | None = None,
    notes: Notes | None = None,
) -> OrderedDict[str, dict[str, Any]]:
    """
    Traces a model whose observed sites are simulated. Pure and traceable.

    :param model: a NumPyro model.
    :param rng_key: a key.
    :param args: the model's arguments, as for MCMC.
    :param kwargs: its keyword arguments.
    :param keep: sites that stay at the value they come with; ``None`` keeps all.
    :param values: site name to value; these sites are set to it.
    :param substitute_fn: as for :class:`numpyro.handlers.substitute`.
    :param notes: filled in while the model runs.
    :return: NumPyro's trace.
    :raises TypeError: if shapes or Python control flow depend on sampled values.
    """
    notes = Notes() if notes is None else notes
    free = simulate_observed(model, keep=keep, values=values, notes=notes)
    run = seeded(free, rng_key)
    if substitute_fn is not None:
        run = handlers.substitute(run, substitute_fn=substitute_fn)
    # Simulations may leave a support by rounding; under jit nothing is validated either. What
    # traces a model may itself stand in a model, whose handlers must not see the sites.
    with (
        ONE_AT_A_TIME,
        terminating_binomials(),
        handlers.block(),
        numpyro.validation_enabled(False),
        _concretization_explained(notes),
    ):
        return handlers.trace(run).get_trace(*args, **kwargs)


@contextmanager
def _concretization_explained(notes: Notes) -> Iterator[None]:
    try:
        yield
    except (TypeError, IndexError) as error:
        if not any(word in str(error) for word in ("oncrete", "Tracer", "traced array")):
            raise
        place = f"after site '{notes.last}'" if notes.last else "before the first site"
        raise TypeError(
            f"The model cannot be simulated under jit: {place}, a shape or Python control flow "
            "(`if`, `for`, `int`, indexing by a mask) depends on sampled values, or NumPy is given "
            "some. Use jnp.where, numpyro.contrib.control_flow or a mask of fixed shape, and "
            "jax.numpy for functions and for arrays that are indexed."
        ) from error


def read_sites(
    simulate: Callable[[Array], Mapping[str, dict[str, Any]]],
    role: Callable[[str, dict[str, Any]], str | None],
    scanned: Collection[str],
) -> dict[str, Site]:
    """
    Reads the sites of a simulated model from its trace.

    :param simulate: key to trace.
    :param role: name and NumPyro site to a role, or to ``None`` for sites to leave out.
    :param scanned: names of sites inside a ``scan``.
    :return: name to site, in trace order, with ``data_sized`` still empty.
    :raises ValueError: if the mask of an observed site depends on sampled values.
    """
    sites: dict[str, Site] = {}
    supports: dict[str, Any] = {}

    def read(rng_key: Array) -> dict[str, Any]:
        arrays = {}
        for name, site in simulate(rng_key).items():
            if (kind := role(name, site)) is not None:
                sites[name] = _static_site(site, kind, name in scanned)
                bounds, supports[name] = _split_support(_support(site, kind))
                arrays[name] = (bounds, _mask(site) if kind == "observed" else None)
        return arrays

    arrays = probe(read)
    return {
        name: site._replace(
            support=_settled_support(supports[name], arrays[name][0]),
            mask=_settled_mask(site, arrays[name][1]),
        )
        for name, site in sites.items()
    }


def probe(read: Callable[[Array], Any]) -> Any:
    """
    :param read: key to arrays.
    :return: the arrays at a few keys, stacked along a new first axis.
    """
    # one after the other: vectorized, equal values may differ by rounding
    probes = jax.jit(lambda key: lax.map(read, random.split(key, _NUM_PROBES)))
    return jax.device_get(probes(random.key(0)))


def varies(x: np.ndarray) -> bool:
    """
    :param x: an array from :func:`probe`.
    :return: whether it differs between keys, by more than rounding.
    """
    return not np.allclose(x, x[:1], rtol=1e-4, atol=1e-30, equal_nan=True)


def _static_site(site: dict[str, Any], role: str, scanned: bool) -> Site:
    value, is_sample = site["value"], site["type"] == "sample"
    time_axis = _time_axis(site) if is_sample else None
    frames = site.get("cond_indep_stack", ())
    return Site(
        name=site["name"],
        role=role,
        shape=jnp.shape(value),
        dtype=jnp.result_type(value),
        support=None,
        plates=tuple((frame.name, frame.dim, int(frame.size)) for frame in frames),
        event_dim=site["fn"].event_dim if is_sample else 0,
        scanned=scanned,
        time_axis=0 if scanned else time_axis,
        has_density=is_sample and not isinstance(unwrap(site["fn"]), dist.Delta),
    )


def _time_axis(site: dict[str, Any]) -> int | None:
    fn = unwrap(site["fn"])
    return jnp.ndim(site["value"]) - fn.event_dim if isinstance(fn, _PROCESSES) else None


def _support(site: dict[str, Any], role: str) -> Constraint | None:
    if role == "deterministic":
        return None
    if site["type"] == "deterministic":
        return constraints.real
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _split_support(support: Constraint | None) -> tuple[list[Array], Any]:
    """The bounds, if any is traced, and what :func:`_settled_support` needs besides them."""
    bounds, structure = jax.tree.flatten(support)
    if any(isinstance(x, jax.core.Tracer) for x in bounds):
        return bounds, structure
    return [], support


def _settled_support(rest: Any, bounds: list[np.ndarray]) -> Constraint | type[Constraint] | None:
    if not bounds:
        return rest
    support = jax.tree.unflatten(rest, [x[0] for x in bounds])
    return type(support) if any(map(varies, bounds)) else support


def _mask(site: dict[str, Any]) -> Array | None:
    fn, mask = site.get("fn"), None
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            if fn.event_dim != site["fn"].event_dim:
                raise NotImplementedError(
                    f"Site '{site['name']}': a mask inside of `to_event` is not supported; "
                    "use a plate instead of `to_event`."
                )
            mask = jnp.asarray(fn._mask) if mask is None else mask & fn._mask
        fn = fn.base_dist
    if mask is None:
        return None
    shape = jnp.shape(site["value"])
    return jnp.broadcast_to(mask, shape[: len(shape) - site["fn"].event_dim])


def _settled_mask(site: Site, mask: np.ndarray | None) -> np.ndarray | None:
    if mask is not None and varies(mask):
        raise ValueError(
            f"Site '{site.name}': its mask depends on sampled values, so which data count is not "
            "known from the data. Model the selection as an observed site instead."
        )
    return None if mask is None else mask[0]
