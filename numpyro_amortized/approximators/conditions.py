# SPDX-License-Identifier: Apache-2.0
"""Checking what the user passes as data."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from numpyro_amortized.sharding import map_shares, on_shares
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.simulators.varying_size import VaryingSize


class Conditions(NamedTuple):
    """Observed values with a leading axis of data sets."""

    values: dict[str, Array]
    is_batch: bool  # whether that axis was the user's own

    @property
    def num_datasets(self) -> int:
        """Length of the leading axis."""
        return len(next(iter(self.values.values())))

    def unbatch[T](self, result: T) -> T:
        """Take the leading axis away again where the user gave one data set."""
        return result if self.is_batch else jax.tree.map(lambda array: array[0], result)


def check_conditions(
    sites: Mapping[str, Site],
    conditions: Mapping[str, ArrayLike],
    varying: VaryingSize | None = None,
    may_be_missing: Collection[str] = (),
) -> Conditions:
    """Validate the values of the observed sites and of the context.

    :param sites: the sites of the simulator.
    :param conditions: a value of each observed site and of the context; with one more leading
        axis, a batch. A context without that axis is shared.
    :param varying: the size that varies, if there is one: values are padded to the greatest.
    :param may_be_missing: names of sites whose values may be NaN, since the adapter handles it.
    :raises TypeError: where it is no mapping of names to numbers.
    :raises ValueError: where names, shapes, types or values do not fit.
    """
    names = given_names(sites, varying)
    if isinstance(conditions, Mapping) and varying is not None:
        names += [varying.name] if varying.name in conditions else []
    _check_names(conditions, names, "conditions", sites)
    arrays = {
        name: _as_array(sites[name], conditions[name], may_be_missing=name in may_be_missing)
        for name in names
    }
    if varying is not None and varying.name not in arrays:
        arrays = _padded(sites, arrays, varying)
    extra = {name: _leading(sites[name], arrays[name], (0, 1))[0] for name in arrays}
    arrays, extra = _shared(sites, arrays, extra)
    names = list(arrays)
    if len(set(extra.values())) > 1 or len({_lengths(arrays[n]) for n in names if extra[n]}) > 1:
        shapes = {name: arrays[name].shape for name in names}
        raise ValueError(
            "conditions: expected all sites for one data set, or all with one more leading axis of "
            f"the same length, got shapes {shapes}."
        )
    is_batch = any(extra.values())
    values = arrays if is_batch else {name: array[None] for name, array in arrays.items()}
    if is_batch and not len(next(iter(values.values()))):
        raise ValueError("conditions: expected at least one data set, got an axis of length 0.")
    return Conditions(values, is_batch)


def given_names(sites: Mapping[str, Site], varying: VaryingSize | None = None) -> list[str]:
    """Names of what inference conditions on; a size is read from the shapes of the others."""
    size = None if varying is None else varying.name
    return [site.name for site in sites.values() if site.is_given and site.name != size]


def _padded(
    sites: Mapping[str, Site], arrays: dict[str, Array], varying: VaryingSize
) -> dict[str, Array]:
    """Values of the greatest size, and the size that they had."""
    sized = {
        name: varying.axes[name][0] - len(sites[name].shape)
        for name in arrays
        if name in varying.axes
    }
    lengths = {n: arrays[n].shape[k] for n, k in sized.items() if arrays[n].ndim >= -k}
    size = next(iter(lengths.values()), 0)
    if len(set(lengths.values())) > 1 or not varying.low <= size <= varying.high:
        raise ValueError(
            f"conditions: expected sites {list(sized)} of one size '{varying.name}' between "
            f"{varying.low} and {varying.high}, the range of the training, got sizes {lengths}."
        )
    padded = {}
    for name, array in arrays.items():
        rank = len(sites[name].shape)
        axes = [axis - rank for axis in varying.axes.get(name, ())]
        extra = [
            (0, varying.high - size if k - array.ndim in axes else 0) for k in range(array.ndim)
        ]
        padded[name] = jnp.pad(array, extra)
    some = next(iter(lengths))
    batch = arrays[some].shape[: arrays[some].ndim - len(sites[some].shape)]
    return padded | {varying.name: jnp.full(batch, size, jnp.int32)}


def _shared(
    sites: Mapping[str, Site], arrays: dict[str, Array], extra: dict[str, int]
) -> tuple[dict[str, Array], dict[str, int]]:
    """A context without the axis of the data sets serves all of them."""
    batched = [array.shape[0] for name, array in arrays.items() if extra[name]]
    alone = [n for n in arrays if not extra[n] and sites[n].role == "context" and batched]
    repeated = {n: jnp.broadcast_to(arrays[n], (batched[0], *arrays[n].shape)) for n in alone}
    return arrays | repeated, extra | dict.fromkeys(alone, 1)


def check_latents(
    sites: Mapping[str, Site],
    names: Sequence[str],
    latents: Mapping[str, ArrayLike],
    conditions: Conditions,
) -> tuple[dict[str, Array], bool]:
    """Validate latent values at which a density is asked for.

    :param names: the inferred sites.
    :param latents: values ``(num_conditions, [num_samples,] *shape)``, without the first axis
        where the conditions are one data set.
    :param conditions: the observed values.
    :return: values ``(num_conditions, num_samples, *shape)``, and whether the user gave the
        ``num_samples`` axis.
    """
    batch = int(conditions.is_batch)
    arrays = {name: _as_array(sites[name], latents[name]) for name in names}
    extra = {n: _leading(sites[n], arrays[n], (batch, batch + 1))[0] for n in names}
    lead = {array.shape[: extra[name]] for name, array in arrays.items()}
    if len(lead) > 1 or (batch and next(iter(lead))[0] != conditions.num_datasets):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(
            f"data: expected latents with the leading axes of the conditions "
            f"({conditions.num_datasets if batch else 'one data set, no axis'}), and at most one "
            f"further axis of samples, got shapes {shapes}."
        )
    has_samples = next(iter(extra.values())) > batch
    values = arrays if batch else {name: array[None] for name, array in arrays.items()}
    if not has_samples:
        values = {name: array[:, None] for name, array in values.items()}
    return values, has_samples


def check_num_samples(num_samples: int) -> int:
    """A positive integer.

    :raises TypeError: where it is no integer.
    :raises ValueError: where it is not positive.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int | np.integer):
        raise TypeError(f"num_samples: expected a positive integer, got {num_samples!r}.")
    if num_samples < 1:
        raise ValueError(f"num_samples: expected a positive integer, got {num_samples}.")
    return int(num_samples)


