# SPDX-License-Identifier: Apache-2.0
"""Python functions as simulators: traced by JAX, or called on the host."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, final

import jax.numpy as jnp
from jax import Array

from numpyro_amortized.simulators.base import Simulator, TraceableSimulator, check_shape, typed_key
from numpyro_amortized.simulators.binomial import terminating_binomials
from numpyro_amortized.simulators.outputs import on_device
from numpyro_amortized.simulators.workers import simulate_batch, simulate_draws

__all__ = ["Function", "HostSimulator", "JaxSimulator", "LambdaSimulator"]

_SOURCES = ("rng_key", "rng")
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
T = TypeVar("T")


class Function(NamedTuple):
    """A function, what it takes by name, and how its output is named."""

    call: Callable[..., Any]
    name: str
    source: str | None  # of its randomness: "rng_key", "rng", or None
    required: tuple[str, ...]
    optional: tuple[str, ...]
    takes_all: bool  # it has **kwargs
    is_batched: bool
    output: str | None = None  # the name of an output that is not a dictionary

    @classmethod
    def of(cls, fn: Callable[..., Any], *, is_batched: bool = False) -> "Function":
        """
        :param fn: a function.
        :param is_batched: whether its first argument is the batch shape.
        :return: it and what its signature tells.
        :raises TypeError: if it cannot be called by name.
        """
        name = _name(fn)
        parameters = _parameters(fn)
        if is_batched:
            _check_batched(parameters, name)
            parameters = parameters[parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL :]
        if nameless := [p for p in parameters if p.kind is p.POSITIONAL_ONLY]:
            raise TypeError(
                f"Function '{name}': argument '{nameless[0].name}' is positional-only, but "
                "arguments are passed by name. Remove the `/`, or wrap the function."
            )
        sources = [p.name for p in parameters if p.name in _SOURCES]
        if len(sources) > 1:
            raise TypeError(
                f"Function '{name}': expected rng_key, for JAX, or rng, for the host; got both."
            )
        inputs = [p for p in parameters if p.kind in _NAMED and p.name not in _SOURCES]
        return cls(
            call=fn,
            name=name,
            source=sources[0] if sources else None,
            required=tuple(p.name for p in inputs if p.default is p.empty),
            optional=tuple(p.name for p in inputs if p.default is not p.empty),
            takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
            is_batched=is_batched,
        )

    def arguments(self, earlier: Mapping[str, T]) -> dict[str, T]:
        """
        :param earlier: name to value, of the steps before this one.
        :return: those that the function takes.
        :raises TypeError: if one that it needs is missing.
        """
        if missing := [name for name in self.required if name not in earlier]:
            raise TypeError(
                f"Function '{self.name}': nothing to pass as argument '{missing[0]}'; earlier "
                f"steps returned {list(earlier)}. Return it under this name in a step before, as "
                f"in SequentialSimulator([prior, {self.name}]), or give the argument a default."
            )
        if self.takes_all:
            return {name: value for name, value in earlier.items() if name not in _SOURCES}
        wanted = self.required + self.optional
        return {name: earlier[name] for name in wanted if name in earlier}

    def named(self, outputs: Any) -> dict[str, Any]:
        """
        :param outputs: what the function returned.
        :return: name to value.
        :raises TypeError: if it has no names.
        """
        if isinstance(outputs, Mapping) and {*map(type, outputs)} <= {str}:
            return dict(outputs)
        if self.output is not None and outputs is not None and not isinstance(outputs, Mapping):
            return {self.output: outputs}
        got = f"keys {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise TypeError(
            f"Function '{self.name}': expected a dictionary from names to numbers or arrays, got "
            f"{got}. Return {{'x': x}}, or name the output: make_simulator({{'x': {self.name}}})."
        )


@final
class JaxSimulator(TraceableSimulator):
    """A JAX function as a simulator. Made by :func:`LambdaSimulator`.

    :param function: it takes ``rng_key``.
    """

    def __init__(self, function: Function) -> None:
        self.function = function

    def simulate(self, rng_key: Array) -> dict[str, Array]:
        """
        Draws once. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :return: name to value, of its own shape.
        """
        return self.simulate_given(rng_key, {})

    def simulate_given(self, rng_key: Array, earlier: Mapping[str, Array]) -> dict[str, Array]:
        """
        Draws once, given what earlier steps returned. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param earlier: name to value, of its own shape.
        :return: name to value, of its own shape.
        :raises TypeError: if an argument is missing, or JAX cannot trace the function.
        """
        function, key = self.function, typed_key(rng_key)
        arguments = function.arguments(earlier)
        with terminating_binomials(), _tracing_explained(function.name):
            if function.is_batched:
                batch = {name: jnp.asarray(x)[None] for name, x in arguments.items()}
                outputs = function.call((1,), rng_key=key, **batch)
            else:
                outputs = function.call(rng_key=key, **arguments)
        values = {n: _array(function, n, x) for n, x in function.named(outputs).items()}
        if function.is_batched:
            return {name: _only(function, name, x) for name, x in values.items()}
        return values


@final
class HostSimulator(Simulator):
    """A Python function as a simulator. Made by :func:`LambdaSimulator`.

    :param function: it takes ``rng``, or cannot be seeded.
    """

    def __init__(self, function: Function) -> None:
        self.function = function

    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> dict[str, Array]:
        """
        Draws a batch of simulations. Equal keys give equal batches, whatever ``workers`` is.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param workers: number of worker processes, as ``n_jobs`` of :class:`joblib.Parallel`. A
            batched function is called once, in this process.
        :return: name to values of shape ``(*batch_shape, *shape)``.
        :raises ValueError: if the shapes of the outputs differ between simulations, or a function
            that cannot be seeded is to run on several workers.
        """
        key, shape = typed_key(rng_key), check_shape(batch_shape)
        if self.function.is_batched:
            draws = simulate_batch(self.function, key, shape, {}, workers=workers)
        else:
            draws = simulate_draws([self.function], key, shape, {}, workers=workers)
        return on_device(draws, shape)


def LambdaSimulator(  # noqa: N802
    fn: Callable[..., Any], is_batched: bool = False
) -> JaxSimulator | HostSimulator:
    """
    A function as a simulator. It returns a dictionary from names to numbers or arrays.

    A function with an argument ``rng_key`` is a JAX function: vectorized, compiled and usable in
    training loops. Any other runs on the host, one call per simulation; with an argument ``rng`` it
    gets a :class:`numpy.random.Generator` of its own for each of them, derived from the key. One
    with neither runs with a warning, since it cannot be seeded, and not on several workers.

    Further arguments are for :func:`SequentialSimulator` to fill.

    **Example**

    .. doctest::

        >>> from jax import random
        >>> def normal(rng_key):
        ...     return {"x": random.normal(rng_key, (3,))}
        >>> LambdaSimulator(normal).sample(random.key(0), 100)["x"].shape
        (100, 3)
        >>> def poisson(batch_shape, rng):
        ...     return {"x": rng.poisson(4.0, size=batch_shape)}
        >>> LambdaSimulator(poisson, is_batched=True).sample(random.key(0), 100)["x"].shape
        (100,)

    :param fn: the function.
    :param is_batched: whether it draws a whole batch: its first argument is then the batch shape,
        its inputs and outputs have it as leading axes, and a scalar output holds for the batch.
        A JAX function gets ``(1,)``, and is vectorized.
    :return: a :class:`TraceableSimulator` if it is a JAX function.
    :raises TypeError: if ``fn`` is not a function whose arguments have names.
    """
    function = Function.of(fn, is_batched=is_batched)
    return JaxSimulator(function) if function.source == "rng_key" else HostSimulator(function)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(getattr(fn, "func", fn), "__name__", type(fn).__name__)


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        raise TypeError(
            f"Expected a function with a signature, got {fn!r}. Wrap it, as in "
            "lambda rng: {'x': rng.normal()}."
        ) from None


def _check_batched(parameters: list[inspect.Parameter], name: str) -> None:
    first = parameters[0] if parameters else None
    if first is None or first.kind not in _POSITIONAL or first.name in _SOURCES:
        got = f"'{first.name}'" if first else "no argument"
        raise TypeError(
            f"Function '{name}': with is_batched=True the first argument is the batch shape, got "
            f"{got}. Write def {name}(batch_shape, ...)."
        )


def _array(function: Function, name: str, value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"Entry '{name}' of function '{function.name}': expected a number or an array, got "
            f"{type(value).__name__}. Pad ragged lists to equal lengths and return a mask."
        ) from None


def _only(function: Function, name: str, value: Array) -> Array:
    if value.ndim and len(value) != 1:
        raise ValueError(
            f"Entry '{name}' of function '{function.name}': expected the batch shape (1,) as first "
            f"axes, got shape {value.shape}."
        )
    return value[0] if value.ndim else value


@contextmanager
def _tracing_explained(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, IndexError) as error:
        if not any(word in str(error) for word in ("oncrete", "Tracer", "traced array")):
            raise
        raise TypeError(
            f"Function '{name}' takes rng_key, but JAX cannot trace it: a shape or Python control "
            "flow (`if`, `for`, `int`, indexing by a mask) depends on drawn values, or NumPy is "
            "given some. Use jax.numpy and jnp.where, pad to a fixed length and return a mask, or "
            "take rng instead of rng_key to run on the host."
        ) from error
