# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run, from which it goes on bit for bit after a crash."""

import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.datasets import Batch, Dataset
from numpyro_amortized.directories import Content, DamagedError, read, write
from numpyro_amortized.loads import Schedule
from numpyro_amortized.streamed import StreamedDataset

__all__ = ["Checkpoints", "Snapshot", "changing", "describe_run"]

_PACKAGE = str(Path(__file__).parent)
_NAME = re.compile(r"epoch_(\d{6,})")
_COST = 10  # a checkpoint comes after as many times the duration of the last one
_PILOT_VALUES = 16


class Snapshot(NamedTuple):
    """A run at the end of an epoch."""

    carried: Any  # tree of arrays: what the loop carries and changes
    rows: tuple[np.ndarray, ...]  # metrics of the epochs so far, each (epochs,)
    seconds: np.ndarray  # (epochs,)
    num_loads: int


@final
class Checkpoints:
    """The checkpoints of one run; the last one and a good one before it are kept.

    They are written at the ends of epochs, but not so often that they would take more than about a
    tenth of the time, and at the end of the last one.

    :param path: their directory.
    :param run: from :func:`describe_run`.
    :raises FileExistsError: where the directory has other files.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path, self._run = path, run
        self._last: Path | None = None
        self._due = 0.0
        if path.exists() and not (path.is_dir() and all(map(_is_own, path.iterdir()))):
            raise FileExistsError(
                f"checkpoint_dir: {path}: expected a new path, an empty directory or one of "
                "checkpoints, got other files. Choose another path."
            )

    def resume(self, like: Any) -> Snapshot | None:
        """The last good checkpoint, ``None`` where there is none.

        :param like: tree of arrays, for the structure of what is carried.
        :raises ValueError: where it is of another run, naming the difference.
        """
        for path in sorted(self._found(), key=_epoch, reverse=True):
            try:
                content = read(path)
            except DamagedError as error:
                warnings.warn(
                    f"checkpoint_dir: a checkpoint is damaged: {error} Training goes on from the "
                    "one before it, or from the start where there is none.",
                    skip_file_prefixes=(_PACKAGE,),
                    stacklevel=2,
                )
                continue
            self._check(path, content.configuration)
            self._last = path
            return _snapshot(content, like)
        return None

    def write(self, snapshot: Snapshot, *, is_last: bool) -> None:
        """Keep a snapshot, unless one was kept just before.

        :raises OSError: where it cannot be written, naming the path.
        """
        start = time.monotonic()
        if jax.process_index() or (start < self._due and not is_last):
            return  # where there are several processes, the first one writes for all
        path = self.path / f"epoch_{len(snapshot.seconds):06d}"
        configuration = {"run": dict(self._run), "num_loads": snapshot.num_loads}
        if path.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(path)
        write(path, Content(configuration, _arrays(snapshot)))
        for other in self.path.iterdir():
            if other not in (path, self._last):
                shutil.rmtree(other)
        self._last = path
        self._due = time.monotonic() + _COST * (time.monotonic() - start)

    def _found(self) -> list[Path]:
        if not self.path.exists():
            return []
        return [entry for entry in self.path.iterdir() if _NAME.fullmatch(entry.name)]

    def _check(self, path: Path, configuration: Mapping[str, Any]) -> None:
        there = configuration["run"]
        is_finished = _epoch(path) == self._run["epochs"]
        for name, value in self._run.items():
            if name == "parameters" and not is_finished:
                continue  # those kept when it was interrupted are others than it began with
            if not _same(there.get(name), value):
                raise ValueError(
                    f"checkpoint_dir: {self.path}: the run there has {name} {_short(there[name])}, "
                    f"got {_short(value)}. Call fit with the arguments that it began with, or give "
                    "the new run a directory of its own."
                )


def describe_run(
    rng_key: Array,
    params: Any,
    carried: Any,
    dataset: Dataset,
    schedule: Schedule,
    validation: Batch | None,
) -> dict[str, Any]:
    """What a run is recognized by, as JSON: all that can be compared of its arguments.

    Of functions, such as the optimizer's, that is the structure of their state. Of simulations, it
    is the first values, which are compared with a tolerance: other processors round otherwise.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(_data(leaf)).tobytes())
    return {
        "rng_key": np.asarray(random.key_data(rng_key)).ravel().tolist(),
        "epochs": schedule.epochs,
        "num_batches": schedule.num_batches,
        "batch_size": schedule.batch_size,
        "dataset": type(dataset).__name__,
        "num_simulations": len(dataset) if isinstance(dataset, Sized) else None,
        "rejuvenation": getattr(dataset, "num_moves", None),
        "simulations": _pilots(dataset.arrays),
        "validation": _pilots(validation),
        "state": {name: f"{np.shape(x)} {x.dtype}" for name, x in _named(carried).items()},
        "parameters": digest.hexdigest(),
    }


def changing(dataset: Dataset) -> list[int]:
    """Which of the arrays of a data set change from epoch to epoch, by their place in the tree."""
    if isinstance(dataset, StreamedDataset):
        return []
    places: list[int] = []

    def start(rng_key: Array, arrays: Any) -> Any:
        after, _ = dataset.start(rng_key, arrays)
        pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(after), strict=True)
        places.extend(k for k, (old, new) in enumerate(pairs) if old is not new)
        return after

    jax.eval_shape(start, random.key(0), dataset.arrays)
    return places


def _snapshot(content: Content, like: Any) -> Snapshot:
    arrays = content.arrays
    leaves = [_as_leaf(arrays[f"carried{name}"], x) for name, x in _named(like).items()]
    rows = sorted(name for name in arrays if name.startswith("rows_"))
    return Snapshot(
        jax.tree.unflatten(jax.tree.structure(like), leaves),
        tuple(arrays[name] for name in rows),
        arrays["seconds"],
        content.configuration["num_loads"],
    )


def _arrays(snapshot: Snapshot) -> dict[str, np.ndarray]:
    carried = {n: _data(x) for n, x in _named(snapshot.carried).items()}
    arrays = {f"carried{name}": np.asarray(x) for name, x in carried.items()}
    rows = {f"rows_{number}": x for number, x in enumerate(snapshot.rows)}
    return {**arrays, **rows, "seconds": snapshot.seconds}


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): x for path, x in leaves}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return random.key_data(x) if _is_key(x) else x


def _as_leaf(stored: np.ndarray, like: Any) -> Array:
    array = jax.device_put(stored)
    return random.wrap_key_data(array, impl=random.key_impl(like)) if _is_key(like) else array


def _pilots(arrays: Any) -> dict[str, list[float]]:
    """The first values of each array, by its name and shape."""
    pilots = {}
    for name, x in _named(arrays).items():
        flat = np.asarray(_data(x).ravel()[:_PILOT_VALUES]).real.astype(float)
        pilots[f"{name} {np.shape(x)}"] = np.nan_to_num(flat).tolist()
    return pilots


def _same(there: Any, here: Any) -> bool:
    here = json.loads(json.dumps(here))
    if not isinstance(here, dict) or not isinstance(there, dict):
        return there == here
    if there.keys() != here.keys():
        return False
    return all(
        there[n] == x
        if isinstance(x, str)
        else np.shape(there[n]) == np.shape(x) and np.allclose(there[n], x, 1e-3, 1e-6)
        for n, x in here.items()
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("epoch_"))


def _is_own(path: Path) -> bool:
    name = path.name.removeprefix(".").removesuffix(".partial").removesuffix(".previous")
    return _NAME.fullmatch(name) is not None
