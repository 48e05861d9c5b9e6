# SPDX-License-Identifier: Apache-2.0
"""Draws that a predicate accepts, collected in rounds of fixed size."""

from collections.abc import Callable
from functools import partial
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

__all__ = ["Predicate", "accepted_draws", "check_count"]

Draws = dict[str, Array]
Predicate = Callable[[Draws], Any]


def accepted_draws(
    propose: Callable[[Array], Draws],
    rng_key: Array,
    predicate: Predicate,
    *,
    num_draws: int,
    sample_size: int,
    max_rounds: int,
) -> tuple[Draws, int]:
    """
    Proposes draws until enough are accepted.

    :param propose: key to ``sample_size`` draws, values ``(sample_size, *shape)``.
    :param rng_key: a typed key.
    :param predicate: these draws to which of them are accepted, booleans ``(sample_size,)``.
    :param num_draws: the least number of accepted draws.
    :param sample_size: number of draws proposed in a round.
    :param max_rounds: the greatest number of rounds.
    :return: arrays that begin with the accepted draws, in the order in which they were drawn, and
        how many these are.
    :raises RuntimeError: if too few are accepted.
    :raises TypeError: if the predicate returns no array of booleans.
    :raises ValueError: if their shape is not ``(sample_size,)``.
    """
    kept: Draws = {}
    count = 0
    for number in range(max_rounds):
        draws = propose(random.fold_in(rng_key, number))
        accepted = _checked(predicate, predicate(draws), sample_size)
        kept = kept or _room(draws, num_draws - 1 + sample_size)
        kept, total = _append(kept, count, draws, accepted)
        count = int(total)
        if count >= num_draws:
            return kept, count
    proposed = max_rounds * sample_size
    raise RuntimeError(
        f"Predicate '{_name(predicate)}' accepted {count} of {proposed} simulations, "
        f"{count / proposed:.2%}, in {max_rounds} rounds; {num_draws} were asked for. Widen it, "
        "simulate from a prior that meets it more often, or raise sample_size or max_rounds."
    )


def check_count(name: str, value: int) -> int:
    """
    :param name: of an argument.
    :param value: a number that must be at least 1.
    :return: it.
    :raises TypeError: if it is no integer.
    :raises ValueError: if it is less than 1.
    """
    try:
        count = index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}.") from None
    if count < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}.")
    return count


def _checked(predicate: Predicate, accepted: Any, size: int) -> Array:
    expected = f"Predicate '{_name(predicate)}': expected {size} booleans, one for each simulation"
    dtype, shape = getattr(accepted, "dtype", None), getattr(accepted, "shape", None)
    if dtype is None or shape is None:
        raise TypeError(f"{expected}, in an array; got {type(accepted).__name__}.")
    if dtype != np.dtype(bool):
        raise TypeError(f"{expected}, got {dtype}; compare, as in draws['x'] > 0.")
    if shape != (size,):
        raise ValueError(
            f"{expected}, got shape {shape}; it gets all of a round's simulations, along the first "
            "axis. Reduce the others, as in (draws['x'] > 0).all(-1)."
        )
    return jnp.asarray(accepted)


def _name(predicate: Predicate) -> str:
    return getattr(predicate, "__name__", type(predicate).__name__)


def _room(draws: Draws, num_rows: int) -> Draws:
    return {name: jnp.zeros((num_rows, *x.shape[1:]), x.dtype) for name, x in draws.items()}


@partial(jax.jit, donate_argnums=0)
def _append(kept: Draws, count: int, draws: Draws, accepted: Array) -> tuple[Draws, Array]:
    """Shapes do not depend on how many are accepted, so that one program serves all rounds."""
    last = jnp.cumsum(accepted) + count
    kept = {
        name: rows.at[jnp.where(accepted, last - 1, len(rows))].set(draws[name], mode="drop")
        for name, rows in kept.items()
    }
    return kept, last[-1]
