# SPDX-License-Identifier: Apache-2.0
"""The arguments of a model as a flat list, each with a name for messages."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

__all__ = ["Arguments", "Run", "is_array", "model_parameters", "model_signature"]

Run = Callable[[tuple[Any, ...], Mapping[str, Any]], dict[str, Any]]


class Arguments(NamedTuple):
    """The arguments of a model as a flat list."""

    labels: list[str]
    leaves: list[Any]
    structure: Any

    @classmethod
    def of(
        cls, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "Arguments":
        """
        :param model: whose signature names the positional arguments.
        :param args: its arguments.
        :param kwargs: its keyword arguments.
        :return: them as leaves.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path((args, dict(kwargs)))
        names = _positional_names(model)
        return cls([_label(path, names) for path, _ in paths], [x for _, x in paths], structure)

    def call(self, run: Run, changes: Mapping[int, Any]) -> dict[str, Any]:
        """
        :param run: a function of the arguments.
        :param changes: index of a leaf to its new value.
        :return: ``run`` of the changed arguments.
        """
        return run(*self.changed(changes))

    def changed(self, changes: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        :param changes: index of a leaf to its new value.
        :return: the changed arguments and keyword arguments.
        """
        leaves = [changes.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        return jax.tree.unflatten(self.structure, leaves)


def model_signature(model: Callable[..., Any]) -> inspect.Signature:
    """:return: the signature of a model, also under handlers, which hide it."""
    while isinstance(model, Messenger):
        model = model.fn
    return inspect.signature(model)


def is_array(leaf: Any) -> bool:
    """
    :param leaf: of the arguments.
    :return: whether it holds numbers or booleans that a traced array can stand in for.
    """
    if isinstance(leaf, float):
        return True
    numeric = isinstance(leaf, np.ndarray | np.generic | jax.Array)
    return numeric and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number))


def model_parameters(model: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """:return: the parameters of a model, ``None`` where they are not known."""
    try:
        return list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):
        return None


def _positional_names(model: Callable[..., Any]) -> list[str]:
    parameters = model_parameters(model) or []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _label(path: tuple[Any, ...], names: Sequence[str]) -> str:
    group, key, *rest = path
    inner = jax.tree_util.keystr(tuple(rest))
    if group.idx == 1:
        return f"argument '{key.key}'{inner}"
    if key.idx < len(names):
        return f"argument '{names[key.idx]}'{inner}"
    return f"positional argument {key.idx}{inner}"
