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
from numpyro_amortized.networks.hierarchical import GroupSummary

__all__ = ["SummarySpec", "describe_summary", "summary_spec"]

SummarySpec = NetworkSpec | Mapping[str, NetworkSpec]


def default_network(structure: Structure, num_axes: int) -> NetworkSpec:
    """The network of one array.

    :param structure: of its members.
    :param num_axes: of the members.
    """
    match structure:
        case Structure.SET | Structure.GROUPS:
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
    plate = _plate(structures)
    if given is not None and not isinstance(given, Mapping):
        if plate is None:
            return given
        given = _for_each(given, structures)
    if unknown := [name for name in given or () if name not in structures]:
        what = sorted(structures) or "nothing, since no array is summarized"
        raise ValueError(f"summary_network: expected networks of {what}, got one of {unknown}.")
    networks: dict[str, Any] = {
        name: default_network(structure, _num_axes(arrays if is_single else arrays[name], plate))
        for name, structure in structures.items()
    }
    if plate is not None:
        small = {n: _OF_A_GROUP for n, each in networks.items() if each is DeepSet}
        networks |= small | {plate: _OF_GROUPS} | dict(given or {})
        return partial(GroupSummary, plate=plate, over=networks.pop(plate), networks=networks)
    networks |= dict(given or {})
    if is_single or not networks:
        return next(iter(networks.values()), DeepSet)
    return partial(Fusion, networks=networks)


# small, since every group of every simulation is summarized in every step
_OF_GROUPS = partial(DeepSet, widths=(32,), spread=True)
_OF_A_GROUP = partial(DeepSet, summary_size=16, widths=(32,), embedding_size=32, spread=False)


def _plate(structures: Mapping[str, Structure]) -> str | None:
    """The plate of the groups, where there are any."""
    return next((n for n, each in structures.items() if each is Structure.GROUPS), None)


def _for_each(network: NetworkSpec, structures: Mapping[str, Structure]) -> dict[str, NetworkSpec]:
    """One network within and over groups.

    :raises ValueError: where it is ready-made, so that it is for one purpose.
    """
    if isinstance(network, nnx.Module) and len(structures) > 1:
        raise ValueError(
            f"summary_network: expected a mapping of networks of {list(structures)}, of which the "
            f"first one summarizes the set of groups, got a ready {network_name(network)}."
        )
    return dict.fromkeys(structures, network)


def _num_axes(array: Any, plate: str | None) -> int:
    """Number of axes of members."""
    return len(array.shape) - 1 - (plate is not None)


def describe_summary(
    network: NetworkSpec, given: SummarySpec | None, structures: Mapping[str, Structure]
) -> list[str]:
    """Lines that say which network summarizes what, and why.

    :param network: trained, or what it is made from.
    :param given: by the user.
    :param structures: of what is summarized.
    """
    is_one = given is not None and not isinstance(given, Mapping)
    if is_one and _plate(structures) is None:
        return [f"summary network: {network_name(network)}, as you said"]
    chosen: Any = structures if is_one else given or {}
    why = {
        name: "as you said" if name in chosen else f"the default for {structure.value}"
        for name, structure in structures.items()
    }
    parts = _parts(network)
    if parts is None:
        reason = next(iter(why.values()))
        return [f"summary network: {network_name(network)}, {reason}"]
    lines = [f"  {name}: {network_name(part)}, {why[name]}" for name, part in parts.items()]
    kind = "Fusion of" if _plate(structures) is None else "groups, and within them"
    return [f"summary network: {kind}", *lines]


def _parts(network: NetworkSpec) -> Mapping[str, NetworkSpec] | None:
    """The networks of a fusion or of groups, ``None`` for any other network."""
    if isinstance(network, GroupSummary):
        own: dict[str, nnx.Module] = {network.plate: network.over}
        return own | dict(zip(network.sites, network.networks, strict=True))
    if isinstance(network, partial) and network.func is GroupSummary:
        return {network.keywords["plate"]: network.keywords["over"], **network.keywords["networks"]}
    if isinstance(network, Fusion):
        modules: Mapping[str, nnx.Module] = dict(zip(network.sites, network.networks, strict=True))
        return modules
    if isinstance(network, partial) and network.func is Fusion:
        return network.keywords["networks"]
    return None
