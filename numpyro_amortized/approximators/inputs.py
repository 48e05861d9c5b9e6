# SPDX-License-Identifier: Apache-2.0
"""From simulations to network inputs for training and validation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import as_numbers, given_names
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.datasets import (
    Batch,
    Dataset,
    OfflineDataset,
    OnlineDataset,
    RejuvenatedDataset,
)
from numpyro_amortized.disk import DiskDataset
from numpyro_amortized.rejuvenation import Rejuvenation, has_density
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.streamed import HostDataset

__all__ = ["Bank", "Recipe", "held_out", "some_members", "training_inputs"]

_VALIDATION_SHARE, _MAX_VALIDATION, _SIMULATED_VALIDATION = 0.1, 2000, 1000
_NUM_MOVES = 20
_MOST_MEMBERS = 8  # of a simulation in a step
Bank = Mapping[str, Array | np.ndarray]


class Recipe(NamedTuple):
    """How the simulations of an approximator become network inputs."""

    source: Source
    adapter: Adapter
    sites: Mapping[str, Site]
    needed: Sequence[str]  # sites that the networks see
    kept: Sequence[str] = ()  # sites that the loss sees as they are

    def forward(self, values: Batch) -> Batch:
        """Network inputs of one simulation; one row for each member where there are any.

        The sites kept are beside them as ``site_values``.
        """
        observations = self.adapter.observations
        if observations is None or not observations.axes:
            kept: dict[str, Any] = (
                {"site_values": {n: values[n] for n in self.kept}} if self.kept else {}
            )
            return {**self.adapter.forward(values), **kept}
        values = {name: values[name] for name in self.needed}
        axes = {name: observations.axes.get(name) for name in self.needed}
        return jax.vmap(self.adapter.forward, in_axes=(axes,))(values)

    def keeping_given(self) -> "Recipe":
        """The same, with what inference conditions on kept as it is."""
        return self._replace(kept=tuple(dict.fromkeys((*self.kept, *given_names(self.sites)))))

    def checked(self, bank: Bank, argument: str) -> OfflineDataset:
        """A bank of the sites that the networks see, and of others that the model has.

        :raises ValueError: naming the site whose values are missing or of a wrong shape or type.
        """
        if missing := [name for name in self.needed if name not in bank]:
            raise ValueError(
                f"{argument}: expected values of the sites {list(self.needed)}, missing: {missing}."
            )
        sites = [s for s in self.sites.values() if s.name in bank and s.role != "deterministic"]
        return OfflineDataset({s.name: _simulations(s, bank[s.name], argument) for s in sites})


def training_inputs(
    split_key: Array,
    recipe: Recipe,
    dataset: Bank | Dataset | None,
    *,
    validation: Bank | int | None,
    num_moves: int | None,
    workers: int | None,
) -> tuple[Dataset, Bank | int | None, int]:
    """The data set of network inputs, what is to validate, and the number of rows left out.

    :param split_key: decides which simulations are held out.
    :param recipe: of the approximator.
    :param dataset: a bank or data set; ``None`` simulates online.
    :param validation: a bank, the number of simulations held out, or the default.
    :param num_moves: Metropolis moves in every epoch, by default as many as pay.
    :param workers: number of worker processes, where the host simulates.
    """
    dataset = _resolved(recipe, dataset, workers)
    if validation is None and isinstance(dataset, OnlineDataset | HostDataset):
        validation = 0  # no simulation is seen twice: the losses are those of new ones
    if num_moves and not isinstance(dataset, OfflineDataset):
        raise ValueError(_no_moves(dataset, num_moves))
    if isinstance(dataset, DiskDataset):
        recipe.checked(dataset.head(1), "dataset")
        dataset = dataset.select(*recipe.needed)
        if not isinstance(validation, Mapping) and validation != 0:
            dataset, rest = dataset.split(split_key, validation or _share(len(dataset)))
            validation = rest.arrays
    if not isinstance(dataset, OfflineDataset):
        return dataset.map(recipe.forward), validation, 0
    whole = recipe.checked(dataset.arrays, "dataset")
    finite = whole.finite(ignore=recipe.adapter.may_be_missing)
    dropped = len(whole) - len(finite)
    if dropped >= len(whole) / 2:
        raise ValueError(
            f"dataset: {dropped} of {len(whole)} simulations have values that are not "
            "finite. Restrict the priors to values at which the model can be simulated."
        )
    if validation is None:
        validation = _share(len(finite))
    if not isinstance(validation, Mapping) and validation:
        finite, rest = finite.split(split_key, validation)
        validation = rest.arrays
    moved = _rejuvenated(recipe, finite, num_moves)
    return moved.map(recipe.forward), validation, dropped


def _no_moves(dataset: Dataset, num_moves: int) -> str:
    if isinstance(dataset, DiskDataset):
        reason, needed = "the bank is on disk", "an OfflineDataset"
    else:
        reason = "simulations are new in every batch"
        needed = "a bank: fit(..., dataset=simulator.sample(key, 10_000))"
    return f"rejuvenation: expected 0, since {reason}, got {num_moves}; moves need {needed}."


def _share(num_simulations: int) -> int:
    return int(np.ceil(min(_VALIDATION_SHARE * num_simulations, _MAX_VALIDATION)))


def held_out(
    rng_key: Array, recipe: Recipe, validation: Bank | int | None, workers: int | None
) -> Batch | None:
    """Network inputs for validation, simulated unless there is a bank; ``None`` for none."""
    if isinstance(validation, int | np.integer) and validation == 0:
        return None
    if not isinstance(validation, Mapping):
        if not isinstance(recipe.source, Simulator):
            return None
        number = validation or _SIMULATED_VALIDATION
        validation = recipe.source.sample(rng_key, number, workers=workers)
    checked = recipe.checked(validation, "validation")
    rows = checked.map(recipe.forward).finite().arrays
    return rows if recipe.adapter.observations is None else _cut(rows, np.arange(_MOST_MEMBERS))


def some_members(rng_key: Array, rows: Batch) -> Batch:
    """Inputs of at most eight members of each simulation: others tell little more of the latents.

    :param rng_key: decides which.
    :param rows: leaves ``(batch_size, size)``, or ``(batch_size, members, size)``.
    """
    variables = rows["inference_variables"]
    if variables.ndim == 2 or variables.shape[1] <= _MOST_MEMBERS:
        return rows
    chosen = random.choice(rng_key, variables.shape[1], (_MOST_MEMBERS,), replace=False)
    return _cut(rows, chosen)


def _cut(rows: Batch, members: Array | np.ndarray) -> Batch:
    variables = rows["inference_variables"]
    if variables.ndim == 2 or variables.shape[1] <= _MOST_MEMBERS:
        return rows
    return {name: value[:, members] for name, value in rows.items()}


def _resolved(recipe: Recipe, dataset: Bank | Dataset | None, workers: int | None) -> Dataset:
    source = recipe.source
    if dataset is None and isinstance(source, TraceableSimulator):
        return OnlineDataset(source)
    if dataset is None and isinstance(source, Simulator):
        return HostDataset(source, workers=workers)
    if dataset is None and isinstance(source, Dataset):
        return source
    if isinstance(dataset, Mapping):
        return recipe.checked(dataset, "dataset")
    if isinstance(dataset, Dataset):
        return dataset
    raise TypeError(
        "dataset: expected a mapping of site names to arrays or a data set, got "
        f"{type(dataset).__name__}."
    )


def _rejuvenated(recipe: Recipe, bank: OfflineDataset, num_moves: int | None) -> Dataset:
    """The bank with its moves, where the model has a density and the bank every site."""
    source = recipe.source
    complete = all(
        s.name in bank.arrays for s in recipe.sites.values() if s.role != "deterministic"
    )
    if not (isinstance(source, ModelSimulator) and complete and has_density(source)):
        if num_moves:
            raise ValueError(
                "rejuvenation: expected a model with a density for every site, and a bank with "
                f"values of all of them, got a bank of {list(bank.arrays)}; pass 0 for no moves."
            )
        return bank
    num_moves = _NUM_MOVES if num_moves is None else num_moves
    if not num_moves:
        return bank
    moves = Rejuvenation.of(source, recipe.adapter, bank.arrays)
    return RejuvenatedDataset(bank.arrays, moves, num_moves)


def _simulations(site: Site, value: Array | np.ndarray, argument: str) -> np.ndarray:
    if np.ndim(value) == 0 or np.shape(value)[1:] != site.shape:
        raise ValueError(
            f"{argument}: site '{site.name}': expected shape (num_simulations, "
            f"{', '.join(map(str, site.shape))}), got {np.shape(value)}."
        )
    try:
        return as_numbers(site, value).astype(site.dtype)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
