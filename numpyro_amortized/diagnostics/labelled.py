# SPDX-License-Identifier: Apache-2.0
"""Arrays with the names of their dimensions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import xarray

__all__ = ["Dims", "labelled"]

Dims = Mapping[str, Sequence[str]]


def labelled(
    values: Mapping[str, ArrayLike],
    leading: Sequence[str],
    dims: Dims | None = None,
    coords: Mapping[str, ArrayLike | Sequence[str] | Sequence[float]] | None = None,
    attrs: Mapping[str, float] | None = None,
) -> "xarray.Dataset":
    """A data set of arrays.

    :param values: name to array.
    :param leading: names of the first dimensions, which all arrays share.
    :param dims: names of each array's other dimensions, by default ``<name>_dim_<axis>``.
    :param coords: coordinates of the leading dimensions, by default integers.
    :param attrs: attributes of the data set.
    """
    import xarray  # takes a second to import

    arrays = {name: np.asarray(value) for name, value in values.items()}
    names = {
        name: tuple((dims or {}).get(name) or _default(name, array.ndim - len(leading)))
        for name, array in arrays.items()
    }
    sizes = {
        dim: size
        for name, array in arrays.items()
        for dim, size in zip([*leading, *names[name]], array.shape, strict=True)
    }
    axes = {dim: np.arange(size) for dim, size in sizes.items()}
    axes |= {dim: np.asarray(values) for dim, values in (coords or {}).items()}
    variables = {name: ([*leading, *names[name]], array) for name, array in arrays.items()}
    return xarray.Dataset(variables, coords=axes, attrs=dict(attrs or {}))


def _default(name: str, ndim: int) -> list[str]:
    return [f"{name}_dim_{axis}" for axis in range(ndim)]
