# SPDX-License-Identifier: Apache-2.0
"""A context that is drawn once for a batch and given to several simulators by name."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, final

import jax
import numpy as np
from jax import Array, random

from numpyro_amortized.simulators.arguments import model_signature
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator
from numpyro_amortized.simulators.functions import Function, HostSimulator, JaxSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.sequential import (
    HostSequence,
    SequentialSimulator,
    TraceableSequence,
)

__all__ = ["Context", "draw_context", "given", "taken"]

Context = Mapping[str, Any]


def draw_context(simulator: Simulator, rng_key: Array) -> dict[str, Any]:
    """
    :param simulator: of the context.
    :param rng_key: a key.
    :return: name to one draw. Scalar integers are Python's, so that they can be sizes.
    """
    draws = jax.device_get(simulator.sample(rng_key, ()))
    return {name: _static(value) for name, value in draws.items()}


def taken(simulator: Simulator, names: Iterable[str]) -> set[str]:
    """
    :param simulator: of a model.
    :param names: of a context.
    :return: those that the simulator takes: arguments of its functions, or of its NumPyro model.
    """
    if isinstance(simulator, TraceableSequence | HostSequence):
        functions = [step for step in simulator.steps if not isinstance(step, ModelSimulator)]
        return set().union(*(taken(step, names) for step in functions))
    if isinstance(simulator, JaxSimulator | HostSimulator):
        function = simulator.function
        known, takes_all = (*function.required, *function.optional), function.takes_all
    elif isinstance(simulator, ModelSimulator):
        parameters = model_signature(simulator.model).parameters
        known, takes_all = (*parameters,), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    else:
        return set()
    return {name for name in names if takes_all or name in known}


def given(
    simulator: Simulator, context: Context
) -> Callable[[Array, int, int | None], dict[str, Array]]:
    """
    :param simulator: of a model.
    :param context: from :func:`draw_context`.
    :return: key, number of draws and of workers to draws, given what the simulator takes of it.
    """
    names = taken(simulator, context)
    context = {name: x for name, x in context.items() if name in names}
    if not (context and isinstance(simulator, TraceableSimulator)):
        bound = _bound(simulator, context) if context else simulator
        return lambda rng_key, size, workers: bound.sample(rng_key, size, workers=workers)
    static = tuple((name, x) for name, x in context.items() if isinstance(x, int))
    arrays = {name: x for name, x in context.items() if not isinstance(x, int)}
    return lambda rng_key, size, workers: _vectorized(simulator, static, size, rng_key, arrays)


@partial(jax.jit, static_argnames=("simulator", "static", "size"))
def _vectorized(
    simulator: TraceableSimulator,
    static: tuple[tuple[str, int], ...],
    size: int,
    rng_key: Array,
    arrays: Mapping[str, Array],
) -> dict[str, Array]:
    """Other contexts compile nothing anew, other integers do."""
    bound = _bound(simulator, {**dict(static), **arrays})
    return jax.vmap(bound.simulate)(random.split(rng_key, size))


def _bound(simulator: Simulator, context: Context) -> Any:
    if isinstance(simulator, TraceableSequence | HostSequence):
        return SequentialSimulator([_bound_step(step, context) for step in simulator.steps])
    if isinstance(simulator, JaxSimulator | HostSimulator):
        return type(simulator)(_bound_function(simulator.function, context))
    if isinstance(simulator, ModelSimulator):
        return _ModelGiven(simulator, context)
    return simulator


def _bound_step(step: Simulator, context: Context) -> Simulator:
    return step if isinstance(step, ModelSimulator) else _bound(step, context)


def _bound_function(function: Function, context: Context) -> Function:
    wanted = (*function.required, *function.optional)
    values = {n: x for n, x in context.items() if function.takes_all or n in wanted}
    return function._replace(
        call=partial(function.call, **values),
        required=tuple(name for name in function.required if name not in values),
        optional=tuple(name for name in function.optional if name not in values),
    )


@final
class _ModelGiven(TraceableSimulator):
    """A NumPyro model with some arguments replaced."""

    def __init__(self, simulator: ModelSimulator, context: Context) -> None:
        if any(site.role == "context" for site in simulator.sites.values()):
            raise ValueError(
                "shared_simulator: a ModelSimulator with a context or sizes of its own takes no "
                "other. Draw all of it in shared_simulator."
            )
        self._simulator, self._context = simulator, context

    def simulate(self, rng_key: Array) -> dict[str, Array]:
        return self._simulator.simulate_given(rng_key, self._context)


def _static(value: Any) -> Any:
    is_integer = np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer)
    return int(value) if is_integer else value
