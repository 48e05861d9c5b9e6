# SPDX-License-Identifier: Apache-2.0
"""Simulations on disk: a Zarr group, and a log of the chunks that are complete.

A bank is a directory of three things. ``bank.json`` says what it holds. ``simulations.zarr`` is a
group of Zarr's format 3 with one array for each entry, chunked along the simulations and compressed
by Zstandard. ``chunks.jsonl`` has a line with checksums for each chunk, written after the chunk
itself: a chunk without its line does not count, so writing may be cut off at any time.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final
from urllib.parse import quote

import numpy as np

from numpyro_amortized.loads import Rows, check_rows

if TYPE_CHECKING:
    import zarr
    from zarr.core.array_spec import ArrayConfigParams

HEADER, LOG, ARRAYS = "bank.json", "chunks.jsonl", "simulations.zarr"
_VERSION = 1
_CONFIG: "ArrayConfigParams" = {"write_empty_chunks": True}
_AGAIN = "Call to_disk again with the same arguments: it draws what is missing or damaged."


class DamagedChunkError(ValueError):
    """Stored simulations are not those that were written."""


@dataclass(frozen=True)
class Entry:
    """One entry of a simulation.

    :param shape: of one simulation.
    :param dtype: its name.
    :param pilot: some values of one draw from a key of its own, which tells models apart.
    """

    shape: tuple[int, ...]
    dtype: str
    pilot: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """What a bank holds.

    :param num_simulations: those that it has when it is complete.
    :param chunk_size: simulations of a chunk; the last one may have fewer.
    :param rng_key: implementation and data of the key that they are drawn from.
    :param entries: of each simulation, by name.
    """

    num_simulations: int
    chunk_size: int
    rng_key: str
    entries: dict[str, Entry]


@final
class Bank:
    """A bank that exists.

    :param path: its directory.
    :param writable: whether simulations will be written.
    :raises FileNotFoundError: if there is no bank.
    :raises ValueError: if its header cannot be read.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path, self._writable = path, writable
        self.header = _read_header(path)

    @staticmethod
    def exists(path: Path) -> bool:
        """:return: whether there is a bank at a path."""
        return (path / HEADER).is_file()

    @staticmethod
    def create(path: Path, header: Header) -> "Bank":
        """
        A bank without simulations. It appears at its path all at once.

        :raises FileExistsError: if something else is there.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"to_disk: {path}: expected a new path, an empty directory or a bank, got a "
                f"{'directory with other files' if path.is_dir() else 'file'}."
            )
        partial = path.with_name(f"{path.name}.partial")
        with naming(path):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            _create_arrays(partial / ARRAYS, header)
            (partial / LOG).touch()
            _write_header(partial, header)
            if path.exists():
                path.rmdir()
            partial.rename(path)
        return Bank(path, writable=True)

    @property
    def num_chunks(self) -> int:
        return -(-self.header.num_simulations // self.header.chunk_size)

    def num_rows(self, chunk: int) -> int:
        """:return: simulations of a chunk."""
        start, stop = self._bounds(chunk)
        return stop - start

    def missing(self) -> list[int]:
        """:return: the chunks that were not written yet."""
        return [chunk for chunk in range(self.num_chunks) if not self._registered(chunk)]

    def read(self, chunk: int, names: Sequence[str] | None = None) -> Rows:
        """
        The simulations of a chunk, verified.

        :param chunk: its index.
        :param names: the entries that are read, by default all.
        :raises DamagedChunkError: where they are not what was written.
        """
        return {
            name: self._read_entry(name, chunk)
            for name in (self.header.entries if names is None else names)
        }

    def is_intact(self, chunk: int) -> bool:
        """:return: whether a chunk was written, and reads as it was written."""
        try:
            return self._registered(chunk) and bool(self.read(chunk))
        except DamagedChunkError:
            return False

    def write(self, chunk: int, rows: Rows) -> None:
        """
        Store the simulations of a chunk, and then register it.

        :raises ValueError: where they are not of the bank's entries, shapes and types.
        """
        start, stop = self._bounds(chunk)
        entries = self.header.entries
        check_rows(rows, {n: (e.shape, np.dtype(e.dtype)) for n, e in entries.items()})
        checksums = {}
        with naming(self.path):
            for name, entry in entries.items():
                values = np.ascontiguousarray(rows[name], entry.dtype)
                self._arrays[name][start:stop] = values
                checksums[name] = zlib.crc32(values)
            record = {"chunk": chunk, "num_rows": stop - start, "crc32": checksums}
            with (self.path / LOG).open("a") as log:
                log.write(json.dumps(record) + "\n")
        self._log[chunk] = record

    def resume(self, num_simulations: int) -> "Bank":
        """The bank made ready to be written, with at least as many simulations as it has."""
        with naming(self.path):
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink()
            _drop_torn_line(self.path / LOG)
            bank = Bank(self.path, writable=True)
            if num_simulations == self.header.num_simulations:
                return bank
            for name, array in bank._arrays.items():
                array.resize((num_simulations, *self.header.entries[name].shape))
            _write_header(self.path, replace(self.header, num_simulations=num_simulations))
        return Bank(self.path, writable=True)

    def _bounds(self, chunk: int) -> tuple[int, int]:
        start = chunk * self.header.chunk_size
        return start, min(start + self.header.chunk_size, self.header.num_simulations)

    def _registered(self, chunk: int) -> bool:
        # the last chunk of a bank that was extended has fewer simulations than it should
        return self._log.get(chunk, {}).get("num_rows") == self.num_rows(chunk)

    def _read_entry(self, name: str, chunk: int) -> np.ndarray:
        start, stop = self._bounds(chunk)
        place = f"{self.path}: chunk {chunk} (simulations {start} to {stop - 1}), entry '{name}'"
        try:
            values = np.asarray(self._arrays[name][start:stop])
        except OSError:
            raise
        except Exception as error:  # of whatever type a codec raises
            raise DamagedChunkError(f"{place}: cannot be decoded ({error}). {_AGAIN}") from error
        if zlib.crc32(np.ascontiguousarray(values)) != self._log[chunk]["crc32"][name]:
            raise DamagedChunkError(
                f"{place}: the checksum is not that of what was written. {_AGAIN}"
            )
        return values

    @cached_property
    def _log(self) -> dict[int, dict[str, Any]]:
        return dict(_records(self.path / LOG))

    @cached_property
    def _arrays(self) -> "dict[str, zarr.Array[Any]]":
        zarr = import_zarr()
        mode: Literal["r", "r+"] = "r+" if self._writable else "r"
        group = self.path / ARRAYS
        return {
            # looking for chunks of zeros, which need no file, takes longer than writing them
            name: zarr.open_array(group / _node(name), mode=mode, config=_CONFIG)
            for name in self.header.entries
        }


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the file system name the bank, not one of its many files."""
    try:
        yield
    except OSError as error:
        reason = f"writing the bank failed: {error.strerror or error}. {_AGAIN}"
        raise OSError(error.errno, reason, str(path)) from error


