# SPDX-License-Identifier: Apache-2.0
"""How often posterior intervals and regions contain the true latents."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.diagnostics.calibration import pit_values
from numpyro_amortized.diagnostics.labelled import Dims, labelled
from numpyro_amortized.diagnostics.simulated import check_draws
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

__all__ = ["LEVELS", "central_interval", "coverage", "highest_density_interval", "tarp"]

LEVELS = tuple(round(level, 2) for level in np.arange(0.05, 1, 0.05).tolist())
Interval = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def central_interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval between quantiles that leave out as much on either side.

    :param draws: shape ``(num_datasets, num_samples, *shape)``.
    :param level: probability of the interval.
    :return: lower and upper bounds, shape ``(num_datasets, *shape)``. Between the least and the
        greatest draw, they contain a further draw with exactly this probability.
    """
    tail = (1 - level) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail], axis=1, method="weibull")
    return lower, upper


def highest_density_interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The shortest interval, which is that of highest density where there is one mode.

    Being chosen as the shortest, it is slightly too short: with 1,000 draws by about .01 of
    probability.

    :param draws: shape ``(num_datasets, num_samples, *shape)``.
    :param level: probability of the interval.
    :return: lower and upper bounds, shape ``(num_datasets, *shape)``.
    """
    ordered = np.sort(draws, axis=1)
    num_samples = ordered.shape[1]
    steps = min(max(int(np.ceil(level * (num_samples + 1))), 1), num_samples - 1)
    lower, upper = ordered[:, : num_samples - steps], ordered[:, steps:]
    shortest = np.argmin(upper - lower, axis=1, keepdims=True)
    first, last = (np.take_along_axis(bound, shortest, axis=1)[:, 0] for bound in (lower, upper))
    return first, last


def coverage(
    truth: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    *,
    levels: Sequence[float] = LEVELS,
    interval: Interval = central_interval,
    dims: Dims | None = None,
) -> "xarray.Dataset":
    """Share of data sets for which posterior intervals contain the true latent.

    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: posterior draws, values ``(num_datasets, num_samples, *shape)``.
    :param levels: probabilities of the intervals, at which the shares are to lie.
    :param interval: draws and level to bounds: :func:`central_interval`,
        :func:`highest_density_interval` or your own.
    :param dims: names of each site's own dimensions.
    :return: shares with the dimension ``level``; the attribute ``num_datasets`` tells their error.
    """
    known, drawn = check_draws(truth, draws)

    def share(name: str, level: float) -> np.ndarray:
        lower, upper = interval(drawn[name], level)
        return np.mean((lower <= known[name]) & (known[name] <= upper), axis=0)

    shares = {name: np.stack([share(name, level) for level in levels]) for name in known}
    attrs = {"num_datasets": len(next(iter(known.values())))}
    return labelled(shares, ["level"], dims, {"level": levels}, attrs)


def tarp(
    rng_key: Array,
    truth: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    *,
    references: ArrayLike | None = None,
) -> "xarray.Dataset":
    """Tests of accuracy with random points: expected coverage of balls around reference points [1].

    All latents are taken together, so that wrong dependence between them shows. They, their draws
    and the references are standardized by the mean and standard deviation of the true latents.

    :param rng_key: a key, that breaks ties.
    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: posterior draws, values ``(num_datasets, num_samples, *shape)``.
    :param references: a point for each data set, in the latents' own units and in the order of
        ``truth``, shape ``(num_datasets, size)``. They may depend on the data, and have to if
        the test is to see a posterior that ignores the data; they must not depend on the data
        set's own latents. By default the latents of another data set.
    :return: ``tarp``, the probability of the draws closer to the reference than the true latent
        is, in the layout of ``prior_sbc``: uniform if the posterior is right, and so an input of
        :func:`uniformity_test` and :func:`arviz.plot_ecdf_pit`.
    :raises ValueError: where shapes do not fit, or there are fewer than two data sets.

    1. Lemos, Coogan, Hezaveh & Perreault-Levasseur (2023), *Sampling-based accuracy testing of
       posterior estimators for general inference*, ICML.
    """
    known, drawn = check_draws(truth, draws)
    points = _flat(known, 1)
    if len(points) < 2:
        raise ValueError(f"truth: expected at least two data sets, got {len(points)}.")
    if references is None:
        references = np.roll(points, 1, axis=0)
    if np.shape(references) != points.shape:
        raise ValueError(f"references: expected shape {points.shape}, got {np.shape(references)}.")
    centre, scale = points.mean(0), points.std(0)
    scale[scale == 0] = 1
    anchors = (np.asarray(references) - centre) / scale
    distance = np.linalg.norm((points - centre) / scale - anchors, axis=-1)
    distances = np.linalg.norm((_flat(drawn, 2) - centre) / scale - anchors[:, None], axis=-1)
    pit = pit_values(
        typed_key(rng_key), {"tarp": jnp.asarray(distance)}, {"tarp": jnp.asarray(distances)}
    )
    return labelled({"tarp": np.asarray(pit["tarp"])[None]}, ["chain", "draw"])


def _flat(values: Mapping[str, np.ndarray], num_axes: int) -> np.ndarray:
    """All sites as one vector, shape ``(*leading, size)``."""
    parts = [value.reshape(*value.shape[:num_axes], -1) for value in values.values()]
    return np.concatenate(parts, axis=-1).astype(float)
