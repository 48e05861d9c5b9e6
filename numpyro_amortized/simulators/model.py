# SPDX-License-Identifier: Apache-2.0
"""A NumPyro model as a simulator."""

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.simulators.arguments import Arguments, model_signature
from numpyro_amortized.simulators.base import TraceableSimulator, typed_key
from numpyro_amortized.simulators.context import Context, context_sites
from numpyro_amortized.simulators.leaks import data_leaves, refuse_leaks
from numpyro_amortized.simulators.roles import Roles, assign_roles
from numpyro_amortized.simulators.sizes import data_sized
from numpyro_amortized.simulators.tracing import Site, read_sites, run_model
from numpyro_amortized.simulators.unobserve import unwrap
from numpyro_amortized.simulators.varying_size import (
    VaryingSize,
    check_sizes,
    crop_axes,
    find_varying_size,
    pad_axes,
    resized,
)

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
    :param context: key to keyword arguments of the model, such as covariates or design points,
        which are drawn for every simulation; inference is then amortized over them.
    :param sizes: the name of a plate, or of the argument that sets its size, to the least and the
        greatest size; it is drawn for every simulation. A context array that has the greatest
        size is cropped with it.
    :param kwargs: the model's keyword arguments.
    :raises ValueError: if the model has no observed or no latent site, names in ``observed`` are
        unknown, data leak into the simulation, or a prior is improper.
    :raises NotImplementedError: if the model has ``factor`` statements.
    :raises TypeError: if the model is no function, or shapes or Python control flow depend on
        sampled values.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        observed: Sequence[str] | None = None,
        context: Context | None = None,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        **kwargs: Any,
    ) -> None:
        if not callable(model):
            raise TypeError(
                "model: expected a NumPyro model, a function that is called with the arguments "
                f"that follow it, got {type(model).__name__}."
            )
        self.model, self.args, self.kwargs = model, args, kwargs
        self._observed, self._context = observed, context
        self._context_sites = {} if context is None else context_sites(context, model, args, kwargs)
        self._varying_size: VaryingSize | None = None
        if sizes is not None:
            bounds = check_sizes(sizes)
            self._arguments = self._sized_arguments(bounds[0])
            self.args, self.kwargs = self._arguments(bounds[-1])
        names = (observed,) if isinstance(observed, str) else observed
        example = {} if context is None else dict(context(random.key(0)))
        run = partial(run_model, model, args=self.args, kwargs=self.kwargs | example)
        roles = assign_roles(run, names)
        self._fixed = roles.fixed
        sites = read_sites(self.trace, roles.of, roles.scanned)
        _check_roles(sites, roles)
        for message in roles.warnings:
            _warn(message)
        self._data = {name: _checked(sites[name], value) for name, value in roles.data.items()}
        sites = self._context_sites | self._with_data_sized(sites, example)
        if sizes is not None:
            sites = self._with_varying_size(sites, bounds)
        self._sites = MappingProxyType(sites)

    @property
    def sites(self) -> Mapping[str, Site]:
        """The context, if there is any, and the latent, observed and deterministic sites."""
        return self._sites

    @property
    def varying_size(self) -> VaryingSize | None:
        """The size that varies from simulation to simulation, ``None`` if there is none."""
        return self._varying_size

    def at_size(self, size: int) -> "ModelSimulator":
        """
        The simulator of one size, where the size varies.

        :param size: within the range of ``sizes``; beyond it, the context is repeated.
        """
        varying = self._varying_size
        if varying is None:
            raise ValueError("at_size: no size varies; pass sizes= to ModelSimulator.")
        args, kwargs = self._arguments(size)
        context = self._context
        if context is not None:
            context = partial(_of_size, context, varying.axes, size)
        return ModelSimulator(self.model, *args, observed=self._observed, context=context, **kwargs)

    def with_plate_of(self, plate: str, size: int) -> "ModelSimulator":
        """
        The simulator with another number of data, where none varies.

        :param plate: name of a plate that is sized by the data.
        :param size: that of the plate.
        :raises ValueError: if the plate is not sized by the data, or other arguments are, too.
        """
        args, kwargs = self._sized_arguments(plate)(size)
        return ModelSimulator(self.model, *args, observed=self._observed, **kwargs)

    def with_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "ModelSimulator":
        """
        The simulator with other values of the model's arguments, of the same shapes.

        :param args: the model's arguments.
        :param kwargs: its keyword arguments.
        """
        other = copy(self)
        other.args, other.kwargs = args, dict(kwargs)
        return other

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
        if self._context is None and self._varying_size is None:
            return _values(self.trace(rng_key), self._sites)
        context_key, size_key, model_key = random.split(typed_key(rng_key), 3)
        context = {} if self._context is None else dict(self._context(context_key))
        if self._varying_size is None:
            return context | self._draw(model_key, context)
        return context | self._draw_sized(size_key, model_key, context, self._varying_size)

    def simulate_given(self, rng_key: Array, arguments: Mapping[str, Any]) -> dict[str, Array]:
        """
        Draws every site once, with some arguments of the model replaced. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param arguments: by name; the model has no context or sizes of its own.
        :return: site name to value, of the site's own shape.
        """
        bound = model_signature(self.model).bind_partial(*self.args, **self.kwargs)
        names = [name for name in arguments if name in bound.signature.parameters]
        bound.arguments |= {name: arguments[name] for name in names}
        kwargs = bound.kwargs | {n: x for n, x in arguments.items() if n not in names}
        trace = run_model(self.model, rng_key, bound.args, kwargs, keep=self._fixed)
        return _values(trace, self._sites)

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
            distribution in the trace is that at these values. ``None`` sets none. A context
            that is not among them is drawn; where the size varies, the trace has the full one.
        :param substitute_fn: as for :class:`numpyro.handlers.substitute`.
        :return: NumPyro's trace: site name to its record, with ``fn`` and ``value``.
        :raises ValueError: if ``values`` names a site that the model has not.
        """
        values = dict(values or {})
        if values and (unknown := set(values) - {*self._sites, *self._fixed}):
            raise ValueError(
                f"values: no sites named {sorted(unknown)}; the model has {list(self._sites)}."
            )
        if self._varying_size is not None:
            values.pop(self._varying_size.name, None)
        context = {name: values.pop(name) for name in self._context_sites if name in values}
        if self._context is not None and len(context) < len(self._context_sites):
            context = {**self._context(random.fold_in(typed_key(rng_key), 0)), **context}
        return run_model(
            self.model,
            rng_key,
            self.args,
            self.kwargs | context,
            keep=self._fixed,
            values=values,
            substitute_fn=substitute_fn,
        )

    def _draw(self, rng_key: Array, context: Mapping[str, Array]) -> dict[str, Array]:
        names = [name for name in self._sites if name not in self._context_sites]
        return _values(self.trace(rng_key, context), names)

    def _draw_sized(
        self, size_key: Array, rng_key: Array, context: Mapping[str, Array], varying: VaryingSize
    ) -> dict[str, Array]:
        """A draw of full size, of which the first members are the simulation."""
        names = [n for n in self._sites if n not in (*self._context_sites, varying.name)]
        if varying.is_padded:
            size = random.randint(size_key, (), varying.low, varying.high + 1)
            return _values(self.trace(rng_key, context), names) | {varying.name: size}

        def draw(length: int, rng_key: Array) -> dict[str, Array]:
            trace = self._trace_at(varying.axes, length, rng_key, context)
            return pad_axes(_values(trace, names), varying.axes, varying.high)

        index = random.randint(size_key, (), 0, len(varying.lengths))
        values = lax.switch(index, [partial(draw, n) for n in varying.lengths], rng_key)
        return values | {varying.name: jnp.asarray(varying.lengths)[index]}

    def _trace_at(
        self,
        axes: Mapping[str, tuple[int, ...]],
        size: int,
        rng_key: Array,
        values: Mapping[str, Array],
    ) -> OrderedDict[str, dict[str, Any]]:
        """Traces the model at one size; the context may be that of the full size."""
        args, kwargs = self._arguments(size)
        context = {} if self._context is None else dict(self._context(rng_key))
        context |= {name: values[name] for name in context if name in values}
        values = {name: value for name, value in values.items() if name not in context}
        kwargs = kwargs | crop_axes(context, axes, size)
        return run_model(self.model, rng_key, args, kwargs, keep=self._fixed, values=values)

    def _sized_arguments(self, name: str) -> Callable[[int], tuple[tuple[Any, ...], dict]]:
        """The model's arguments at a size: that of an argument, or of the data in a plate."""
        args, kwargs = self.args, self.kwargs
        signature = inspect.signature(self.model)
        if name in signature.parameters:
            if name in signature.bind_partial(*args, **kwargs).arguments:
                raise ValueError(f"sizes: '{name}' varies, but is also passed; leave it out.")
            return lambda size: (args, kwargs | {name: size})
        if self._context is not None:
            raise ValueError(
                f"sizes: '{name}' is no argument of the model. With context=, make the size an "
                "argument: the model is then called with both."
            )
        base = ModelSimulator(self.model, *args, observed=self._observed, **kwargs)
        sizes = {n for site in base.sites.values() for plate, _, n in site.plates if plate == name}
        if not sizes:
            raise ValueError(
                f"sizes: '{name}' is neither an argument of the model nor one of its plates."
            )
        arguments = Arguments.of(self.model, args, kwargs)
        data = data_leaves(arguments, base.passed) if base.data else []
        return partial(resized, arguments, data, sizes.pop())

    def _with_varying_size(
        self, sites: dict[str, Site], bounds: tuple[str, int, int]
    ) -> dict[str, Site]:
        """Finds what has the size that varies, and whether simulations may be padded."""
        varying = find_varying_size(bounds, sites, self._trace_at)
        self._varying_size = varying
        size = Site(varying.name, "context", (), jnp.dtype(jnp.int32), None, (), 0)
        sized = {n: s._replace(data_sized=varying.axes.get(n, ())) for n, s in sites.items()}
        return {varying.name: size} | sized

    def _with_data_sized(
        self, sites: dict[str, Site], context: Mapping[str, Any]
    ) -> dict[str, Site]:
        """Finds the data among the arguments, and refuses them if they leak."""
        arguments = Arguments.of(self.model, self.args, {**self.kwargs, **context})
        data = data_leaves(arguments, self.passed) if self._data else []
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

    def passed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The values that the observed sites come with, for these arguments of the model."""
        return _values(run_model(self.model, random.key(0), args, kwargs, keep=None), self._data)

    def _simulated(
        self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Parameters too, since a discrete value is often the same under other parameters."""
        trace = run_model(self.model, random.key(0), args, kwargs, keep=self._fixed)
        return {name: _with_parameters(trace[name]) for name in names}

    def _shapes(
        self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        run = partial(run_model, self.model, keep=self._fixed)
        shapes = jax.eval_shape(lambda: _values(run(random.key(0), args, kwargs), names))
        return {name: x.shape for name, x in shapes.items()}


def _values(trace: Mapping[str, dict[str, Any]], names: Iterable[str]) -> dict[str, Array]:
    return {name: jnp.asarray(trace[name]["value"]) for name in names}


def _of_size(
    context: Context, axes: Mapping[str, tuple[int, ...]], size: int, rng_key: Array
) -> dict[str, Array]:
    drawn = dict(context(rng_key))
    return crop_axes(pad_axes(drawn, axes, size), axes, size)


def _with_parameters(site: Mapping[str, Any]) -> Array:
    parameters = jax.tree.leaves(unwrap(site["fn"])) if site["type"] == "sample" else []
    arrays = [jnp.ravel(jnp.asarray(x)) for x in (site["value"], *parameters)]
    return jnp.concatenate([x.astype(jnp.result_type(float)) for x in arrays])


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
