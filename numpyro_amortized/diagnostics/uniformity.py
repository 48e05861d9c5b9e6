# SPDX-License-Identifier: Apache-2.0
"""Tests of uniformity, corrected for their number."""

from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import xarray

__all__ = ["holm", "uniformity_test"]


def uniformity_test(pit: "xarray.Dataset") -> "xarray.Dataset":
    """P-values of the hypothesis that independent values in [0, 1] are uniform.

    Two Kolmogorov-Smirnov tests, exact at any number of values: of the values, sensitive to draws
    that are off to one side, and of their distance to one half, sensitive to draws that are too
    narrow or too wide. The smaller of both is doubled, and corrected for the number of quantities
    and of their elements by Holm's method [1]: if all are uniform, the probability that *any*
    corrected p-value is below .01 is at most .01.

    :param pit: values with the dimensions ``chain`` and ``draw``, such as the group ``prior_sbc``
        of :func:`simulation_based_calibration`.
    :return: a p-value of each element, along the dimension ``p_value``: ``location``, ``spread``,
        and ``corrected`` for both together.

    1. Holm (1979), *A simple sequentially rejective multiple test procedure*, Scandinavian Journal
       of Statistics 6.
    """
    import xarray

    tests = pit.map(_tests)
    both = (2 * tests.min("p_value")).clip(max=1)
    flat = np.concatenate([both[name].values.ravel() for name in both])
    corrected = np.split(holm(flat), np.cumsum([both[name].size for name in both])[:-1])
    adjusted = {
        name: both[name].copy(data=values.reshape(both[name].shape))
        for name, values in zip(both, corrected, strict=True)
    }
    last = xarray.Dataset(adjusted).expand_dims(p_value=["corrected"], axis=-1)
    return xarray.concat([tests, last], dim="p_value")


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's corrected p-values, in the order of those given.

    **Example**

    .. doctest::

        >>> from numpyro_amortized.diagnostics import holm
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]

    :param p_values: shape ``(num_tests,)``.
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def _tests(values: "xarray.DataArray") -> "xarray.DataArray":
    import xarray

    return xarray.apply_ufunc(
        _kolmogorov_smirnov,
        values.stack(value=("chain", "draw"), create_index=False),
        input_core_dims=[["value"]],
        output_core_dims=[["p_value"]],
    ).assign_coords(p_value=["location", "spread"])


def _kolmogorov_smirnov(values: np.ndarray) -> np.ndarray:
    """Of values ``(*batch, num_values)``; shape ``(*batch, 2)``."""
    from scipy import stats

    tested = np.stack([values, np.abs(2 * values - 1)], axis=-2)
    return np.asarray(stats.ks_1samp(tested, stats.uniform.cdf, axis=-1).pvalue)
