# SPDX-License-Identifier: Apache-2.0
"""Calls of Python functions on the host, in this process or spread over worker processes."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, repeat
from math import prod
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jax import Array, random
from numpy.random import PCG64, Generator, Philox, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence

from numpyro_amortized.simulators.outputs import (
    Columns,
    batched,
    check_names,
    frozen,
    joined,
    stacked,
)

if TYPE_CHECKING:
    from numpyro_amortized.simulators.functions import Function

__all__ = ["simulate_batch", "simulate_draws"]

# More chunks than workers, since simulations may take unequally long.
_CHUNKS_PER_WORKER: Final = 4
_PACKAGE = str(Path(__file__).parents[1])


def simulate_draws(
    functions: Sequence["Function"],
    rng_key: Array,
    shape: tuple[int, ...],
    earlier: Mapping[str, np.ndarray],
    *,
    workers: int | None,
) -> Columns:
    """
    Calls functions in turn, once for each simulation.

    :param functions: each gets by name what those before it returned.
    :param rng_key: a typed key.
    :param shape: of the batch of ``n`` simulations.
    :param earlier: name to values of shape ``(n, *shape)``.
    :param workers: number of worker processes, as ``n_jobs`` of :class:`joblib.Parallel`.
    :return: name to values of shape ``(n, *shape)``.
    :raises ValueError: if shapes differ between simulations, or a function that cannot be seeded
        is to run on several workers.
    """
    num_draws, num_workers = prod(shape), _num_workers(workers)
    _check_seeding(functions, num_workers)
    run = partial(_run_chunk, tuple(functions), _entropy(rng_key))
    if num_workers == 1:
        return run(earlier, 0, num_draws)
    from joblib import Parallel, delayed

    num_chunks = min(num_draws, _CHUNKS_PER_WORKER * num_workers)
    bounds = pairwise(np.linspace(0, num_draws, num_chunks + 1).astype(int).tolist())
    call = delayed(_in_worker)
    chunks = (
        call(run, {name: x[start:stop] for name, x in earlier.items()}, start, stop)
        for start, stop in bounds
    )
    return joined(Parallel(n_jobs=workers)(chunks))


def simulate_batch(
    function: "Function",
    rng_key: Array,
    shape: tuple[int, ...],
    earlier: Mapping[str, np.ndarray],
    *,
    workers: int | None,
) -> Columns:
    """
    Calls a batched function, once and in this process.

    :param function: it gets the batch shape, and by name what earlier steps returned.
    :param rng_key: a typed key.
    :param shape: of the batch of ``n`` simulations.
    :param earlier: name to values of shape ``(n, *shape)``.
    :param workers: more than one is refused if the function cannot be seeded.
    :return: name to values of shape ``(n, *shape)``.
    :raises ValueError: if an output has not the batch shape.
    """
    _check_seeding([function], _num_workers(workers))
    arguments: dict[str, Any] = {
        name: x.reshape(shape + x.shape[1:]) for name, x in function.arguments(earlier).items()
    }
    if function.source:
        arguments[function.source] = np.random.default_rng(_entropy(rng_key))
    outputs = function.named(function.call(shape, **arguments))
    return {name: batched(function.name, name, x, shape) for name, x in outputs.items()}


def _entropy(rng_key: Array) -> list[int]:
    return np.asarray(random.key_data(rng_key)).ravel().tolist()


def _num_workers(workers: int | None) -> int:
    """How many there are; where none is given the context tells, as that of a cluster."""
    from joblib import effective_n_jobs

    try:
        valid = workers is None or index(workers) >= 1 or workers == -1
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"workers: expected at least 1, or -1 for all cores, got {workers!r}.")
    return effective_n_jobs(workers)


def _check_seeding(functions: Sequence["Function"], num_workers: int) -> None:
    unseeded = [function.name for function in functions if function.source is None]
    if not unseeded:
        return
    problem = f"Function '{unseeded[0]}' takes neither rng_key nor rng, so it cannot be seeded"
    if num_workers > 1:
        raise ValueError(
            f"{problem}: copies of it on {num_workers} workers might repeat the same draws. Draw "
            "from an argument rng, a numpy.random.Generator, or use workers=1."
        )
    warnings.warn(
        f"{problem}: its draws are not reproducible. Draw from an argument rng, a "
        "numpy.random.Generator. (A NumPyro model is given as ModelSimulator(model, ...).)",
        skip_file_prefixes=(_PACKAGE,),
        stacklevel=2,
    )


class _Words(ISpawnableSeedSequence):
    """The seed of one generator; a hashed one for each draw takes eight times as long."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words
        self._sequence: SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        if n_words == len(self.words) and np.dtype(dtype) == self.words.dtype:
            return self.words
        return self._hashed().generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[Any]:
        return self._hashed().spawn(n_children)

    def _hashed(self) -> SeedSequence:
        if self._sequence is None:
            self._sequence = SeedSequence(self.words.tolist())
        return self._sequence


def _generators(entropy: list[int], start: int, stop: int) -> Iterator[Generator]:
    """Those of draws ``start`` to ``stop``: each is seeded with a block of a counter's output."""
    blocks = Philox(SeedSequence(entropy))
    blocks.advance(start)
    for words in blocks.random_raw(4 * (stop - start)).reshape(-1, 4):
        seed: Any = _Words(words)  # NumPy's annotations know no other than SeedSequence
        yield Generator(PCG64(seed))


def _run_chunk(
    functions: Sequence["Function"],
    entropy: list[int],
    earlier: Mapping[str, np.ndarray],
    start: int,
    stop: int,
) -> Columns:
    """Draws ``start`` to ``stop``; ``earlier`` has the rows of these alone."""
    seeded = any(function.source for function in functions)
    generators = _generators(entropy, start, stop) if seeded else repeat(None, stop - start)
    rows: dict[str, list[Any]] = {}
    for row, rng in enumerate(generators):
        drawn = _draw(functions, rng, {n: x[row] for n, x in earlier.items()}, start + row)
        if row:
            check_names([*rows], start + row, [*drawn])
        for name, value in drawn.items():
            rows.setdefault(name, []).append(value)
    return stacked(rows, start)


def _draw(
    functions: Sequence["Function"], rng: Generator | None, values: dict[str, Any], number: int
) -> dict[str, Any]:
    """One simulation; ``values`` are those that functions get, and grow."""
    drawn: dict[str, Any] = {}
    for function in functions:
        source = {function.source: rng} if function.source else {}
        try:
            outputs = function.named(function.call(**function.arguments(values), **source))
            named = {name: frozen(function.name, name, x) for name, x in outputs.items()}
        except Exception as error:
            error.add_note(f"Simulation {number} failed in function '{function.name}'.")
            raise
        drawn |= named
        values |= named
    return drawn


def _in_worker(run: Callable[..., Columns], *args: Any) -> Columns:
    try:
        return run(*args)
    except Exception as error:
        if _survives_pickling(error):
            raise
        # An error that cannot be sent would break the pool of workers, and say nothing.
        readable = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            readable.add_note(note)
        raise readable from error


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
