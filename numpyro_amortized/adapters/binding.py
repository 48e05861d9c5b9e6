# SPDX-License-Identifier: Apache-2.0
"""Binding a chain of steps to simulations: shapes, moments, and what can be undone."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_amortized.adapters.base import Bijection, Data, Draws, Transform

Shapes = dict[str, Any]  # name -> jax.ShapeDtypeStruct of one simulation's value, or a dict of them
_VECTORS = ("inference_variables", "inference_conditions")


class Bindable(Transform):
    """A step that is complete only once it has seen simulations."""

    @abstractmethod
    def bind(self, shapes: Shapes, draws: Callable[[], Draws]) -> Transform:
        """The complete step; as it is where its entries are absent.

        :param shapes: of one simulation's entries before the step.
        :param draws: gives pilot draws of these entries, with a leading axis of simulations.
        """


class Binding(NamedTuple):
    """A chain of complete steps, and what it does to simulations of known shapes."""

    steps: tuple[Transform, ...]
    shapes: tuple[Shapes, ...]  # before the first step, and after each
    lost: tuple[frozenset[str], ...]  # for each step, the entries after it that it cannot undo
    sources: tuple[frozenset[str], ...] | None  # for each, those that become inference variables


def bind_steps(
    steps: Sequence[Transform], shapes: Shapes, pilot: Draws | None = None, *, check: bool = True
) -> Binding:
    """Complete every step, and follow the entries through the chain.

    :param steps: the chain.
    :param shapes: of one simulation's entries.
    :param pilot: draws of these entries, for steps that fit moments.
    :param check: whether all entries are there, so that a step without its own is an error.
    :raises ValueError: where a step finds no entry of its name, inference variables pass a step
        that cannot be undone, or are no vectors.
    :raises RuntimeError: where moments are to be fitted, and there are no pilot draws.
    """
    draws = _PilotDraws(pilot)
    complete: list[Transform] = []
    stages, lost = [shapes], []
    for number, step in enumerate(steps):
        with located(number, step):
            if check:
                _check_entries(step, stages[-1])
            if isinstance(step, Bindable):
                step = step.bind(stages[-1], draws)
            after, changed = _follow(step, stages[-1])
        draws.pending.append(step)
        complete.append(step)
        stages.append(after)
        lost.append(changed)
    _check_vectors(stages[-1])
    sources = _sources(complete, stages, lost)
    return Binding(tuple(complete), tuple(stages), tuple(lost), sources)


def shapes_of(data: Mapping[str, Any], *, num_batch_axes: int = 0) -> Shapes:
    """Shapes and types of one simulation's values."""

    def one(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(array)[num_batch_axes:], jnp.result_type(array))

    return jax.tree.map(one, dict(data))


@contextmanager
def located(number: int, step: Transform) -> Iterator[None]:
    """Errors say at which step of the chain they arose."""
    try:
        yield
    except Exception as error:
        error.add_note(f"In step {number + 1} of the adapter: {'; '.join(step.describe())}")
        raise


class _PilotDraws:
    """Pilot draws after the steps so far, computed only when a step asks for them."""

    def __init__(self, draws: Draws | None) -> None:
        self.draws = draws
        self.pending: list[Transform] = []

    def __call__(self) -> Draws:
        if self.draws is None:
            raise RuntimeError(
                "Adapter: moments are to be fitted and there are no draws. Call "
                "`adapter.bind(draws)` with simulations first, or give `mean` and `std`."
            )
        if self.pending:
            self.draws = jax.jit(jax.vmap(partial(run, tuple(self.pending))))(dict(self.draws))
            self.pending = []
        return self.draws


def run(steps: Sequence[Transform], data: Data) -> Data:
    """The values of one simulation after all steps."""
    for step in steps:
        data = step.forward(data)
    return data


def _check_entries(step: Transform, shapes: Shapes) -> None:
    """All simulations have all entries here: a name that is not among them is a typing error."""
    missing = [name for name in getattr(step, "names", ()) if name not in shapes]
    if missing:
        raise ValueError(
            f"Adapter: expected entries from {list(shapes)}, which are there at the step "
            f"'{'; '.join(step.describe())}', got {missing}."
        )


def _follow(step: Transform, shapes: Shapes) -> tuple[Shapes, frozenset[str]]:
    """Shapes after a step, and the entries that come out other than they went in, for good."""
    changed: set[str] = set()

    def forward(data: Data) -> Data:
        after = step.forward(data)
        changed.update(name for name, value in after.items() if value is not data.get(name))
        return after

    after = jax.eval_shape(forward, shapes)
    return dict(after), frozenset() if isinstance(step, Bijection) else frozenset(changed)


def _check_vectors(shapes: Shapes) -> None:
    for name in _VECTORS:
        struct = shapes.get(name)
        if struct is None or isinstance(struct, Mapping):
            continue
        if len(struct.shape) != 1:
            raise ValueError(
                f"Adapter: expected '{name}' to be a vector, got a value of shape {struct.shape}. "
                f"Use `concatenate([...], into='{name}', axis=None)`, which makes one vector of "
                "scalars, vectors and matrices. Where leading axes are a batch, call "
                "`adapter.bind(draws)` first."
            )


def _sources(
    steps: Sequence[Transform], stages: Sequence[Shapes], lost: Sequence[frozenset[str]]
) -> tuple[frozenset[str], ...] | None:
    """The entries before each step that inference variables come from, by undoing the steps."""
    target = "inference_variables"
    if target not in stages[-1]:
        return None
    state = {target: stages[-1][target]}
    sources: list[frozenset[str]] = []
    for number, step in reversed(list(enumerate(steps))):
        blocked = sorted(lost[number] & state.keys())
        if blocked:
            raise ValueError(
                f"Adapter: step {number + 1} ({'; '.join(step.describe())}) cannot be undone, and "
                f"changes '{blocked[0]}', which becomes `{target}`. Only bijections may lie on the "
                "way to them: densities and draws are taken back to the simulator's space."
            )
        if isinstance(step, Bijection):
            with located(number, step):
                state = _undo(step, state, stages[number])
        sources.append(frozenset(state))
    return tuple(reversed(sources))


def _undo(step: Bijection, state: Shapes, before: Shapes) -> Shapes:
    given = {name: before[name] for name in needs(step)}
    undone = dict(jax.eval_shape(step.inverse, state | given))
    state = {name: struct for name, struct in undone.items() if name not in given}
    _check_undone(state, before)
    return state


def needs(step: Transform) -> tuple[str, ...]:
    """Entries that a bijection depends on besides those that it maps, such as covariates."""
    return tuple(getattr(step, "needs", ()))


def _check_undone(state: Shapes, before: Shapes) -> None:
    for name, struct in state.items():
        if name not in before:
            raise ValueError(f"Adapter: the inverse gives '{name}', expected from {list(before)}.")
        expected = jax.tree.map(lambda leaf: leaf.shape, before[name])
        got = jax.tree.map(lambda leaf: leaf.shape, struct)
        if got != expected:
            raise ValueError(
                f"Adapter: the inverse gives '{name}' the shape {got}, expected {expected}."
            )
