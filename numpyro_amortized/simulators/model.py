# SPDX-License-Identifier: Apache-2.0
"""A NumPyro model as a simulator."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.simulators.arguments import Arguments
from numpyro_amortized.simulators.base import TraceableSimulator
from numpyro_amortized.simulators.leaks import data_leaves, refuse_leaks
from numpyro_amortized.simulators.roles import Roles, assign_roles
from numpyro_amortized.simulators.sizes import data_sized
from numpyro_amortized.simulators.tracing import Site, read_sites, run_model

__all__ = ["ModelSimulator"]

_PACKAGE = str(Path(__file__).parents[1])


class ModelSimulator(TraceableSimulator):
    """
    Simulates a NumPyro model, including the sites it observes.

    The model and its arguments are those one would give to MCMC; the data tell which sites are
    observed and how large they are, and are not used otherwise. This is checked: a model that
    also uses its data as a covariate or to start a recursion is refused. Data that reach the model
    in a closure, and not as an argument, cannot be checked.

    Sites with ``obs=`` are observed. A site fixed by :class:`numpyro.handlers.condition` (or
    ``substitute``) is observed if its distribution depends on a latent site; otherwise it stays
    fixed, and what is inferred is the posterior given its value.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> simulator = ModelSimulator(model, jnp.zeros(5))
        >>> {name: site.role for name, site in simulator.sites.items()}
        {'mu': 'latent', 'y': 'observed'}
        >>> simulator.sample(random.key(0), 100)["y"].shape
        (100, 5)

    :param model: a NumPyro model.
    :param args: its arguments, data included.
    :param observed: names of the observed sites, where they are not those that come with data,
        or where no data are passed. They may be deterministic sites.
    :param kwargs: the model's keyword arguments.
    :raises ValueError: if the model has no observed or no latent site, names in ``observed`` are
        unknown, data leak into the simulation, or a prior is improper.
    :raises NotImplementedError: if the model has ``factor`` statements.
    :raises TypeError: if shapes or Python control flow depend on sampled values.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        observed: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        names = (observed,) if isinstance(observed, str) else observed
        roles = assign_roles(partial(run_model, model, args=args, kwargs=kwargs), names)
        self._fixed = roles.fixed
        sites = read_sites(self.trace, roles.of, roles.scanned)
        _check_roles(sites, roles)
        for message in roles.warnings:
            _warn(message)
        self._data = {name: _checked(sites[name], value) for name, value in roles.data.items()}
        self._sites = MappingProxyType(self._with_data_sized(sites))

    @property
    def sites(self) -> Mapping[str, Site]:
        """The latent, observed and deterministic sites, in trace order."""
        return self._sites

    @property
    def data(self) -> dict[str, np.ndarray]:
        """The values that came with the observed sites; empty if none did."""
        return dict(self._data)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of the sites that stay at the value they came with."""
        return self._fixed

    def simulate(self, rng_key: Array) -> dict[str, Array]:
        """
        Draws every site of :attr:`sites` once. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :return: site name to value, of the site's own shape.
        """
        trace = self.trace(rng_key)
        return {name: jnp.asarray(trace[name]["value"]) for name in self._sites}

    def trace(
        self,
        rng_key: Array,
        values: Mapping[str, ArrayLike] | None = None,
        *,
        substitute_fn: Callable[[dict[str, Any]], Array | None] | None = None,
    ) -> OrderedDict[str, dict[str, Any]]:
        """
        Traces the model with nothing observed. Pure and traceable.

        :param rng_key: a key, for the sites that are drawn.
        :param values: site name to the value of one event, of the site's own shape (sites in a
            ``scan`` included); these sites, of whatever role, are set to it, and every
            distribution in the trace is that at these values. ``None`` sets none.
        :param substitute_fn: as for :class:`numpyro.handlers.substitute`.
        :return: NumPyro's trace: site name to its record, with ``fn`` and ``value``.
        :raises ValueError: if ``values`` names a site that the model has not.
        """
        if values and (unknown := set(values) - {*self._sites, *self._fixed}):
            raise ValueError(
                f"values: no sites named {sorted(unknown)}; the model has {list(self._sites)}."
            )
        return run_model(
            self.model,
            rng_key,
            self.args,
            self.kwargs,
            keep=self._fixed,
            values=values,
            substitute_fn=substitute_fn,
        )

    def _with_data_sized(self, sites: dict[str, Site]) -> dict[str, Site]:
        """Finds the data among the arguments, and refuses them if they leak."""
        arguments = Arguments.of(self.model, self.args, self.kwargs)
        data = data_leaves(arguments, self._passed) if self._data else []
        computed = {name for name, site in sites.items() if site.role == "deterministic"}
        simulated = partial(self._simulated, tuple(sites))
        if stale := refuse_leaks(arguments, data, simulated, harmless=computed):
            _warn(
                f"Deterministic sites {stale} are computed from the data passed, also in "
                "simulations; they are left out. Compute them from the posterior draws."
            )
            sites = {name: site for name, site in sites.items() if name not in stale}
        shapes = partial(self._shapes, tuple(sites))
        before = {name: site.shape for name, site in sites.items()}
        axes = data_sized(arguments, data, shapes, before)
        return {name: s._replace(data_sized=axes.get(name, ())) for name, s in sites.items()}

    def _passed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        trace = run_model(self.model, random.key(0), args, kwargs, keep=None)
        return {name: jnp.asarray(trace[name]["value"]) for name in self._data}

    def _simulated(
        self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        trace = run_model(self.model, random.key(0), args, kwargs, keep=self._fixed)
        return {name: jnp.asarray(trace[name]["value"]) for name in names}

    def _shapes(
        self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        shapes = jax.eval_shape(lambda: self._simulated(names, args, kwargs))
        return {name: x.shape for name, x in shapes.items()}


def _warn(message: str) -> None:
    warnings.warn(message, skip_file_prefixes=(_PACKAGE,), stacklevel=2)


def _check_roles(sites: Mapping[str, Site], roles: Roles) -> None:
    if not any(site.role == "latent" for site in sites.values()):
        raise ValueError(
            f"The model has no latent site: {list(sites)} are observed or deterministic, "
            f"and {list(roles.fixed)} fixed."
        )


def _checked(site: Site, value: np.ndarray) -> np.ndarray:
    try:
        return np.array(np.broadcast_to(value, site.shape))
    except ValueError:
        raise ValueError(
            f"Site '{site.name}': its data have shape {np.shape(value)}, but its distribution has "
            f"{site.shape}; reshape one of them to match the other."
        ) from None