def check_positive(**values: object) -> None:
    """Positive integers, by the name of the argument.

    :raises ValueError: naming the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}.")


def in_batches[T](
    function: Callable[..., T], arguments: tuple[Any, ...], batch_size: int | None
) -> T:
    """Call a function on slices of the leading axis, all of the same length, and join the results.

    :param function: maps arrays with a leading axis to arrays with the same one.
    :param arguments: its arguments, pytrees of arrays with the same leading axis.
    :param batch_size: length of a slice, by default all at once.
    """
    if batch_size is not None:
        check_positive(batch_size=batch_size)
    length = len(jax.tree.leaves(arguments)[0])
    if batch_size is None or batch_size >= length:
        return on_shares(function, arguments)
    results = []
    for start in range(0, length, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), length - 1)
        some = jax.tree.map(lambda array: array[rows], arguments)  # noqa: B023
        results.append(on_shares(function, some))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:length], *results)


def map_in_chunks[T](function: Callable[..., T], arguments: tuple[Any, ...], chunk_size: int) -> T:
    """Map a function over the leading axis, vectorized over chunks of it; traceable.

    Where the axis can be divided equally, each device of this process maps a share of it.

    :param function: maps one entry of each argument.
    :param arguments: its arguments, pytrees of arrays with the same leading axis.
    :param chunk_size: entries at a time.
    """
    return map_shares(partial(_map_in_chunks, function, chunk_size), arguments)


def _map_in_chunks[T](function: Callable[..., T], chunk_size: int, *arguments: Any) -> T:
    length = len(jax.tree.leaves(arguments)[0])
    chunk_size = min(chunk_size, length)
    num_chunks = -(-length // chunk_size)
    # the last chunk is filled up: a shorter one would be a second program
    rows = np.minimum(np.arange(num_chunks * chunk_size), length - 1)
    rows = rows.reshape(num_chunks, chunk_size)
    chunks = jax.tree.map(lambda array: array[rows], arguments)
    results = lax.map(lambda chunk: jax.vmap(function)(*chunk), chunks)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:length], results)


def _check_names(
    data: Mapping[str, ArrayLike], names: Sequence[str], what: str, sites: Mapping[str, Site]
) -> None:
    if not isinstance(data, Mapping):
        raise TypeError(
            f"{what}: expected a mapping of site names to arrays, such as "
            f"{{'{names[0]}': ...}}, got {type(data).__name__}."
        )
    missing = [name for name in names if name not in data]
    unknown = [name for name in data if name not in names]
    if missing or unknown:
        roles = {name: sites[name].role for name in unknown if name in sites}
        raise ValueError(
            f"{what}: expected the sites {list(names)}, got {list(data)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; unexpected: {unknown}" if unknown else "")
            + (f" ({roles})" if roles else "")
            + "."
        )


def check_data_names(
    sites: Mapping[str, Site],
    inferred: Sequence[str],
    data: Mapping[str, ArrayLike],
    varying: VaryingSize | None = None,
) -> None:
    """Names of latents and conditions together; deterministic sites are let pass."""
    if isinstance(data, Mapping):
        size = None if varying is None else varying.name
        data = {
            name: value
            for name, value in data.items()
            if name not in sites or name in inferred or (sites[name].is_given and name != size)
        }
    _check_names(data, [*inferred, *given_names(sites, varying)], "data", sites)


def as_numbers(site: Site, value: ArrayLike) -> np.ndarray:
    """Values of a site on the host.

    :raises ValueError: where they are no array of numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"Site '{site.name}': expected an array, got nested sequences of unequal lengths."
        ) from error
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"Site '{site.name}': expected numbers of type {np.dtype(site.dtype).name}, got values "
            f"of type {array.dtype}."
        )
    return array


