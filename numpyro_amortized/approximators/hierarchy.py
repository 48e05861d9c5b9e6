# SPDX-License-Identifier: Apache-2.0
"""Posteriors that factorize over groups: their networks, other numbers of groups, local draws."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.factorized import of_other_size
from numpyro_amortized.adapters.groups import CollectGroups
from numpyro_amortized.approximators.conditions import Conditions, check_latents
from numpyro_amortized.approximators.context import NetworkSpec, network_name
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.hierarchical import Hierarchical
from numpyro_amortized.sharding import map_shares
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    from numpyro_amortized.approximators.continuous import ContinuousApproximator

__all__ = [
    "InferenceSpec",
    "ancestral_draws",
    "check_options",
    "describe_networks",
    "hierarchical_network",
    "local_draws",
    "number_of_groups",
    "resized",
]

InferenceSpec = NetworkSpec | Mapping[str, NetworkSpec]
_PARTS = ("globals", "locals")
_LOCALS = partial(CouplingFlow, depth=2)


def check_options(
    spec: InferenceSpec,
    summary_regularizer: Callable[[Array], Array] | None,
    groups: CollectGroups | None,
) -> None:
    """
    :raises ValueError: where a mapping of networks has other names than the factors, or there are
        no factors; where one ready network is given for both; where summaries are to be
        regularized, of which there are two kinds.
    """
    if groups is not None and summary_regularizer is not None:
        raise ValueError(
            "summary_regularizer: expected none where the posterior factorizes over groups: there "
            "are summaries of each group and of all. Pass adapter=Adapter.for_posterior(simulator) "
            "to infer all latents as one vector."
        )
    if isinstance(spec, Mapping) and (groups is None or not spec.keys() <= set(_PARTS)):
        why = "" if groups else ", and only where the posterior factorizes over groups"
        raise ValueError(f"inference_network: expected names from {_PARTS}{why}, got {list(spec)}.")
    if groups is not None and isinstance(spec, nnx.Module):
        raise ValueError(
            "inference_network: expected a network for the global latents and one for those of a "
            "group, {'globals': ..., 'locals': ...}, or a class for both, got a ready "
            f"{network_name(spec)}."
        )


def _parts(spec: InferenceSpec) -> dict[str, NetworkSpec]:
    """The networks of both factors."""
    defaults: dict[str, NetworkSpec] = {"globals": CouplingFlow, "locals": _LOCALS}
    if isinstance(spec, Mapping):
        return defaults | dict(spec)
    return defaults if spec is CouplingFlow else dict.fromkeys(_PARTS, spec)


def hierarchical_network(
    spec: InferenceSpec, groups: CollectGroups, summary_network: Any
) -> NetworkSpec:
    """The network of the whole posterior, of which the sizes and random streams are missing."""
    factors, parts = groups.factors, _parts(spec)
    return partial(
        Hierarchical,
        num_globals=factors.num_globals,
        num_groups=factors.num_groups,
        group_size=summary_network.group_size,
        summary_size=summary_network.summary_size,
        globals=parts["globals"],
        locals=parts["locals"],
    )


def describe_networks(network: InferenceSpec, groups: CollectGroups | None) -> list[str]:
    """Lines that say which networks infer what."""
    if groups is None:
        assert not isinstance(network, Mapping)
        return [f"inference network: {network_name(network)}"]
    if isinstance(network, Hierarchical):
        parts: dict[str, NetworkSpec] = {"globals": network.globals, "locals": network.locals}
    else:
        parts = _parts(network)
    names = (f"{network_name(parts[name])} for the {name}" for name in _PARTS)
    return [f"inference network: {', '.join(names)}"]


def number_of_groups(
    approximator: "ContinuousApproximator",
    groups: CollectGroups,
    conditions: Mapping[str, ArrayLike],
    *,
    any_sizes: bool,
    warn: bool,
) -> int | None:
    """The number of groups in data, ``None`` where it is that of the approximator.

    :param any_sizes: whether data sets may be padded to the greatest size.
    :param warn: whether to warn of numbers beyond those of the training.
    :raises ValueError: where data sets are padded, and may not.
    """
    varying = groups.varying if groups.is_varying else None
    if varying is not None and varying.name in conditions:
        if any_sizes:
            return None
        raise ValueError(
            f"conditions: expected data sets of one size, without '{varying.name}' and without "
            "padding: densities are those of a number of groups."
        )
    size = groups.count(approximator.sites, conditions)
    if size is None or (varying is None and size == groups.factors.num_groups):
        return None
    low, high = (groups.factors.num_groups,) * 2 if varying is None else (varying.low, varying.high)
    if warn and not low <= size <= high:
        trained = f"{low} to {high}" if low < high else str(low)
        warnings.warn(
            f"{size} groups of plate '{groups.plate}', but training saw {trained}: the posterior "
            f"of {list(groups.factors.global_sites)} is extrapolated. Train with sizes= of a range "
            "that contains the number of groups.",
            stacklevel=4,
        )
    return size


def resized(
    approximator: "ContinuousApproximator", groups: CollectGroups, size: int
) -> tuple[ModelSimulator, Adapter]:
    """The model with another number of groups, and its adapter.

    :raises ValueError: where the model cannot have another number.
    """
    source = approximator.source
    assert isinstance(source, ModelSimulator)
    simulator = (
        source.at_size(size) if groups.is_varying else source.with_plate_of(groups.plate, size)
    )
    return simulator, of_other_size(approximator.adapter, simulator, size)


def ancestral_draws(
    approximator: "ContinuousApproximator",
    num_samples: int,
    conditions: Mapping[str, ArrayLike],
    ancestral_conditions: Mapping[str, ArrayLike],
) -> tuple[Callable[..., Batch], Conditions, Batch]:
    """See :meth:`ContinuousApproximator.ancestral_sample`.

    :return: keys, globals and data to draws; the data; the globals ``(num_conditions,
        num_samples, *shape)``.
    """
    groups = approximator.adapter.groups
    if groups is None:
        raise ValueError(
            "ancestral_sample: the posterior of this approximator does not factorize over groups. "
            "Pass adapter=Adapter.for_posterior(simulator, hierarchical=True)."
        )
    checked = approximator.check_conditions(conditions)
    names = groups.factors.global_sites
    if missing := [name for name in names if name not in ancestral_conditions]:
        raise ValueError(
            f"ancestral_conditions: expected the global latents {list(names)}, missing: {missing}."
        )
    latents, has_samples = check_latents(approximator.sites, names, ancestral_conditions, checked)
    lengths = {x.shape[1] for x in latents.values()}
    if has_samples and lengths != {num_samples}:
        raise ValueError(
            f"ancestral_conditions: expected num_samples={num_samples} values for each data set, "
            f"or one without that axis, got {lengths.pop()}."
        )
    latents = {
        name: jnp.broadcast_to(x, (len(x), num_samples, *x.shape[2:]))
        for name, x in latents.items()
    }
    graphdef, state = nnx.split(approximator.networks)
    return partial(approximator.draw_locals, graphdef, state), checked, latents


def local_draws(approximator: "ContinuousApproximator") -> Callable[..., Batch]:
    """Networks, keys, globals ``(num_conditions, num_samples, *shape)`` and data to local draws."""
    groups = approximator.adapter.groups
    assert groups is not None
    factors, sites = groups.factors, approximator.sites
    latent_axes = groups.latent_axes(sites)

    def one_data_set(
        network: Hierarchical, rng_key: Array, latents: Batch, context: Array, given: Batch
    ) -> Batch:
        own = jax.vmap(partial(_global_variables, approximator), in_axes=(0, None))(latents, given)
        rows, _ = network.sample_locals(rng_key, own, context[None])
        flat = jnp.concatenate([own, rows.reshape(len(rows), -1)], axis=-1)
        values = jax.vmap(approximator.latents_at, in_axes=(0, None))(flat, given)
        # draws, then the site's axes: groups first
        return {n: jnp.moveaxis(values[n], latent_axes[n] + 1, 0) for n in factors.local_sites}

    def draw(
        graphdef: nnx.GraphDef, state: nnx.State, keys: Array, latents: Batch, given: Batch
    ) -> Batch:
        network = nnx.merge(graphdef, state)["inference_network"]
        context = approximator.encode(graphdef, state, given)
        one = partial(one_data_set, network)
        rows = keys, latents, context, given
        return map_shares(lambda *rows: jax.lax.map(lambda row: one(*row), rows), rows)

    return jax.jit(draw, static_argnums=0)


def _global_variables(
    approximator: "ContinuousApproximator", latents: Batch, given: Batch
) -> Array:
    """The network's variables of the global latents; those of the groups are drawn to get them."""
    source, groups = approximator.source, approximator.adapter.groups
    assert isinstance(source, ModelSimulator) and groups is not None
    context = {n: x for n, x in given.items() if approximator.sites[n].role == "context"}
    trace = source.trace(random.key(0), {**latents, **context})
    drawn = {name: trace[name]["value"] for name in groups.factors.local_sites}
    inputs = approximator.adapter.forward({**latents, **drawn, **context})
    return inputs["inference_variables"][: groups.factors.num_globals]
