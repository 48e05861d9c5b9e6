# SPDX-License-Identifier: Apache-2.0
"""Which sites of a model are observed, which stay fixed, and which models cannot be simulated."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random

from numpyro_amortized.simulators.tracing import probe, varies
from numpyro_amortized.simulators.unobserve import Notes, unwrap

__all__ = ["Roles", "assign_roles"]

Trace = Mapping[str, dict[str, Any]]


class Roles(NamedTuple):
    """What a simulator does with the sites of its model."""

    observed: tuple[str, ...]
    fixed: tuple[str, ...]  # sites that stay at the value they come with
    scanned: frozenset[str]
    data: dict[str, np.ndarray]  # the values that came with the observed sites
    warnings: tuple[str, ...]

    def of(self, name: str, site: Mapping[str, Any]) -> str | None:
        """
        :param name: of a site.
        :param site: NumPyro's record of it, in a simulated trace.
        :return: its role, or ``None`` if it is fixed or neither sample nor deterministic.
        """
        if name in self.fixed or site["type"] not in ("sample", "deterministic"):
            return None
        if name in self.observed:
            return "observed"
        is_random = site["type"] == "sample" and not isinstance(unwrap(site["fn"]), dist.Delta)
        return "latent" if is_random else "deterministic"


def assign_roles(run: Callable[..., Trace], observed: Sequence[str] | None) -> Roles:
    """
    Decides the role of every site that comes with a value.

    :param run: ``run(rng_key, keep=, notes=)`` gives a trace, as :func:`.tracing.run_model`.
    :param observed: names of the observed sites, or ``None`` for those that come with data.
    :return: the roles.
    :raises ValueError: if no site is observed, names are unknown, or information would be lost.
    :raises NotImplementedError: for ``factor`` statements, and what amounts to one.
    """
    notes = Notes()
    trace = _static_trace(run, notes)
    given = tuple(dict.fromkeys(notes.given))
    _check_names(observed, given, trace)
    if observed is None:
        candidates = [name for name in given if name in notes.conditioned]
    else:
        candidates = [name for name in given if name not in observed]
    data, densities, corrections = _probe_given(run, given, candidates)
    _refuse_corrections(corrections)
    derived = _derived(data, trace)
    depends = [name for name in candidates if name not in derived and varies(densities[name])]
    if observed is None:
        fixed = [name for name in candidates if name not in depends and name not in derived]
        observed = [name for name in given if name not in fixed and name not in derived]
    else:
        _refuse_loss(depends)
        fixed = [name for name in candidates if name not in derived]
    return Roles(
        observed=tuple(observed),
        fixed=tuple(fixed),
        scanned=frozenset(notes.scanned),
        data={name: data[name][0] for name in observed if name in data},
        warnings=tuple(_warnings(trace, notes)),
    )


class _Static(NamedTuple):
    is_delta: bool
    is_scaled: bool


def _static_trace(run: Callable[..., Trace], notes: Notes) -> dict[str, _Static]:
    static: dict[str, _Static] = {}

    def look(rng_key: jax.Array) -> None:
        for name, site in run(rng_key, keep=None, notes=notes).items():
            if site["type"] == "sample":
                _refuse_factor(name, site)
                is_delta = isinstance(unwrap(site["fn"]), dist.Delta)
                static[name] = _Static(is_delta, "plate_to_scale" in site)
            elif site["type"] == "deterministic":
                static[name] = _Static(True, False)

    jax.eval_shape(look, random.key(0))
    return static


def _probe_given(
    run: Callable[..., Trace], given: Iterable[str], candidates: Collection[str]
) -> tuple[dict[str, np.ndarray], ...]:
    """The given values, the log densities at those of the candidates, and those inside Deltas."""

    def read(rng_key: jax.Array) -> Any:
        passed = run(rng_key, keep=None)
        values = {name: jnp.asarray(passed[name]["value"]) for name in given}
        rest = run(rng_key, keep=candidates) if candidates else {}
        densities = {n: rest[n]["fn"].log_prob(rest[n]["value"]) for n in candidates}
        deltas = {n: unwrap(site["fn"]) for n, site in passed.items() if site["type"] == "sample"}
        deltas = {n: fn for n, fn in deltas.items() if isinstance(fn, dist.Delta)}
        return values, densities, {n: jnp.asarray(fn.log_density) for n, fn in deltas.items()}

    return probe(read)


def _derived(data: Mapping[str, np.ndarray], static: Mapping[str, _Static]) -> set[str]:
    """Sites whose given value is computed from other sites: reparametrizers make such."""
    derived = {name for name, value in data.items() if varies(value)}
    for name in derived:
        if not static[name].is_delta:
            raise NotImplementedError(
                f"Site '{name}' is observed at a value computed from other sites; simulation "
                "would ignore it. Give obs= the data themselves, and put the computation into "
                "the distribution, such as a TransformedDistribution."
            )
    return derived


def _refuse_factor(name: str, site: Mapping[str, Any]) -> None:
    if isinstance(unwrap(site["fn"]), dist.Unit):
        raise NotImplementedError(
            f"Site '{name}' is a numpyro.factor, which simulation would ignore. Write it as an "
            "observed site: numpyro.sample(name, distribution, obs=data)."
        )


def _refuse_corrections(log_densities: Mapping[str, np.ndarray]) -> None:
    for name, log_density in log_densities.items():
        if np.any(log_density != 0):
            raise NotImplementedError(
                f"Site '{name}' is a Delta with a log_density, which simulation would ignore, as "
                "it would a numpyro.factor. Write it as an observed site with a distribution."
            )


def _refuse_loss(depends: Sequence[str]) -> None:
    if depends:
        raise ValueError(
            f"observed: sites {depends} come with data and depend on latent sites, but are not "
            "named; their information would be lost. Add them to observed=, or do not pass "
            "their data."
        )


def _check_names(
    observed: Sequence[str] | None, given: Sequence[str], static: Mapping[str, _Static]
) -> None:
    unknown = [name for name in observed or () if name not in static]
    if unknown:
        raise ValueError(f"observed: no sites named {unknown}; the model has {list(static)}.")
    if not (given if observed is None else observed):
        raise ValueError(
            f"The model has no observed site among {list(static)}. Pass the data as for MCMC, or "
            "name the observed sites: ModelSimulator(model, observed=['y'])."
        )


def _warnings(static: Mapping[str, _Static], notes: Notes) -> Iterable[str]:
    scaled = [name for name, site in static.items() if site.is_scaled]
    if scaled:
        yield (
            f"numpyro.handlers.scale on sites {scaled} has no effect: a simulation cannot be drawn "
            "from a scaled density, so the posterior is that of the model without it."
        )
    for plate, (size, members) in notes.subsampled.items():
        yield (
            f"Plate '{plate}' takes {members} of {size} members: only the first {members} are "
            "simulated, and only their data are used. Drop subsample_size= to use all."
        )