def import_zarr() -> Any:
    """Zarr, which is imported late since it takes long.

    :raises ImportError: if it is not installed.
    """
    try:
        import zarr
        import zarr.codecs
    except ImportError as error:
        raise ImportError(
            "Banks on disk need zarr: pip install 'numpyro_amortized[disk]'"
        ) from error
    return zarr


def _node(name: str) -> str:
    return quote(name, safe="$")  # a slash would make a group


def _create_arrays(path: Path, header: Header) -> None:
    zarr = import_zarr()
    group = zarr.create_group(path)
    for name, entry in header.entries.items():
        group.create_array(
            _node(name),
            shape=(header.num_simulations, *entry.shape),
            chunks=(header.chunk_size, *(max(1, size) for size in entry.shape)),
            dtype=entry.dtype,
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            dimension_names=["simulation", *(f"{name}_dim_{i}" for i in range(len(entry.shape)))],
        )


def _write_header(path: Path, header: Header) -> None:
    partial = path / f"{HEADER}.partial"
    partial.write_text(json.dumps({"version": _VERSION} | asdict(header), indent=2) + "\n")
    os.replace(partial, path / HEADER)


def _read_header(path: Path) -> Header:
    if not Bank.exists(path):
        raise FileNotFoundError(
            f"{path}: expected a bank of simulations, found no {HEADER}. Write one with "
            "simulator.to_disk(rng_key, num_simulations, path)."
        )
    try:
        values = json.loads((path / HEADER).read_text())
        if (version := values.pop("version")) != _VERSION:
            raise ValueError(f"expected version {_VERSION}, got {version}")
        entries = values.pop("entries").items()
        made = {n: Entry(tuple(e["shape"]), e["dtype"], tuple(e["pilot"])) for n, e in entries}
        return Header(entries=made, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / HEADER}: not the header of a bank: {error!r}.") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Chunk and record of each whole line."""
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn: the chunk counts as missing
        yield record["chunk"], record


def _drop_torn_line(path: Path) -> None:
    lines = path.read_bytes()
    os.truncate(path, lines.rfind(b"\n") + 1)
