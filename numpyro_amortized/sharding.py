# SPDX-License-Identifier: Apache-2.0
"""Rows of batches over all devices; on one device, nothing here changes a program or an array.

Training spans the devices of all processes, and everything but the batches is on each of them;
sampling spans those of its own process. A default device that is set is used alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["localize", "map_shares", "on_shares", "replicate", "replicated", "split_rows"]

_ROWS, _WHOLE = PartitionSpec("rows"), PartitionSpec()


def replicated() -> NamedSharding | None:
    """An equal copy on every device of the training, ``None`` where there is one device."""
    mesh = _mesh(jax.devices)
    return None if mesh is None else NamedSharding(mesh, _WHOLE)


def replicate[T](tree: T) -> T:
    """Copies on every device of the training, of arrays that all processes have."""
    sharding = replicated()
    return tree if sharding is None else jax.tree.map(partial(_put, sharding), tree)


def localize[T](tree: T) -> T:
    """On the default device, arrays that every device of the training has."""
    if replicated() is None:
        return tree
    return jax.tree.map(lambda x: jnp.asarray(np.array(x)), tree)


def split_rows[T](rows: T) -> T:
    """Within the program that trains: an equal share of the leading axis for each device."""
    mesh = _mesh(jax.devices)
    if mesh is None:
        return rows
    return lax.with_sharding_constraint(rows, NamedSharding(mesh, _ROWS))


def on_shares[T](function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Call a function with an equal share of the leading axis on each device of this process.

    :param function: maps arrays with a leading axis to arrays with the same one, row by row.
    :param arguments: its arguments, trees of arrays with the same leading axis.
    """
    leaves = jax.tree.leaves(arguments)
    mesh = _mesh(jax.local_devices)
    if mesh is None or len(leaves[0]) == 1 or any(isinstance(x, jax.core.Tracer) for x in leaves):
        return function(*arguments)
    length = len(leaves[0])
    rows = np.minimum(np.arange(-(-length // mesh.size) * mesh.size), length - 1)
    filled = jax.tree.map(lambda x: x[rows], arguments)
    results = function(*jax.device_put(filled, NamedSharding(mesh, _ROWS)))
    return jax.tree.map(lambda x: x[:length], results)


def map_shares[T](function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """The same within a program, where the rows can be divided equally."""
    length = len(jax.tree.leaves(arguments)[0])
    mesh = _mesh(jax.local_devices)
    if mesh is None or length % mesh.size:
        return function(*arguments)
    # rows are independent: what a share replicates need not be proved equal between devices
    apart = partial(jax.shard_map, mesh=mesh, out_specs=_ROWS, check_vma=False)
    return apart(function, in_specs=(_ROWS,) * len(arguments))(*arguments)


def _put(sharding: NamedSharding, x: Any) -> Array:
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.device_put(x, sharding)
    data = jax.device_put(random.key_data(x), sharding)  # keys cannot be put on other processes
    return random.wrap_key_data(data, impl=random.key_impl(x))


def _mesh(available: Callable[..., list[jax.Device]]) -> Mesh | None:
    """Of the devices, ``None`` where there is one or the user has chosen one."""
    chosen = jax.config.jax_default_device
    if isinstance(chosen, jax.Device):
        return None
    devices = available(backend=chosen)
    return Mesh(np.array(devices), ("rows",)) if len(devices) > 1 else None
