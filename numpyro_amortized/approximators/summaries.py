# SPDX-License-Identifier: Apache-2.0
"""Which networks summarize the data, by default and as the user says."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import nnx

from numpyro_amortized.adapters.summarized import Structure
from numpyro_amortized.approximators.context import NetworkSpec, network_name
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.convolution import Convolution
from numpyro_amortized.networks.deep_set import DeepSet
from numpyro_amortized.networks.fusion import Fusion
from numpyro_amortized.networks.gru import GRU

__all__ = ["SummarySpec", "describe_summary", "summary_spec"]

SummarySpec = NetworkSpec | Mapping[str, NetworkSpec]


def default_network(structure: Structure, num_axes: int) -> NetworkSpec:
    """The network of one array.

    :param structure: of its members.
    :param num_axes: of the members.
    """
    match structure:
        case Structure.SET:
            return DeepSet
        case Structure.SERIES:
            return partial(GRU, kernel_size=3)
        case Structure.IMAGE:
            return partial(Convolution, num_spatial_dims=num_axes)


def summary_spec(
    given: SummarySpec | None, structures: Mapping[str, Structure], row: Batch
) -> NetworkSpec:
    """The network that summarizes everything.

    :param given: by the user: a network, or one for some of the arrays by name.
    :param structures: of what is summarized.
    :param row: shapes of one row of network inputs.
    :raises ValueError: where a name is not that of an array.
    """
    arrays: Any = row.get("summary_variables", {})
    is_single = not isinstance(arrays, Mapping)
    if given is not None and not isinstance(given, Mapping):
        return given
    if unknown := [name for name in given or () if name not in structures]:
        raise ValueError(
            f"summary_network: expected networks of {sorted(structures)}, got one of {unknown}."
        )
    networks: dict[str, Any] = {
        name: default_network(structure, len((arrays if is_single else arrays[name]).shape) - 1)
        for name, structure in structures.items()
    } | dict(given or {})
    if is_single or not networks:
        return next(iter(networks.values()), DeepSet)
    return partial(Fusion, networks=networks)


def describe_summary(
    network: NetworkSpec, given: SummarySpec | None, structures: Mapping[str, Structure]
) -> list[str]:
    """Lines that say which network summarizes what, and why.

    :param network: trained, or what it is made from.
    :param given: by the user.
    :param structures: of what is summarized.
    """
    if given is not None and not isinstance(given, Mapping):
        return [f"summary network: {network_name(network)}, as you said"]
    chosen = given or {}
    why = {
        name: "as you said" if name in chosen else f"the default for {structure.value}"
        for name, structure in structures.items()
    }
    parts = _parts(network)
    if parts is None:
        reason = next(iter(why.values()))
        return [f"summary network: {network_name(network)}, {reason}"]
    lines = [f"  {name}: {network_name(part)}, {why[name]}" for name, part in parts.items()]
    return ["summary network: Fusion of", *lines]


def _parts(network: NetworkSpec) -> Mapping[str, NetworkSpec] | None:
    """The networks of a fusion, ``None`` for any other network."""
    if isinstance(network, Fusion):
        modules: Mapping[str, nnx.Module] = dict(zip(network.sites, network.networks, strict=True))
        return modules
    if isinstance(network, partial) and network.func is Fusion:
        return network.keywords["networks"]
    return None
