# SPDX-License-Identifier: Apache-2.0
"""Which observed sites are sets, time series and images, and which are numbers."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from numpyro_amortized.adapters.base import Draws
from numpyro_amortized.adapters.exchangeability import ObservedSet, find_sets, plate_axes
from numpyro_amortized.adapters.summarized import Structure, Summarized
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["Said", "find_groups", "said"]

_FEW = 16  # numbers, which are best conditioned on as they are
_GRID = 8  # cells along an axis of an image, at least
_AS_YOU_SAID = "as you said"


class Said(NamedTuple):
    """What the user says of an observed site: a structure and its axes, or numbers."""

    structure: Structure
    axes: tuple[int, ...] | None


def said(
    simulator: ModelSimulator,
    sets: Mapping[str, int | None] | None,
    series: Mapping[str, int | None] | None,
    images: Mapping[str, Sequence[int] | None] | None,
) -> dict[str, Said]:
    """What the user says of the observed sites.

    :raises ValueError: where a site is not observed, has no such axis, or is named twice.
    """
    result: dict[str, Said] = {}
    kinds = {"sets": Structure.SET, "series": Structure.SERIES, "images": Structure.IMAGE}
    given = {"sets": sets, "series": series, "images": images}
    for argument, structure in kinds.items():
        for name, axes in (given[argument] or {}).items():
            checked = _checked_axes(simulator.sites.get(name), argument, name, axes)
            before = result.get(name)
            if before is not None and before.axes is not None and checked is not None:
                raise ValueError(
                    f"`{argument}`: site '{name}' is said to be {before.structure.value} already; "
                    "name it once."
                )
            if before is None or checked is not None:
                result[name] = Said(structure, checked)
    return result


def _checked_axes(
    site: Site | None, argument: str, name: str, axes: int | Sequence[int] | None
) -> tuple[int, ...] | None:
    if site is None or not site.is_given:
        raise ValueError(f"`{argument}`: '{name}' is not an observed site of the model.")
    if axes is None:
        return None
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    rank = len(site.shape)
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(
                f"`{argument}`: site '{name}' of shape {site.shape} has no axis {axis}."
            )
    axes = tuple(axis % rank for axis in axes)
    if argument == "images" and (len(axes) < 2 or len(set(axes)) < len(axes)):
        raise ValueError(
            f"`images`: site '{name}': expected two or three different axes of its grid, got "
            f"{axes}."
        )
    return axes


def find_groups(
    simulator: ModelSimulator,
    inferred: Sequence[str],
    pilot: Draws,
    overrides: Mapping[str, Said],
) -> tuple[list[Summarized], dict[str, str]]:
    """
    What is summarized, and for every other observed site why it is conditioned on as numbers.

    :param simulator: the traced model.
    :param inferred: names of the latents that are inferred.
    :param pilot: draws of all sites, a leading axis of simulations.
    :param overrides: what the user says.
    """
    groups, reasons = _sets(simulator, inferred, pilot, overrides)
    groups = [*_as_said(simulator, overrides), *groups]
    reasons |= {name: _AS_YOU_SAID for name, each in overrides.items() if each.axes is None}
    for find in (_find_series, _find_images):
        free = [simulator.sites[n] for n in reasons if reasons[n] != _AS_YOU_SAID]
        found, why = find(simulator, inferred, free)
        groups += found
        reasons = {n: why.get(n, r) for n, r in reasons.items() if not _is_in(n, found)}
    order = [site for site in simulator.sites if site in reasons]
    return groups, {name: reasons[name] for name in order}


def _is_in(name: str, groups: Iterable[Summarized]) -> bool:
    return any(name in group.axes for group in groups)


def _sets(
    simulator: ModelSimulator,
    inferred: Sequence[str],
    pilot: Draws,
    overrides: Mapping[str, Said],
) -> tuple[list[Summarized], dict[str, str]]:
    found, reasons = find_sets(simulator, inferred, pilot)
    groups = []
    for group in found:
        if others := [name for name in group.axes if name in overrides]:
            reasons |= dict.fromkeys(group.axes, f"its set has '{others[0]}', which you changed")
        elif _is_rather_series(simulator, inferred, group):
            reasons |= dict.fromkeys(group.axes, f"a set of {group.size}, of more steps")
        else:
            axes = {name: (axis,) for name, axis in group.axes.items()}
            groups.append(Summarized(Structure.SET, axes, (group.size,), group.reason))
    return groups, {n: r for n, r in reasons.items() if n not in overrides}


def _is_rather_series(
    simulator: ModelSimulator, inferred: Sequence[str], group: ObservedSet
) -> bool:
    """Whether its sites are series of more steps than the set has members.

    What steps and further sites along them have to do with each other is then worth more.
    """
    sites = [simulator.sites[name] for name in group.axes]
    series, _ = _find_series(simulator, inferred, sites)
    long = [each for each in series if each.shape[0] > group.size]
    return all(_is_in(site.name, long) for site in sites if site.role == "observed")


def _as_said(simulator: ModelSimulator, overrides: Mapping[str, Said]) -> list[Summarized]:
    """Sites with the same structure and shape are features of the same members."""
    axes = {name: each.axes for name, each in overrides.items() if each.axes is not None}
    sites = [simulator.sites[name] for name in simulator.sites if name in axes]

    def group(structure: Structure) -> list[Summarized]:
        own = [site for site in sites if overrides[site.name].structure is structure]
        return _by_shape(structure, own, {s.name: axes[s.name] for s in own}, _said_reason)

    return [each for structure in Structure for each in group(structure)]


def _said_reason(_: Site) -> str:
    return _AS_YOU_SAID


def _by_shape(
    structure: Structure,
    sites: Sequence[Site],
    axes: Mapping[str, tuple[int, ...]],
    reason: Callable[[Site], str],
) -> list[Summarized]:
    """Sites of the same members along the axes given, together."""
    groups: dict[tuple[int, ...], list[Site]] = {}
    for site in sites:
        groups.setdefault(tuple(site.shape[a] for a in axes[site.name]), []).append(site)
    return [
        Summarized(structure, {s.name: axes[s.name] for s in own}, shape, reason(own[0]))
        for shape, own in groups.items()
    ]


def _find_series(
    simulator: ModelSimulator, inferred: Collection[str], free: Sequence[Site]
) -> tuple[list[Summarized], dict[str, str]]:
    """Sites with the time axis of a ``scan`` or a process, and context along it."""
    clocks = [s for s in simulator.sites.values() if s.time_axis is not None and s.is_random]
    axes, reasons, why = {}, {}, {}
    for site in free:
        clock = _clock(site, clocks)
        if site.role != "observed" or clock is None:
            continue
        length = _length(clock)
        if states := [n for n in inferred if length in simulator.sites[n].shape]:
            reasons[site.name] = f"'{states[0]}' is inferred at each of its {length} steps"
        elif prod(site.shape) <= _FEW:
            reasons[site.name] = "a time series of few numbers"
        else:
            axes[site.name] = (_time_axis(site, length),)
            why[site.name] = _why(site, clock)
    lengths = {site.shape[axes[site.name][0]] for site in free if site.name in axes}
    for site in free:
        if site.role == "context" and (shared := lengths.intersection(site.shape)):
            axes[site.name] = (site.shape.index(max(shared)),)
    # the observed sites first: they give the name and the reason
    own = sorted((s for s in free if s.name in axes), key=lambda s: s.role == "context")
    return _by_shape(Structure.SERIES, own, axes, lambda site: why[site.name]), reasons


def _length(clock: Site) -> int:
    assert clock.time_axis is not None
    return clock.shape[clock.time_axis]


def _clock(site: Site, clocks: Sequence[Site]) -> Site | None:
    """The site that shows the time axis: itself, or a state with as many steps."""
    if site.time_axis is not None:
        return site
    return next((s for s in clocks if _length(s) > 1 and _length(s) in site.shape), None)


def _time_axis(site: Site, length: int) -> int:
    return site.shape.index(length) if site.time_axis is None else site.time_axis


def _why(site: Site, clock: Site) -> str:
    if site is not clock:
        return f"it has the steps of '{clock.name}'"
    return "it is drawn in a scan" if site.scanned else "its distribution is a process in time"


def _find_images(
    simulator: ModelSimulator, inferred: Collection[str], free: Sequence[Site]
) -> tuple[list[Summarized], dict[str, str]]:
    """Sites with two or three long axes that are in no plate: cells have neighbours."""
    axes = {site.name: grid for site in free if (grid := _grid(site))}
    reasons = {}
    for site in [simulator.sites[name] for name in axes]:
        cells = prod(site.shape[axis] for axis in axes[site.name])
        if fields := [n for n in inferred if prod(simulator.sites[n].shape) >= cells]:
            reasons[site.name] = f"'{fields[0]}' is inferred, as large as its {cells} cells"
    own = [site for site in free if site.name in axes.keys() - reasons.keys()]
    why = "its long axes are in no plate, so that cells have neighbours"
    return _by_shape(Structure.IMAGE, own, axes, lambda _: why), reasons


def _grid(site: Site) -> tuple[int, ...]:
    plates = plate_axes(site)
    axes = tuple(a for a, n in enumerate(site.shape) if a not in plates and n >= _GRID)
    return axes if len(axes) in (2, 3) else ()
