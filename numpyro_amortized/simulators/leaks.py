# SPDX-License-Identifier: Apache-2.0
"""Which arguments of a model hold its data, and whether they reach more than the observed sites."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_amortized.simulators.arguments import Arguments, Run, is_array

__all__ = ["data_leaves", "refuse_leaks"]


def data_leaves(arguments: Arguments, passed: Run) -> list[int]:
    """
    Finds the data among the arguments: changing them changes the values passed to ``obs=``.

    :param arguments: the model's arguments.
    :param passed: arguments to the values that the observed sites come with.
    :return: indices of the leaves that hold data.
    """
    evaluate = _evaluator(arguments, passed)
    scalars = [x for x in evaluate({}).values() if np.ndim(x) == 0]
    return [
        i
        for i, leaf in enumerate(arguments.leaves)
        if (is_array(leaf) or (isinstance(leaf, int) and leaf in scalars))
        and any(_changes(evaluate, i, leaf))
    ]


def refuse_leaks(
    arguments: Arguments, data: Sequence[int], simulated: Run, *, harmless: Set[str] = frozenset()
) -> list[str]:
    """
    Checks that no site of the simulation depends on the data.

    :param arguments: the model's arguments.
    :param data: indices of the leaves that hold data.
    :param simulated: arguments to one simulation, always with the same key, in trace order.
    :param harmless: sites that may depend on the data.
    :return: those of them that do.
    :raises ValueError: naming argument and sites, if it does.
    """
    isolated = _isolated(arguments, simulated)
    data = [i for i in data if i not in isolated]
    if not data:
        return []
    evaluate = _evaluator(arguments, simulated)
    stale: dict[str, None] = {}
    for i in data:
        for changed in _changes(evaluate, i, arguments.leaves[i]):
            stale |= dict.fromkeys(changed)
            if not harmless >= {*changed}:
                raise ValueError(
                    f"The data in {arguments.labels[i]} leak into the simulation: they are not "
                    f"only observed, but also change the simulated values of {changed[:3]}. "
                    "Use the simulated value there, make what is computed from the data an "
                    "argument of its own, or call the model without data and name the observed "
                    "sites with observed=."
                )
    return list(stale)


def _isolated(arguments: Arguments, run: Run) -> set[int]:
    """Leaves that no result is computed from: for these a look at the program saves running it."""
    arrays = {i: x for i, x in enumerate(arguments.leaves) if is_array(x)}
    try:
        jaxpr = jax.make_jaxpr(lambda changes: arguments.call(run, changes))(arrays).jaxpr
    except Exception:  # The model cannot be traced in its arguments.
        return set()
    return {
        i
        for i, leaf in zip(sorted(arrays), jaxpr.invars, strict=True)
        if not _reached(jaxpr, leaf) & {id(x) for x in jaxpr.outvars}
    }


def _reached(jaxpr: Any, variable: Any) -> set[int]:
    reached = {id(variable)}
    for equation in jaxpr.eqns:
        if not reached.isdisjoint(map(id, equation.invars)):
            reached |= {id(x) for x in equation.outvars}
    return reached


def _evaluator(arguments: Arguments, run: Run) -> Callable[[Mapping[int, Any]], dict[str, Any]]:
    """Runs with changed leaves; compiled once, where the model can be traced in its arguments."""
    arrays = {i: x for i, x in enumerate(arguments.leaves) if is_array(x)}
    order: list[str] = []

    def ordered(changes: Mapping[int, Any]) -> list[Any]:
        values = arguments.call(run, changes)
        order[:] = values
        return list(values.values())

    traced = jax.jit(ordered)
    results: dict[str, list[Any]] = {}
    try:
        traced.lower(arrays)
        can_trace = True
    except Exception:
        can_trace = False

    def evaluate(changes: Mapping[int, Any]) -> dict[str, Any]:
        if can_trace and changes.keys() <= arrays.keys():
            values = traced({**arrays, **changes})
        else:
            lowered = jax.jit(lambda: ordered(changes)).lower()
            program = lowered.as_text()
            if program not in results:
                results[program] = lowered.compile()()
            values = results[program]
        return dict(zip(order, jax.device_get(values), strict=True))

    return evaluate


def _changes(evaluate: Callable[..., dict[str, Any]], i: int, leaf: Any) -> Iterator[list[str]]:
    """For each perturbation of a leaf, the names of the results that change with it."""
    base = evaluate({i: leaf})
    for value in _perturbations(leaf):
        try:
            yield _changed(base, evaluate({i: value}))
        except Exception:  # The model does not take such values: nothing is learned from them.
            continue


def _perturbations(leaf: Any) -> Iterator[Any]:
    """The leaf with other values, of the same shape and type; entries that are NaN stay NaN."""
    if isinstance(leaf, bool | int | float):
        yield (not leaf) if isinstance(leaf, bool) else leaf + 1 if leaf == 0 else leaf * 2
        return
    x = np.asarray(leaf)
    restore = jnp.asarray if isinstance(leaf, jax.Array) else np.asarray
    if x.dtype == bool:
        yield restore(~x)
    elif np.issubdtype(x.dtype, np.integer):
        yield restore(x + np.ones((), x.dtype))
    else:
        yield restore((1.25 * x + 0.125).astype(x.dtype))
    finite = np.isfinite(x)
    for move in (lambda values: values[::-1], lambda values: np.roll(values, 1)):
        moved = x.copy()
        moved[finite] = move(x[finite])
        yield restore(moved)


def _changed(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    # Other shapes are no leak: sizes may follow from the data, and draws differ between sizes.
    if {name: np.shape(x) for name, x in base.items()} != {k: np.shape(x) for k, x in new.items()}:
        return []
    return [x for x in base if not np.allclose(base[x], new[x], rtol=1e-4, equal_nan=True)]
