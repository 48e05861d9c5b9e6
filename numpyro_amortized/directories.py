# SPDX-License-Identifier: Apache-2.0
"""Directories of a configuration and its arrays, which are there as a whole or not at all.

``configuration.json`` is readable JSON, ``arrays`` are stored by Orbax, and ``manifest.json`` has
the version of the format and a checksum of every file. A directory is written under another name,
and takes its own when all of it is on the disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

__all__ = ["FORMAT", "Content", "DamagedError", "is_saved", "read", "write"]

FORMAT = 1
MANIFEST, CONFIGURATION, ARRAYS = "manifest.json", "configuration.json", "arrays"


class DamagedError(ValueError):
    """A file is not what was written."""


class Content(NamedTuple):
    """What a directory holds."""

    configuration: dict[str, Any]  # JSON
    arrays: dict[str, np.ndarray]


def is_saved(path: Path) -> bool:
    """:return: whether a directory was written by :func:`write`."""
    return (path / MANIFEST).is_file()


def write(path: Path, content: Content) -> None:
    """Write a directory; one that is there already is replaced when the new one is complete.

    :raises FileExistsError: where there is something else at the path.
    :raises OSError: where it cannot be written; what is there stays as it is.
    """
    path = Path(path).absolute()
    if os.path.lexists(path) and not is_saved(path) and (not path.is_dir() or any(path.iterdir())):
        kind = "directory with other files" if path.is_dir() else "file"
        raise FileExistsError(
            f"{path}: expected a new path, an empty directory or one that was saved before, got "
            f"a {kind}. Choose another path."
        )
    partial, before = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "previous"))
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _remove(partial)
            _write(partial, content)
            _remove(before)
            if path.exists():
                path.rename(before)
            partial.rename(path)
            _sync(path.parent)
            _remove(before)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if before.exists() and not path.exists():
                before.rename(path)
            raise


def read(path: Path) -> Content:
    """
    :return: what the directory holds, every file verified.
    :raises FileNotFoundError: where there is none.
    :raises DamagedError: naming the file that is missing, truncated or altered.
    :raises ValueError: for a format of later versions.
    """
    path = Path(path).absolute()
    before = path.with_name(f".{path.name}.previous")
    if not path.exists() and is_saved(before):  # written over, and cut off between two renamings
        path = before
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a directory that was saved, found nothing.")
    if not is_saved(path):
        raise DamagedError(f"{path}: {MANIFEST} is missing; it was not saved here, or is damaged.")
    manifest = _read_manifest(path)
    for name, record in manifest["files"].items():
        _verify(path, name, record)
    configuration = json.loads((path / CONFIGURATION).read_text())
    return Content(configuration, _load_arrays(path / ARRAYS, manifest["arrays"]))


def _write(path: Path, content: Content) -> None:
    path.mkdir()
    arrays = {name: np.asarray(x) for name, x in content.arrays.items()}
    _save_arrays(path / ARRAYS, arrays)
    (path / CONFIGURATION).write_text(_dumps(content.configuration))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    manifest = {
        "format": FORMAT,
        "arrays": {n: {"shape": list(x.shape), "dtype": x.dtype.name} for n, x in arrays.items()},
        "files": {file.relative_to(path).as_posix(): _record(file) for file in files},
    }
    (path / MANIFEST).write_text(_dumps(manifest | {"sha256": _checksum(manifest)}))
    for entry in (*path.rglob("*"), path):
        _sync(entry)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, checksum = manifest["format"], manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path / MANIFEST}: truncated or altered ({error!r}).") from error
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"{path}: written in format {version}, and this version of numpyro_amortized reads "
            f"formats up to {FORMAT}. Install a newer version."
        )
    if checksum != _checksum(manifest):
        raise DamagedError(f"{path / MANIFEST}: altered, its checksum is another one.")
    return manifest


def _verify(path: Path, name: str, record: Mapping[str, Any]) -> None:
    file = path / name
    if not file.is_file():
        raise DamagedError(f"{file}: missing.")
    if (size := file.stat().st_size) < record["bytes"]:
        raise DamagedError(f"{file}: truncated, expected {record['bytes']} bytes, got {size}.")
    if _record(file) != record:
        raise DamagedError(f"{file}: altered, its checksum is another one.")


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    stored = {name: x for name, x in arrays.items() if x.size}  # Orbax stores no empty ones
    if not stored:
        return
    import orbax.checkpoint as ocp  # it takes long to import

    with _checkpointer() as checkpointer:
        try:
            checkpointer.save(path, args=ocp.args.PyTreeSave(stored))
        except ValueError as error:  # that is how its storage says that a file system refused
            raise OSError(str(error)) from error


def _load_arrays(path: Path, layout: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    arrays = {n: np.zeros(x["shape"], _dtype(x["dtype"])) for n, x in layout.items()}
    wanted = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n, x in arrays.items() if x.size}
    if not wanted:
        return arrays
    with _checkpointer() as checkpointer:
        restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))
    return {name: restored.get(name, x) for name, x in arrays.items()}


def _checkpointer() -> "ocp.Checkpointer":
    """One that does not wait for other processes, which need not save or load as well."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process_{this}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _dtype(name: str) -> np.dtype:
    return jnp.dtype(name)  # which also knows bfloat16


def _record(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _sync(path: Path) -> None:
    """On the disk before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the file system name what the user asked for, not one of its many files."""
    try:
        yield
    except OSError as error:
        reason = f"saving failed: {error.strerror or error}"
        raise OSError(error.errno or 0, reason, str(path)) from error
