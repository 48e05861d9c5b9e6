# SPDX-License-Identifier: Apache-2.0
"""Simulations from the host, made ready in a thread while the device trains."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

THREAD_NAME = "numpyro_amortized_loads"
Rows = dict[str, np.ndarray]


class Load(NamedTuple):
    """What one dispatch of the training loop works on.

    The program has ``size`` steps, of which the first ``num_steps`` are taken: the number of
    batches of an epoch need not be a multiple of that of its loads for one program to serve all.
    """

    arrays: dict[str, Array] | None  # (size * batch_size, ...); None: the data set's own
    size: int
    num_steps: int
    ends_epoch: bool


class Schedule(NamedTuple):
    """How long to train."""

    epochs: int
    num_batches: int
    batch_size: int
    epochs_done: int = 0  # in a run before, which this one goes on from

    @property
    def rows_done(self) -> int:
        """Simulations of these epochs."""
        return self.epochs_done * self.num_batches * self.batch_size


@contextmanager
def prefetch(
    pieces: Iterator[Rows], schedule: Schedule, *, memory: int, order: np.random.Generator | None
) -> Iterator[Iterator[Load]]:
    """Loads of constant shape, the next one made in a thread while the last one is used.

    :param pieces: simulations without end, arrays with a common leading axis of any length; from
        the first one of an epoch that is not done yet.
    :param schedule: how many loads are made.
    :param memory: bytes of a load, at most; a batch is the least.
    :param order: shuffles the simulations of each load; without it they keep their order.
    :return: a context; leaving it ends the thread, at the latest after the piece in hand.
    """
    stop = threading.Event()
    loads = _cut(_until(stop, pieces), schedule, memory, order)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME) as worker:
        try:
            yield _one_ahead(worker, loads)
        finally:
            stop.set()


def host_rows(values: Mapping[str, Any]) -> Rows:
    """Simulations as NumPy arrays.

    :raises TypeError: where an entry does not consist of numbers.
    """
    rows = {name: np.asarray(value) for name, value in values.items()}
    for name, value in rows.items():
        if value.dtype.kind not in "biufc":
            raise TypeError(
                f"simulations: entry '{name}': expected numbers, got {value.dtype}. Drop it, or "
                "encode it as numbers."
            )
    return rows


def check_rows(rows: Rows, like: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Simulations must have the names, shapes and kinds of numbers of those before.

    :param like: entry to shape and dtype of one simulation.
    :raises ValueError: where they differ.
    """
    if set(rows) != set(like):
        raise ValueError(f"simulations: expected entries {list(like)}, got {list(rows)}.")
    for name, (shape, dtype) in like.items():
        value = rows[name]
        if value.shape[1:] != shape or not np.can_cast(value.dtype, dtype, "same_kind"):
            raise ValueError(
                f"simulations: entry '{name}': expected shape {shape} and {dtype} as in the first "
                f"simulations, got {value.shape[1:]} and {value.dtype}. Pad to one shape, and "
                "return one type of numbers."
            )


def layout(rows: Rows) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """:return: entry to shape and dtype of one simulation."""
    return {name: (value.shape[1:], value.dtype) for name, value in rows.items()}


def row_bytes(rows: Rows) -> int:
    """:return: bytes of one simulation, at least 1."""
    sizes = (int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout(rows).values())
    return max(1, sum(sizes))


def _one_ahead(worker: ThreadPoolExecutor, loads: Iterator[Load]) -> Iterator[Load]:
    following = worker.submit(next, loads, None)
    while (load := following.result()) is not None:
        following = worker.submit(next, loads, None)
        yield load


def _until(stop: threading.Event, pieces: Iterator[Rows]) -> Iterator[Rows]:
    for piece in pieces:
        if stop.is_set():
            raise CancelledError
        yield piece


def _cut(
    pieces: Iterator[Rows], schedule: Schedule, memory: int, order: np.random.Generator | None
) -> Iterator[Load]:
    """Loads of all epochs; what one does not use goes into the next one."""
    epochs, num_batches, batch_size, epochs_done = schedule
    rest = next(pieces)
    most = max(1, memory // (batch_size * row_bytes(rest)))
    num_loads = -(-num_batches // most)
    size = -(-num_batches // num_loads)
    ends = [num_batches * (index + 1) // num_loads for index in range(num_loads)]
    for epoch in range(epochs):
        for start, end in zip([0, *ends], ends, strict=False):
            num_rows = (end - start) * batch_size
            places = np.arange(num_rows) if order is None else order.permutation(num_rows)
            if epoch < epochs_done:
                continue
            arrays, rest = _take(places, size * batch_size, rest, pieces)
            yield Load(arrays, size, end - start, end == num_batches)


def _take(
    places: np.ndarray, capacity: int, rest: Rows, pieces: Iterator[Rows]
) -> tuple[dict[str, Array], Rows]:
    """The next simulations at their places, on the device, and what is left of the last piece."""
    like = layout(rest)
    rows = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in like.items()}
    while len(places):
        if not _length(rest):
            rest = next(pieces)
            check_rows(rest, like)
        here = places[: _length(rest)]
        for name, value in rest.items():
            rows[name][here] = value[: len(here)]
        places = places[len(here) :]
        rest = {name: value[len(here) :] for name, value in rest.items()}
    return jax.device_put(rows), rest


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))
