# SPDX-License-Identifier: Apache-2.0
"""Simulators in turn, each of which sees what those before it returned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import prod
from typing import Any, Protocol, final

import jax
import numpy as np
from jax import Array, random

from numpyro_amortized.simulators.arguments import model_signature
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator, check_shape, typed_key
from numpyro_amortized.simulators.functions import HostSimulator, JaxSimulator, LambdaSimulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.outputs import Columns, batched, on_device
from numpyro_amortized.simulators.workers import simulate_batch, simulate_draws

__all__ = ["HostSequence", "SequentialSimulator", "TraceableSequence", "make_simulator"]

Step = Simulator | Callable[..., Any]
Values = dict[str, Array]


class Block(Protocol):
    """Steps that run as one on a batch of ``n`` simulations; values are ``(n, *shape)``."""

    def __call__(
        self,
        rng_key: Array,
        shape: tuple[int, ...],
        earlier: Columns,
        /,
        *,
        workers: int | None,
    ) -> Columns: ...


@final
class TraceableSequence(TraceableSimulator):
    """Steps that JAX traces. Made by :func:`SequentialSimulator`.

    :param steps: traceable simulators.
    """

    def __init__(self, steps: Sequence[TraceableSimulator]) -> None:
        self.steps = tuple(steps)
        self._simulate = [_given(step) for step in self.steps]

    def simulate(self, rng_key: Array) -> Values:
        """
        Draws once, all steps. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :return: name to value, of its own shape.
        """
        key = typed_key(rng_key)
        values: Values = {}
        for number, simulate in enumerate(self._simulate):
            values |= simulate(random.fold_in(key, number), values)
        return values


@final
class HostSequence(Simulator):
    """Steps of which some run on the host. Made by :func:`SequentialSimulator`.

    Functions that are called once for each simulation, one after the other, run as one: a worker
    process takes a simulation through all of them.

    :param steps: simulators.
    """

    def __init__(self, steps: Sequence[Simulator]) -> None:
        self.steps = tuple(steps)
        self._blocks = [*_blocks(self.steps)]

    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> Values:
        """
        Draws a batch of simulations. Equal keys give equal batches, whatever ``workers`` is.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param workers: number of worker processes for functions that are called once for each
            simulation, as ``n_jobs`` of :class:`joblib.Parallel`.
        :return: name to values of shape ``(*batch_shape, *shape)``.
        :raises ValueError: if shapes differ between simulations, or a function that cannot be
            seeded is to run on several workers.
        """
        key, shape = typed_key(rng_key), check_shape(batch_shape)
        values: Columns = {}
        for block_key, block in zip(
            random.split(key, len(self._blocks)), self._blocks, strict=True
        ):
            values |= block(block_key, shape, values, workers=workers)
        return on_device(values, shape)


def SequentialSimulator(  # noqa: N802
    steps: Sequence[Step],
) -> TraceableSequence | HostSequence:
    """
    Functions and simulators in turn, such as a prior and a likelihood.

    Each function gets by name what earlier steps returned: numbers and arrays of one simulation, or
    of the whole batch if it is batched. An argument with a default keeps it where nothing of that
    name was returned. A :class:`ModelSimulator` gets those that are arguments of its model, in
    place of its own. The outputs of all steps are returned; of equal names the last.

    **Example**

    .. doctest::

        >>> from jax import random
        >>> def prior(rng_key):
        ...     return {"mu": random.normal(rng_key)}
        >>> def likelihood(rng_key, mu, n=3):
        ...     return {"x": mu + random.normal(rng_key, (n,))}
        >>> draws = SequentialSimulator([prior, likelihood]).sample(random.key(0), 100)
        >>> {name: values.shape for name, values in draws.items()}
        {'mu': (100,), 'x': (100, 3)}

    :param steps: functions, as for :func:`LambdaSimulator`, and simulators.
    :return: a :class:`TraceableSimulator` if all steps are traceable.
    :raises TypeError: if a step is neither.
    :raises ValueError: if there is none.
    """
    parts = [part for step in steps for part in _parts(make_simulator(step))]
    if not parts:
        raise ValueError("steps: expected at least one function or simulator, got none.")
    traceable = [part for part in parts if isinstance(part, TraceableSimulator)]
    return TraceableSequence(traceable) if traceable == parts else HostSequence(parts)


def make_simulator(obj: Any) -> Simulator:
    """
    A simulator from what describes one.

    A simulator is returned as it is, and a function becomes a :func:`LambdaSimulator`. A list of
    them is a :func:`SequentialSimulator`, and so is a mapping from names to them: where a function
    returns no dictionary but a number or an array, that is the name of its output.

    **Example**

    .. doctest::

        >>> from jax import random
        >>> simulator = make_simulator(
        ...     {
        ...         "mu": lambda rng_key: random.normal(rng_key),
        ...         "x": lambda rng_key, mu: mu + random.normal(rng_key, (3,)),
        ...     }
        ... )
        >>> simulator.sample(random.key(0), 100)["x"].shape
        (100, 3)

    :param obj: a simulator, a function, a list of them, or a mapping from names to them. A NumPyro
        model is given as :class:`ModelSimulator`, since it cannot be told from another function.
    :return: the simulator.
    :raises TypeError: for anything else.
    """
    if isinstance(obj, Simulator):
        return obj
    if isinstance(obj, Mapping):
        return SequentialSimulator([_named(name, step) for name, step in obj.items()])
    if isinstance(obj, Sequence) and not isinstance(obj, str):
        return SequentialSimulator(obj)
    if callable(obj):
        return LambdaSimulator(obj)
    raise TypeError(
        "Expected a simulator, a function, a list of them or a mapping from names to them, got "
        f"{type(obj).__name__}."
    )


def _named(name: str, step: Step) -> Simulator:
    simulator = make_simulator(step)
    if isinstance(simulator, JaxSimulator | HostSimulator):
        return type(simulator)(simulator.function._replace(output=name))
    return simulator


def _parts(simulator: Simulator) -> Sequence[Simulator]:
    """Steps of steps are steps, and see all values."""
    return (
        simulator.steps if isinstance(simulator, TraceableSequence | HostSequence) else [simulator]
    )


def _given(step: TraceableSimulator) -> Callable[[Array, Mapping[str, Array]], Values]:
    """One draw, given the values of earlier steps."""
    if isinstance(step, JaxSimulator):
        return step.simulate_given
    if isinstance(step, ModelSimulator):
        return partial(_simulate_model, step)
    return lambda rng_key, earlier: step.simulate(rng_key)


def _simulate_model(
    simulator: ModelSimulator, rng_key: Array, earlier: Mapping[str, Array]
) -> Values:
    known = model_signature(simulator.model).parameters
    taken = {name: x for name, x in earlier.items() if name in known}
    if not taken:
        return simulator.simulate(rng_key)
    if own := [site.name for site in simulator.sites.values() if site.role == "context"]:
        raise ValueError(
            f"The model draws {own} as its context, so that it cannot also take {[*taken]} from "
            "earlier steps. Draw all of its arguments in one place."
        )
    return simulator.simulate_given(rng_key, taken)


def _blocks(steps: Sequence[Simulator]) -> Iterator[Block]:
    """Consecutive functions on the host, if not batched, are one block; other steps one each."""
    for is_batched, group in groupby(steps, _is_batched):
        if is_batched:
            yield from map(_batched_block, group)
        else:
            functions = [step.function for step in group if isinstance(step, HostSimulator)]
            yield partial(simulate_draws, functions)


def _is_batched(step: Simulator) -> bool:
    return not isinstance(step, HostSimulator) or step.function.is_batched


def _batched_block(step: Simulator) -> Block:
    if isinstance(step, HostSimulator):
        return partial(simulate_batch, step.function)
    if isinstance(step, TraceableSimulator):
        return partial(_run_vectorized, jax.jit(jax.vmap(_given(step))))
    return partial(_sample, step)


def _run_vectorized(
    simulate: Callable[[Array, Values], Values],
    rng_key: Array,
    shape: tuple[int, ...],
    earlier: Columns,
    *,
    workers: int | None,
) -> Columns:
    keys = random.split(rng_key, prod(shape))
    draws = simulate(keys, on_device(earlier, keys.shape))
    return {name: np.asarray(x) for name, x in draws.items()}


def _sample(
    simulator: Simulator,
    rng_key: Array,
    shape: tuple[int, ...],
    earlier: Columns,
    *,
    workers: int | None,
) -> Columns:
    options = {} if workers is None else {"workers": workers}
    draws = simulator.sample(rng_key, shape, **options)
    return {name: batched(type(simulator).__name__, name, x, shape) for name, x in draws.items()}
