# SPDX-License-Identifier: Apache-2.0
"""Whether approximators learn from the same simulations, and see them in the same way."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array, random

from numpyro_amortized.approximators.latent import LatentApproximator
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.datasets import Batch, Dataset

__all__ = ["check_agreement"]

_NUM_DRAWS = 4


def check_agreement(members: Mapping[str, Any]) -> None:
    """
    :param members: approximators by name.
    :raises TypeError: where one is no approximator of latents.
    :raises ValueError: where there is none, or one has another source or adapter than the first.
    """
    if not isinstance(members, Mapping):
        raise TypeError(
            f"members: expected a mapping of names to approximators, got {type(members).__name__}."
        )
    if not members:
        raise ValueError("members: expected at least one approximator, {name: approximator}.")
    for name, member in members.items():
        if not isinstance(member, LatentApproximator):
            raise TypeError(
                f"members: expected approximators of latent sites, got {type(member).__name__} as "
                f"'{name}'."
            )
    (first_name, first), *others = members.items()
    for name, member in others:
        if not _same_source(first.source, member.source):
            raise ValueError(
                f"members: '{name}' learns from other simulations than '{first_name}': the same "
                "key gives other draws. Make all members of one simulator or data set."
            )
        if not _same_inputs(first, member):
            raise ValueError(
                f"members: '{name}' has another adapter than '{first_name}': the same simulations "
                "become other network inputs. Pass one adapter to all members."
            )


def _same_source(first: Source, second: Source) -> bool:
    return first is second or _equal(_draws(first), _draws(second))


def _same_inputs(first: LatentApproximator, second: LatentApproximator) -> bool:
    if first.adapter is second.adapter:
        return True
    draws = _draws(first.source)
    return _equal(first.adapter.forward(draws), second.adapter.forward(draws))


def _draws(source: Source) -> Batch:
    if isinstance(source, Dataset):
        return source.head(_NUM_DRAWS)
    return source.sample(random.key(25), _NUM_DRAWS)


def _equal(first: Batch, second: Batch) -> bool:
    """Whether all entries are, NaN equal to NaN."""
    (leaves, structure), (others, other) = jax.tree.flatten(first), jax.tree.flatten(second)
    same = str(structure) == str(other)
    return same and all(map(_same_array, leaves, others))


def _same_array(first: Array, second: Array) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True)
