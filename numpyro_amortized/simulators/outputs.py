# SPDX-License-Identifier: Apache-2.0
"""What functions on the host return, as the arrays of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["Columns", "batched", "frozen", "joined", "on_device", "stacked"]

Columns = dict[str, np.ndarray]
_NUMBERS = bool | int | float | np.number | np.bool_


def frozen(function: str, name: str, value: Any) -> Any:
    """
    Copies an output: a function may reuse what it returned, or change what it is given.

    :param function: name of the function.
    :param name: name of the entry.
    :param value: a number, or numbers in an array or in lists.
    :return: a number, or an array that cannot be written to.
    :raises TypeError: for anything else.
    """
    if isinstance(value, _NUMBERS):
        return value
    try:
        array = np.array(value)
    except ValueError:  # ragged lists
        array = np.array(None)
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"Entry '{name}' of function '{function}': expected a number or an array of numbers, "
            f"got {type(value).__name__}. Pad ragged lists to equal lengths and return a mask; "
            "return the entries of a dictionary beside the others."
        )
    return _sealed(array)[()]


def batched(function: str, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param function: name of a function that draws a whole batch.
    :param name: name of the entry.
    :param value: of shape ``(*batch_shape, *shape)``, or a scalar that holds for the batch.
    :param shape: of the batch of ``n`` simulations.
    :return: values of shape ``(n, *shape)``.
    :raises ValueError: if the value has not the batch shape.
    """
    array = np.asarray(frozen(function, name, value))
    if array.ndim == 0:
        array = np.broadcast_to(array, shape)
    if array.shape[: len(shape)] != shape:
        raise ValueError(
            f"Entry '{name}' of function '{function}': expected the batch shape {shape} as leading "
            f"axes, got shape {array.shape}. With is_batched=False the function is called once for "
            "each simulation."
        )
    return array.reshape(-1, *array.shape[len(shape) :])


def stacked(rows: Mapping[str, Sequence[Any]], start: int) -> Columns:
    """
    :param rows: name to one value from each simulation, from :func:`frozen`.
    :param start: number of the first of these simulations.
    :return: name to values of shape ``(n, *shape)``.
    :raises ValueError: if the shapes differ.
    :raises OverflowError: if an integer has more than 64 bits.
    """
    return {name: _stack(name, values, start) for name, values in rows.items()}


def joined(chunks: Sequence[Columns]) -> Columns:
    """
    :param chunks: name to values, of consecutive simulations.
    :return: name to values of all of them.
    :raises ValueError: if the names or shapes differ.
    """
    first, number = chunks[0], 0
    for chunk in chunks:
        check_names([*first], number, [*chunk])
        for name, values in chunk.items():
            _check_shapes(name, 0, first[name].shape[1:], number, values.shape[1:])
        number += len(next(iter(chunk.values()), ()))
    return {name: _sealed(np.concatenate([chunk[name] for chunk in chunks])) for name in first}


def check_names(expected: Sequence[str], number: int, got: Sequence[str]) -> None:
    """
    :param expected: names of the entries of the simulations before.
    :param number: of a simulation.
    :param got: names of its entries.
    :raises ValueError: if they differ.
    """
    if set(expected) != set(got):
        raise ValueError(
            f"Simulation {number}: expected entries {sorted(expected)}, as in those before, got "
            f"{sorted(got)}. Return every entry each time, with a fill value where it has none."
        )


def on_device(draws: Columns, shape: tuple[int, ...]) -> dict[str, Array]:
    """
    :param draws: name to values of shape ``(n, *shape)``.
    :param shape: of the batch of ``n`` simulations.
    :return: name to values of shape ``(*batch_shape, *shape)``, of JAX's types.
    :raises OverflowError: if these do not hold the integers.
    """
    for name, values in draws.items():
        _check_range(name, values)
    return {name: jnp.asarray(x.reshape(shape + x.shape[1:])) for name, x in draws.items()}


def _sealed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _stack(name: str, values: Sequence[Any], start: int) -> np.ndarray:
    try:
        array = np.array(values)
    except ValueError:
        for number, value in enumerate(values, start):
            _check_shapes(name, start, np.shape(values[0]), number, np.shape(value))
        raise
    if array.dtype == object:
        raise OverflowError(f"Entry '{name}': integers of more than 64 bits. Return floats.")
    return _sealed(array)


def _check_shapes(
    name: str, first: int, expected: tuple[int, ...], number: int, got: tuple[int, ...]
) -> None:
    if got != expected:
        raise ValueError(
            f"Entry '{name}': shape {expected} in simulation {first}, but {got} in simulation "
            f"{number}. Simulations need equal shapes: pad the entry to its greatest length, and "
            "return a mask of the values that count beside it."
        )


def _check_range(name: str, values: np.ndarray) -> None:
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if values.dtype.kind not in "iu" or values.dtype == dtype:
        return
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise OverflowError(
            f"Entry '{name}': integers from {values.min()} to {values.max()} do not fit {dtype}. "
            "Return floats, or set jax_enable_x64."
        )
