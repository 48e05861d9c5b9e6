# SPDX-License-Identifier: Apache-2.0
"""Checking data of many groups."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_amortized.simulators.tracing import Site

__all__ = ["Groups", "as_groups"]


class Groups(NamedTuple):
    """Values with one leading axis, of the groups of all data sets."""

    values: dict[str, ArrayLike]
    shape: tuple[int, int]  # data sets and groups of each
    is_batch: bool  # whether the user gave an axis of data sets


def as_groups(
    sites: Mapping[str, Site], conditions: Mapping[str, ArrayLike], names: Sequence[str]
) -> Groups:
    """
    :param sites: of the approximator, which has learned from one group.
    :param conditions: values ``([n_datasets,] n_groups, *shape)``.
    :param names: of the sites that are conditioned on.
    :raises ValueError: where the axes do not fit, or there is a single group.
    """
    known = {name: np.shape(conditions[name]) for name in names if name in conditions}
    leads = {name: shape[: len(shape) - len(sites[name].shape)] for name, shape in known.items()}
    axes = next(iter(leads.values()), ())
    if len(set(leads.values())) > 1 or len(axes) not in (1, 2) or axes[-1] < 2:
        expected = {name: ("n_datasets", "n_groups", *sites[name].shape) for name in known}
        raise ValueError(
            f"conditions: expected shapes {expected}, with at least two groups and the same "
            f"leading axes in all sites, or without n_datasets for one data set, got {known}. Of a "
            "single group, use `sample`."
        )
    shape = (axes[0], axes[1]) if len(axes) == 2 else (1, axes[0])
    values = {
        name: _flat(value, len(axes)) if name in known else value
        for name, value in conditions.items()
    }
    return Groups(values, shape, len(axes) == 2)


def _flat(value: ArrayLike, num_axes: int) -> ArrayLike:
    array = jnp.asarray(value)
    return array.reshape(-1, *array.shape[num_axes:])
