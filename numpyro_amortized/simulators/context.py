# SPDX-License-Identifier: Apache-2.0
"""What a model is called with, drawn anew for every simulation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from numpyro_amortized.simulators.arguments import model_parameters
from numpyro_amortized.simulators.tracing import Site

__all__ = ["Context", "context_sites"]

Context = Callable[[Array], Mapping[str, Any]]  # key to keyword arguments of the model


def context_sites(
    context: Context, model: Callable[..., Any], args: tuple[Any, ...], passed: Mapping[str, Any]
) -> dict[str, Site]:
    """
    Checks a context, and describes what it draws.

    :param context: key to keyword arguments of the model.
    :param model: the model.
    :param args: the positional arguments that are given besides.
    :param passed: the keyword arguments that are.
    :return: name to a site of role "context".
    :raises TypeError: if it draws no mapping of names to arrays.
    :raises ValueError: if the model takes no such argument, or it is also passed.
    """
    if not callable(context):
        raise TypeError(f"context: expected a function of a key, got {type(context).__name__}.")
    shapes = jax.eval_shape(context, random.key(0))
    if not isinstance(shapes, Mapping) or not shapes:
        raise TypeError(
            "context: expected a function of a key that returns a dictionary of the model's "
            f"keyword arguments, got {type(shapes).__name__} from it."
        )
    _check_names(shapes, model, args, passed)
    return {
        name: Site(name, "context", x.shape, jnp.dtype(x.dtype), None, (), 0)
        for name, x in shapes.items()
    }


def _check_names(
    names: Mapping[str, Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    passed: Mapping[str, Any],
) -> None:
    parameters = model_parameters(model)
    first = (parameters or [])[: len(args)]
    taken = [*passed, *(p.name for p in first if p.kind is not p.VAR_POSITIONAL)]
    if twice := [name for name in names if name in taken]:
        raise ValueError(
            f"context: {twice} are drawn, but also passed to the model; leave out one of them."
        )
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"context: it draws {unknown}, which are no arguments of the model; it takes {known}."
        )