def _as_array(site: Site, value: ArrayLike, *, may_be_missing: bool = False) -> Array:
    if isinstance(value, jax.core.Tracer):
        return value
    array = as_numbers(site, value)
    visible = _visible(site, array)
    if not (np.isfinite(visible) | (may_be_missing & np.isnan(visible))).all():
        count = int((~np.isfinite(visible)).sum())
        raise ValueError(
            f"Site '{site.name}': expected finite values, got {count} that are NaN or infinite. "
            "Where observations are missing, pass `obs_mask` in the model, or simulate what is "
            "missing and use `nan_to_num(..., return_mask=True)` in the adapter."
        )
    integral = np.issubdtype(site.dtype, np.integer) or site.dtype == np.bool_
    if integral and array.dtype.kind == "f" and (visible != np.round(visible)).any():
        raise ValueError(
            f"Site '{site.name}': expected whole numbers of type {np.dtype(site.dtype).name}, got "
            f"values such as {visible[visible != np.round(visible)].flat[0]}."
        )
    return jnp.asarray(visible, site.dtype)


def _visible(site: Site, array: np.ndarray) -> np.ndarray:
    """What the likelihood sees: masked entries may be anything."""
    mask = site.event_mask
    own = array.shape[max(0, array.ndim - len(site.shape)) :]
    if mask is None or own != site.shape:  # a wrong shape is reported later
        return array
    return np.where(mask, array, 0)


def _leading(site: Site, array: Array, allowed: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Number of leading axes before the site's own shape."""
    extra = array.ndim - len(site.shape)
    own = array.shape[extra:] if extra >= 0 else array.shape
    if extra in allowed and own == site.shape:
        return extra, array.shape[:extra]
    sized = [axis for axis in site.data_sized if extra in allowed and own[axis] != site.shape[axis]]
    axes = ", ".join(["batch", "samples"][: max(allowed)])
    hint = (
        f" Axis {sized[0]} follows the size of the data, but training saw only the length "
        f"{site.shape[sized[0]]}: trace the model with data of the length that you have."
        if sized
        else ""
    )
    raise ValueError(
        f"Site '{site.name}': expected shape {site.shape}, with at most "
        f"{max(allowed)} leading axes ({axes or 'none'}), got {array.shape}.{hint}"
    )


def _lengths(array: Array) -> int:
    return array.shape[0]
