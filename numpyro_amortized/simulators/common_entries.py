# SPDX-License-Identifier: Apache-2.0
"""Draws of several models with the same entries, so that they fit into one batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array

__all__ = ["Entry", "KeyConflicts", "check_key_conflicts", "common_entries", "complete"]

KeyConflicts = Literal["drop", "fill", "error"]


class Entry(NamedTuple):
    """What one simulation has under one name."""

    shape: tuple[int, ...]
    dtype: Any


def check_key_conflicts(key_conflicts: str, fill_value: Any) -> None:
    """
    :param key_conflicts: what becomes of entries that not all models have.
    :param fill_value: stands in for them.
    :raises ValueError: if it is not one of the three ways.
    :raises TypeError: if the value to fill in is no scalar.
    """
    if key_conflicts not in get_args(KeyConflicts):
        raise ValueError(
            f"key_conflicts: expected one of {get_args(KeyConflicts)}, got {key_conflicts!r}."
        )
    if jnp.ndim(fill_value) or isinstance(fill_value, str):
        raise TypeError(f"fill_value: expected a scalar, got {fill_value!r}.")


def common_entries(
    entries: Sequence[Mapping[str, Entry]], key_conflicts: KeyConflicts, fill_value: Any
) -> dict[str, Entry]:
    """
    Settles which entries the draws of all models have.

    :param entries: for each model, name to entry.
    :param key_conflicts: "drop" leaves out entries that not all models have; "fill" gives them to
        all, and promotes their dtype so that it can hold ``fill_value``; "error" refuses them.
    :param fill_value: a scalar.
    :return: name to entry, in the order of the first models.
    :raises ValueError: naming the entries, if they conflict under "error", none is left, or
        entries of one name differ in shape or dtype.
    """
    names = dict.fromkeys(name for each in entries for name in each)
    partial = {n: [i for i, each in enumerate(entries) if n not in each] for n in names}
    partial = {name: lacking for name, lacking in partial.items() if lacking}
    if partial and key_conflicts == "error":
        raise ValueError(
            f"key_conflicts: entries that some models lack (name: models): {partial}. Rename them, "
            'or choose key_conflicts="drop" or "fill".'
        )
    kept = [name for name in names if key_conflicts == "fill" or name not in partial]
    if not kept:
        raise ValueError(
            f"key_conflicts: the models share no entry, so none is left of {list(names)}. Give "
            'what is observed the same name in all models, or choose key_conflicts="fill".'
        )
    variants = {n: list(dict.fromkeys(each[n] for each in entries if n in each)) for n in kept}
    _refuse_differences(variants)
    return {
        name: entry._replace(dtype=_filled_dtype(entry.dtype, fill_value, name in partial))
        for name, (entry,) in variants.items()
    }


def complete(
    draw: Mapping[str, Array], entries: Mapping[str, Entry], fill_value: Any
) -> dict[str, Array]:
    """
    :param draw: of one model.
    :param entries: from :func:`common_entries`.
    :param fill_value: for those that the model lacks.
    :return: exactly these entries, each of its shape and dtype. Traceable.
    """
    return {
        name: jnp.asarray(draw[name], dtype) if name in draw else jnp.full(shape, fill_value, dtype)
        for name, (shape, dtype) in entries.items()
    }


def _refuse_differences(variants: Mapping[str, Sequence[Entry]]) -> None:
    different = {
        name: [f"{entry.dtype}{list(entry.shape)}" for entry in each]
        for name, each in variants.items()
        if len(each) > 1
    }
    if different:
        raise ValueError(
            f"Entries differ between the models in shape or dtype: {different}. Give entries that "
            "mean different things different names, and bring the others to one shape, for "
            "example by padding."
        )


def _filled_dtype(dtype: Any, fill_value: Any, is_filled: bool) -> Any:
    return jnp.result_type(dtype, fill_value) if is_filled else dtype
