# SPDX-License-Identifier: Apache-2.0
"""Results in ArviZ's schema."""

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import Conditions, check_num_samples
from numpyro_amortized.simulators.base import Simulator, typed_key
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

if TYPE_CHECKING:
    import xarray

    from numpyro_amortized.approximators.density import DensityApproximator

_NUM_CHAINS = 4
_UNBATCHED = ("prior", "prior_predictive", "constant_data")
Group = dict[str, np.ndarray]


class Draws(NamedTuple):
    """Posterior draws of several data sets, in random order, and what is known of them."""

    sites: Mapping[str, Array]  # (num_conditions, num_samples, *shape)
    stats: Mapping[str, Array]  # of each draw, (num_conditions, num_samples)
    dataset_stats: Mapping[str, np.ndarray]  # of each data set, (num_conditions,)


def to_inference_data(
    rng_key: Array,
    approximator: "DensityApproximator",
    conditions: Mapping[str, ArrayLike],
    *,
    num_samples: int,
) -> "xarray.DataTree":
    """See :meth:`DensityApproximator.to_inference_data`."""
    num_samples = check_chains(num_samples)
    approximator = approximator.for_groups(conditions)
    checked = approximator.check_conditions(conditions)
    draw_key, describe_key = random.split(typed_key(rng_key))
    sites, log_q = approximator.sample_and_log_prob(draw_key, num_samples, checked.values)
    return describe(describe_key, approximator, checked, Draws(sites, {"log_q": log_q}, {}))


def check_chains(num_samples: int) -> int:
    """The number of draws, where they can be laid out as chains.

    :raises ValueError: where ``num_samples`` is no multiple of four.
    """
    if check_num_samples(num_samples) % _NUM_CHAINS:
        raise ValueError(
            f"num_samples: expected a multiple of {_NUM_CHAINS}, since draws are laid out as "
            f"{_NUM_CHAINS} chains, got {num_samples}."
        )
    return int(num_samples)


def describe(
    rng_key: Array, approximator: "DensityApproximator", checked: Conditions, draws: Draws
) -> "xarray.DataTree":
    """Draws with their predictions and densities, the prior and the data, in ArviZ's schema.

    :param rng_key: a key.
    :param approximator: of a posterior.
    :param checked: the data sets.
    :param draws: of their posteriors, wherever they come from.
    """
    predict_key, prior_key = random.split(rng_key)
    source, given, predictive = approximator.source, checked.values, approximator.predictive
    by_draw = {"posterior": draws.sites, "sample_stats": draws.stats}
    num_samples = next(iter(draws.sites.values())).shape[1]
    if predictive is not None:
        predictive, given = predictive.at_common_size(given)
        source = predictive.simulator
        latents = {name: draws.sites[name] for name in approximator.inferred_sites}
        keys = random.split(predict_key, (checked.num_datasets, num_samples))
        by_draw |= predictive.of_draws(keys, latents, given)
    groups = {name: _as_chains(group, checked) for name, group in by_draw.items() if group}
    described = source.sites if isinstance(source, ModelSimulator) else approximator.sites
    if isinstance(source, Simulator):
        groups |= _prior_groups(prior_key, source, described, num_samples)
    shown = dict(jax.device_get(checked.unbatch(given)))
    roles = {name: described[name].role for name in shown}
    groups["observed_data"] = {n: x for n, x in shown.items() if roles[n] == "observed"}
    groups["constant_data"] = _constant_data(source) if isinstance(source, ModelSimulator) else {}
    groups["constant_data"] |= {n: x for n, x in shown.items() if roles[n] == "context"}
    tree = _tree(groups, described, is_batch=checked.is_batch)
    dims = ["dataset"] if checked.is_batch else []
    of_datasets = checked.unbatch(dict(draws.dataset_stats))
    stats = tree["sample_stats"].to_dataset()
    tree["sample_stats"].dataset = stats.assign({n: (dims, x) for n, x in of_datasets.items()})
    return tree


def _tree(
    groups: dict[str, Group], sites: Mapping[str, Site], *, is_batch: bool
) -> "xarray.DataTree":
    # ArviZ takes seconds to import
    import xarray
    from arviz_base import dict_to_dataset

    plates = {name: size for site in sites.values() for name, _, size in site.plates}
    coords: dict[Hashable, npt.ArrayLike] = {name: np.arange(n) for name, n in plates.items()}
    datasets = {}
    for group, values in groups.items():
        sample_dims = [] if group.endswith("_data") else ["chain", "draw"]
        lead = ["dataset"] if is_batch and group not in _UNBATCHED else []
        dims: dict[Hashable, Sequence[Hashable]] = {
            name: lead + _dims(name, np.shape(value)[len(sample_dims + lead) :], sites, plates)
            for name, value in values.items()
        }
        if lead:
            coords["dataset"] = np.arange(len(next(iter(groups["observed_data"].values()))))
        if values:
            datasets[group] = dict_to_dataset(
                values,
                dims=dims,
                coords=coords,
                sample_dims=sample_dims,
                check_conventions=False,  # few draws are no mistake
            )
    return xarray.DataTree.from_dict(datasets)


def _dims(
    name: str, shape: tuple[int, ...], sites: Mapping[str, Site], plates: dict[str, int]
) -> list[str]:
    """Plates by name. A density has only the batch axes of its site: dims are cut to ``shape``."""
    if name not in sites:
        return [_plate_of_size(size, plates) or f"{name}_dim_{i}" for i, size in enumerate(shape)]
    site = sites[name]
    dims = [f"{name}_dim_{axis}" for axis in range(len(site.shape))]
    for plate, dim, _ in site.plates:
        dims[len(site.shape) - site.event_dim + dim] = plate
    return dims[: len(shape)]


def _plate_of_size(size: int, plates: dict[str, int]) -> str | None:
    names = [name for name, length in plates.items() if length == size]
    return names[0] if len(names) == 1 else None


def _prior_groups(
    rng_key: Array, source: Simulator, sites: Mapping[str, Site], num_samples: int
) -> dict[str, Group]:
    draws = jax.device_get(source.sample(rng_key, (1, num_samples)))
    observed = {name for name, site in sites.items() if site.role == "observed"}
    context = {name for name, site in sites.items() if site.role == "context"}
    return {
        "prior": {n: x for n, x in draws.items() if n not in observed | context},
        "prior_predictive": {name: draws[name] for name in sites if name in observed},
    }


def _constant_data(simulator: ModelSimulator) -> Group:
    """Array arguments of the model that are not its data."""
    bound = inspect.signature(simulator.model).bind_partial(*simulator.args, **simulator.kwargs)
    arrays = {
        name: np.asarray(value)
        for name, value in bound.arguments.items()
        if isinstance(value, np.ndarray | Array) and np.ndim(value)
    }
    data = simulator.data.values()
    return {
        name: value
        for name, value in arrays.items()
        if not any(np.array_equal(value, other, equal_nan=True) for other in data)
    }


def _as_chains(group: Mapping[str, Array], checked: Conditions) -> Group:
    """``(num_conditions, num_samples, ...)`` to ``(chain, draw, [dataset,] ...)``."""

    def arrange(array: np.ndarray) -> np.ndarray:
        shape = (array.shape[0], _NUM_CHAINS, -1, *array.shape[2:])
        chains = np.moveaxis(array.reshape(shape), 0, 2)
        return chains if checked.is_batch else chains[:, :, 0]

    return {name: arrange(np.asarray(value)) for name, value in group.items()}
