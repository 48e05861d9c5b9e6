# SPDX-License-Identifier: Apache-2.0
"""Banks larger than memory: written once, then read while the device trains."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count, cycle
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from tqdm.auto import tqdm

from numpyro_amortized.bank import Bank, Entry, Header
from numpyro_amortized.datasets import Batch, OfflineDataset, composed, mapped
from numpyro_amortized.initializers import host_generator
from numpyro_amortized.loads import Load, Rows, Schedule, host_rows, prefetch, row_bytes
from numpyro_amortized.simulators.base import Simulator, TraceableSimulator, typed_key
from numpyro_amortized.streamed import DEFAULT_MEMORY, StreamedDataset

_CHUNK_BYTES, _CHUNK_SIZE, _HOST_CHUNK_SIZE = 2**22, 2**14, 2**10
_HELD_OUT_CHUNKS = 16
_PILOT_VALUES = 64


def to_disk(
    simulator: Simulator,
    rng_key: Array,
    num_simulations: int,
    path: str | PathLike[str],
    *,
    chunk_size: int | None = None,
    workers: int | None = None,
    progress_bar: bool = True,
) -> "DiskDataset":
    """Simulate a bank that may be larger than memory, into a directory.

    Called again with the same arguments, it verifies what is there, and draws what is missing or
    damaged; with more simulations, it extends the bank. In either case the simulations are those
    of a bank drawn at once. Chunk ``i`` is ``simulator.sample`` with a key folded by ``i``.

    :param simulator: whose draws depend on nothing but the key.
    :param rng_key: a key.
    :param num_simulations: of the whole bank.
    :param path: of the directory; made if missing.
    :param chunk_size: simulations drawn, stored and read together; by default that of the bank, or
        those of 4 MiB, but at most 16,384, and 1,024 for simulators that JAX cannot trace.
    :param workers: number of worker processes, for simulators that run on the host.
    :param progress_bar: whether to show one.
    :return: the bank.
    :raises FileExistsError: if there is something else at the path.
    :raises ValueError: if the bank there has another key, other entries or draws, another
        ``chunk_size`` or more simulations.
    :raises OSError: if the path cannot be written; what is there stays valid.
    """
    pilot_key, chunks_key = random.split(typed_key(rng_key))
    num_simulations = _positive("num_simulations", num_simulations)
    chunk_size = None if chunk_size is None else _positive("chunk_size", chunk_size)
    pilot = host_rows(simulator.sample(pilot_key, 1, workers=workers))
    header = Header(
        num_simulations,
        chunk_size or _default_chunk_size(simulator, pilot),
        _describe_key(rng_key),
        _entries(pilot),
    )
    bank = _open(Path(path), header, any_chunk_size=chunk_size is None)

    def draw(chunk: int) -> Rows:
        key = random.fold_in(chunks_key, np.uint32(chunk))
        return host_rows(simulator.sample(key, bank.num_rows(chunk), workers=workers))

    with tqdm(total=num_simulations, disable=not progress_bar, unit="simulation") as bar:
        for chunk in range(bank.num_chunks):
            if not bank.is_intact(chunk):
                bank.write(chunk, draw(chunk))
            bar.update(bank.num_rows(chunk))
    return DiskDataset(path)


@final
class DiskDataset(StreamedDataset):
    """A bank that :func:`to_disk` wrote, read in a thread while the device trains.

    Each pass takes the chunks in another order, and shuffles the simulations of those that are
    loaded together. Every chunk is verified when it is read.

    **Example**

    .. doctest::

        >>> from tempfile import TemporaryDirectory
        >>> from jax import random
        >>> from numpyro_amortized.disk import DiskDataset, to_disk
        >>> from numpyro_amortized.simulators.functions import LambdaSimulator
        >>> normal = LambdaSimulator(lambda rng_key: {"x": random.normal(rng_key)})
        >>> with TemporaryDirectory() as path:
        ...     bank = to_disk(normal, random.key(0), 100, path, progress_bar=False)
        ...     rest, held_out = DiskDataset(path).split(random.key(1), 10)
        >>> len(bank), len(rest), held_out.arrays["x"].shape
        (100, 90, (10,))

    :param path: the directory of the bank.
    :param memory: bytes of simulations that are loaded together, at most. Two loads are held.
    :raises FileNotFoundError: if there is no bank.
    :raises ValueError: if it is incomplete.
    """

    def __init__(self, path: str | PathLike[str], *, memory: int = DEFAULT_MEMORY) -> None:
        super().__init__(memory, None)
        self._bank = Bank(Path(path))
        if missing := self._bank.missing():
            raise ValueError(
                f"DiskDataset: {path}: {len(missing)} of {self._bank.num_chunks} chunks are "
                "missing. Call to_disk again with the same arguments: it draws them."
            )
        self._names = tuple(self._bank.header.entries)
        self._held_out: Mapping[int, int] = {}  # chunk to how many of its first simulations

    def __len__(self) -> int:
        return self._bank.header.num_simulations - sum(self._held_out.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The entries of a simulation."""
        return self._names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each entry of one simulation."""
        return {name: self._bank.header.entries[name].shape for name in self._names}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Type of the numbers of each entry."""
        return {name: np.dtype(self._bank.header.entries[name].dtype) for name in self._names}

    def select(self, *names: str) -> "DiskDataset":
        """The data set of some entries; the others are not read.

        :raises ValueError: if it does not have them.
        """
        if unknown := [name for name in names if name not in self._names]:
            raise ValueError(
                f"DiskDataset: {self._bank.path}: no entries {unknown}; it has {list(self._names)}."
            )
        return self._with(_names=names)

    def split(self, rng_key: Array, held_out: int) -> tuple["DiskDataset", OfflineDataset]:
        """Hold out simulations, in equal parts from up to 16 chunks chosen at random.

        :param rng_key: a key.
        :param held_out: number of simulations, which are read into memory.
        :return: the rest, and those held out.
        :raises ValueError: if no simulation would be left.
        """
        if not 0 < held_out < len(self):
            raise ValueError(
                f"validation: expected fewer simulations than the {len(self)} of the data set, "
                f"got {held_out}."
            )
        counts = self._share_out(rng_key, held_out)
        parts = [
            {name: value[self._first(chunk) :][:number] for name, value in rows.items()}
            for chunk, number in counts.items()
            for rows in [self._bank.read(chunk, self._names)]
        ]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._names}
        bank = OfflineDataset(mapped(self.function, jax.tree.map(jnp.asarray, rows)))
        total = {**self._held_out, **{c: self._first(c) + n for c, n in counts.items()}}
        return self._with(_held_out=total), bank

    def head(self, num_simulations: int) -> Batch:
        num_chunks = min(self._bank.num_chunks, -(-num_simulations // self._bank.num_rows(0)))
        chunks = [self._bank.read(chunk, self._names) for chunk in range(num_chunks)]
        rows = jax.tree.map(lambda *v: jnp.asarray(np.concatenate(v)[:num_simulations]), *chunks)
        return mapped(self.function, rows)

    def map(self, function: Callable[[Batch], Batch]) -> "DiskDataset":
        return self._with(function=composed(self.function, function))

    def loads(self, rng_key: Array, schedule: Schedule) -> AbstractContextManager[Iterator[Load]]:
        chunks_key, rows_key = random.split(rng_key)
        order = host_generator(rows_key)
        pieces = self._pieces(chunks_key, schedule.rows_done)
        return prefetch(pieces, schedule, memory=self.memory, order=order)

    def _pieces(self, rng_key: Array, skipped: int) -> Iterator[Rows]:
        chunks = [c for c in range(self._bank.num_chunks) if self._num_left(c)]
        for epoch in count():
            order = host_generator(random.fold_in(rng_key, np.uint32(epoch))).permutation(chunks)
            for chunk in order.tolist():
                first = self._first(chunk) + skipped
                skipped = max(0, skipped - self._num_left(chunk))
                if first < self._bank.num_rows(chunk):
                    rows = self._bank.read(chunk, self._names)
                    yield {name: value[first:] for name, value in rows.items()}

    def _share_out(self, rng_key: Array, total: int) -> dict[int, int]:
        """How many simulations of each chunk are held out."""
        order = host_generator(rng_key).permutation(self._bank.num_chunks).tolist()
        share = -(-total // min(len(order), _HELD_OUT_CHUNKS))
        counts = dict.fromkeys(order, 0)
        for chunk in cycle(order):
            taken = min(share, total, self._num_left(chunk) - counts[chunk])
            counts[chunk] += taken
            total -= taken
            if not total:
                break
        return {chunk: number for chunk, number in counts.items() if number}

    def _first(self, chunk: int) -> int:
        return self._held_out.get(chunk, 0)

    def _num_left(self, chunk: int) -> int:
        return self._bank.num_rows(chunk) - self._first(chunk)

    def _with(self, **changes: Any) -> "DiskDataset":
        changed = copy.copy(self)
        vars(changed).update(changes)
        return changed


def _positive(name: str, value: int) -> int:
    try:
        number = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"to_disk: {name}: expected an integer of at least 1, got {value!r}.")
    return number


def _describe_key(rng_key: Array) -> str:
    key = typed_key(rng_key)
    return f"{random.key_impl(key)} {np.asarray(random.key_data(key)).ravel().tolist()}"


def _entries(pilot: Rows) -> dict[str, Entry]:
    return {
        name: Entry(value.shape[1:], value.dtype.name, _some_values(value))
        for name, value in pilot.items()
    }


def _some_values(value: np.ndarray) -> tuple[float, ...]:
    flat = value.ravel().real.astype(float)
    return tuple(flat[:: max(1, flat.size // _PILOT_VALUES)].tolist())


def _default_chunk_size(simulator: Simulator, pilot: Rows) -> int:
    """Few where simulations may be slow: the chunk in hand is lost when writing is cut off."""
    most = _CHUNK_SIZE if isinstance(simulator, TraceableSimulator) else _HOST_CHUNK_SIZE
    return max(1, min(most, _CHUNK_BYTES // row_bytes(pilot)))


def _open(path: Path, header: Header, *, any_chunk_size: bool) -> Bank:
    """The bank at a path, made or made ready to go on."""
    if not Bank.exists(path):
        return Bank.create(path, header)
    bank = Bank(path)
    if any_chunk_size:
        header = replace(header, chunk_size=bank.header.chunk_size)
    _check_same(path, bank.header, header)
    return bank.resume(header.num_simulations)


def _check_same(path: Path, found: Header, wanted: Header) -> None:
    """Whether a bank may be resumed or extended."""
    differences = {
        "rng_key": (found.rng_key, wanted.rng_key),
        "entries": tuple(
            {n: (e.shape, e.dtype) for n, e in header.entries.items()} for header in (found, wanted)
        ),
        "chunk_size": (found.chunk_size, wanted.chunk_size),
    }
    for name, (there, here) in differences.items():
        if there != here:
            raise ValueError(
                f"to_disk: {path}: the bank there has {name} {there}, got {here}. Pass what it "
                "was written with, or another path."
            )
    if found.num_simulations > wanted.num_simulations:
        raise ValueError(
            f"to_disk: {path}: the bank there has {found.num_simulations} simulations, got "
            f"num_simulations={wanted.num_simulations}. A bank can only grow."
        )
    for name, entry in found.entries.items():
        # tolerant: another processor may round in another way
        if not np.allclose(entry.pilot, wanted.entries[name].pilot, 1e-3, 1e-6, equal_nan=True):
            raise ValueError(
                f"to_disk: {path}: entry '{name}': the simulator's first draw is not that of the "
                "one that wrote the bank, though their keys are equal. It is another model, or "
                "its draws depend on more than the key. Pass another path."
            )
