# SPDX-License-Identifier: Apache-2.0
"""Which arguments of a model hold its data, and whether they reach more than the observed sites."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Arguments", "data_leaves", "data_sized", "refuse_leaks"]

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
        leaves = [changes.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        args, kwargs = jax.tree.unflatten(self.structure, leaves)
        return run(args, kwargs)


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
        if (_is_array(leaf) or (isinstance(leaf, int) and leaf in scalars))
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
    arrays = {i: x for i, x in enumerate(arguments.leaves) if _is_array(x)}
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


def data_sized(
    arguments: Arguments, data: Sequence[int], shapes: Run, sites: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """
    Finds the axes of sites that follow the number of data, by taking one datum away.

    :param arguments: the model's arguments.
    :param data: indices of the leaves that hold data.
    :param shapes: arguments to site name to shape.
    :param sites: site name to shape, for the arguments as they are.
    :return: site name to axes; empty where the model cannot be run with one datum less.
    """
    lengths = {np.shape(arguments.leaves[i])[0] for i in data if np.ndim(arguments.leaves[i])} - {1}
    arrays = {i: _shorter(x, lengths) for i, x in enumerate(arguments.leaves) if _is_array(x)}
    counts = {i: x - 1 for i, x in enumerate(arguments.leaves) if type(x) is int and x in lengths}
    # A model that takes its size as an argument of its own runs only if that changes, too.
    for changes in (arrays, arrays | counts) if lengths else ():
        try:
            shorter = arguments.call(shapes, changes)
        except Exception:
            continue
        if axes := _changed_axes(sites, shorter):
            return axes
    return {}


def _changed_axes(
    before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    changed = {}
    for name, shape in before.items():
        new = after.get(name, shape)
        if len(new) == len(shape) and new != shape:
            changed[name] = tuple(k for k, size in enumerate(shape) if size != new[k])
    return changed


def _shorter(x: Any, lengths: set[int]) -> Any:
    return x[tuple(slice(n - 1 if n in lengths else n) for n in np.shape(x))] if np.ndim(x) else x


def _evaluator(arguments: Arguments, run: Run) -> Callable[[Mapping[int, Any]], dict[str, Any]]:
    """Runs with changed leaves; compiled once, where the model can be traced in its arguments."""
    arrays = {i: x for i, x in enumerate(arguments.leaves) if _is_array(x)}
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


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, float):
        return True
    numeric = isinstance(leaf, np.ndarray | np.generic | jax.Array)
    return numeric and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number))


def _positional_names(model: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _label(path: tuple[Any, ...], names: Sequence[str]) -> str:
    group, key, *rest = path
    inner = jax.tree_util.keystr(tuple(rest))
    if group.idx == 1:
        return f"argument '{key.key}'{inner}"
    if key.idx < len(names):
        return f"argument '{names[key.idx]}'{inner}"
    return f"positional argument {key.idx}{inner}"
