# SPDX-License-Identifier: Apache-2.0
"""Derive the adapter for model comparison from traced models."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Transform
from numpyro_amortized.adapters.grouping import find_groups
from numpyro_amortized.adapters.observations import (
    CollectConditions,
    DropSites,
    StandardizeObserved,
    fit_standardization,
)
from numpyro_amortized.adapters.posterior import pilot_draws
from numpyro_amortized.adapters.summarized import CollectSummaries, Summarized
from numpyro_amortized.simulators.comparison import ModelComparisonSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["INDICES", "comparison_adapter"]

INDICES = "model_indices"
_NUM_PILOTS, _NUM_OWN_PILOTS = 2000, 256


def comparison_adapter(simulator: ModelComparisonSimulator) -> Adapter:
    """What all models observe, standardized and collected; ``model_indices`` as they are.

    An observed site is a set, a time series or an image where it is one of the same members in
    every model, with all latents marginalized; otherwise it is conditioned on as numbers.

    :param simulator: of NumPyro models.
    :raises ValueError: where a model is none, or the models observe nothing in common.
    """
    models = _traced(simulator)
    draws = {n: np.asarray(x) for n, x in simulator.sample(random.key(20), _NUM_PILOTS).items()}
    names = _common(models, draws)
    groups, reasons = _agreed(models, names)
    observed = [models[0].sites[name] for name in names]
    others = {name: "not observed in every model" for name in draws if name not in names}
    others.pop(INDICES, None)
    transforms: list[Transform] = [
        DropSites(others),
        _standardize(observed, groups, draws),
        *([CollectSummaries(groups, None)] if groups else []),
        CollectConditions(reasons),
    ]
    return Adapter(transforms).bind(draws)


def _traced(simulator: ModelComparisonSimulator) -> list[ModelSimulator]:
    models = [each for each in simulator.simulators if isinstance(each, ModelSimulator)]
    if len(models) < simulator.num_models or any(m.varying_size is not None for m in models):
        kinds = [type(each).__name__ for each in simulator.simulators]
        raise ValueError(
            "adapter: expected one, since it can be derived only for NumPyro models of fixed "
            f"sizes, got {kinds}: Adapter().as_set('y').rename('y', 'summary_variables')..."
        )
    return models


def _common(models: Sequence[ModelSimulator], draws: Mapping[str, np.ndarray]) -> list[str]:
    """Sites that are given in every model; their masks must be the same."""
    known = {name for model in models for name in model.sites} | {INDICES}
    first = models[0].sites
    given = [n for n in first if all(n in m.sites and m.sites[n].is_given for m in models)]
    if shared := [name for name in draws if name not in known]:
        raise ValueError(f"adapter: expected one, since {shared} are shared by the models.")
    if not given:
        observed = [[s.name for s in m.sites.values() if s.is_given] for m in models]
        raise ValueError(f"adapter: the models observe no site in common: {observed}.")
    for name in given:
        masks = [model.sites[name].event_mask for model in models]
        differs = [m for m in masks if not np.array_equal(_full(m), _full(masks[0]))]
        if differs or any(m.sites[name].shape != draws[name].shape[1:] for m in models):
            raise ValueError(
                f"adapter: expected one, since site '{name}' has another shape or mask in one of "
                "the models than in the others."
            )
    return given


def _full(mask: np.ndarray | None) -> np.ndarray:
    return np.ones(()) if mask is None else np.asarray(mask, float)


def _agreed(
    models: Sequence[ModelSimulator], names: Sequence[str]
) -> tuple[list[Summarized], dict[str, str]]:
    """Groups that every model has, and why the other sites are numbers."""
    found = []
    for model in models:
        pilot = pilot_draws(model, model.sample(random.key(20), _NUM_OWN_PILOTS))
        found.append(find_groups(model, (), pilot, {}))
    agreed = [
        group
        for group in found[0][0]
        if all(any(_same(group, other) for other in groups) for groups, _ in found)
        and all(name in names for name in group.axes)
    ]
    groups = [each._replace(reason=f"in every model, {each.reason}") for each in agreed]
    summarized = {name for group in groups for name in group.axes}
    why = {
        name: next((r[name] for _, r in found if name in r), "the models differ in its members")
        for name in names
    }
    return groups, {name: reason for name, reason in why.items() if name not in summarized}


def _same(one: Summarized, other: Summarized) -> bool:
    return (one.structure, dict(one.axes), one.shape) == (
        other.structure,
        dict(other.axes),
        other.shape,
    )


def _standardize(
    observed: Sequence[Site], groups: Sequence[Summarized], draws: Mapping[str, np.ndarray]
) -> StandardizeObserved:
    pooled = {name: axes for group in groups for name, axes in group.axes.items()}
    dtype = jnp.zeros(()).dtype
    finite = np.logical_and.reduce(
        [np.isfinite(draws[s.name]).reshape(_NUM_PILOTS, -1).all(-1) for s in observed]
    )
    moments = {
        site.name: fit_standardization(
            np.asarray(draws[site.name][finite], dtype), pooled.get(site.name, ())
        )
        for site in observed
    }
    masks = {site.name: mask for site in observed if (mask := site.event_mask) is not None}
    return StandardizeObserved(moments, masks)
