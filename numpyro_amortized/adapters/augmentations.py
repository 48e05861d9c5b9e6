# SPDX-License-Identifier: Apache-2.0
"""Random changes to simulations that make a data set larger, or more like real data.

They take a key, so they are no steps of an adapter: they are applied to the batches of a data set,
before its adapter. Any function of a key and one simulation is an augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, random

from numpyro_amortized.adapters.base import Data
from numpyro_amortized.simulators.base import typed_key

Augmentation = Callable[[Array, Data], dict[str, Array]]


@final
@dataclass(frozen=True)
class RandomSubsample:
    """Random places along an axis, without replacement, new for each simulation.

    :param names: the entries; they lose the same places.
    :param sample_size: how many places are left, or their share.
    :param axis: of a value.
    """

    names: str | Sequence[str]
    sample_size: int | float
    axis: int = -1

    def __post_init__(self) -> None:
        is_share = isinstance(self.sample_size, float)
        if not 0 < self.sample_size <= (1 if is_share else jnp.inf):
            raise ValueError(
                "RandomSubsample: `sample_size`: expected a positive integer or a share in (0, 1], "
                f"got {self.sample_size!r}."
            )

    def __call__(self, rng_key: Array, data: Data) -> dict[str, Array]:
        """One simulation with fewer places.

        :raises ValueError: where the entries have axes of different lengths, or too few places.
        """
        own = [name for name in _names(self.names) if name in data]
        lengths = {name: data[name].shape[self.axis] for name in own}
        if not own:
            return dict(data)
        length = lengths[own[0]]
        size = self._size(length)
        if len(set(lengths.values())) > 1 or size > length:
            raise ValueError(
                f"RandomSubsample: expected entries with at least {size} places along axis "
                f"{self.axis}, all the same number, got {lengths}."
            )
        places = random.permutation(rng_key, length)[:size]
        return dict(data) | {name: jnp.take(data[name], places, self.axis) for name in own}

    def _size(self, length: int) -> int:
        if isinstance(self.sample_size, float):
            return max(1, round(self.sample_size * length))
        return self.sample_size


@final
@dataclass(frozen=True)
class Noise:
    """Add independent random numbers.

    :param names: the entries.
    :param distribution: of one number, such as ``dist.StudentT(3, 0, 0.1)``; an integer entry
        becomes one of numbers.
    """

    names: str | Sequence[str]
    distribution: dist.Distribution

    def __call__(self, rng_key: Array, data: Data) -> dict[str, Array]:
        """One simulation with noise."""
        result = dict(data)
        for number, name in enumerate(_names(self.names)):
            if name in data:
                shape = data[name].shape
                shape = shape[: len(shape) - len(self.distribution.shape())]
                key = random.fold_in(rng_key, number)
                result[name] = data[name] + self.distribution.sample(key, shape)
        return result


@final
@dataclass(frozen=True)
class RandomMissing:
    """Make values missing at random: they become NaN, as :meth:`Adapter.nan_to_num` expects them.

    :param names: the entries.
    :param probability: of each number to be missing.
    :param axis: of a value, whose places are missing as a whole; by default each number.
    """

    names: str | Sequence[str]
    probability: float
    axis: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(
                "RandomMissing: `probability`: expected a number between 0 and 1, got "
                f"{self.probability!r}."
            )

    def __call__(self, rng_key: Array, data: Data) -> dict[str, Array]:
        """One simulation with missing values."""
        result = dict(data)
        for number, name in enumerate(_names(self.names)):
            if name in data:
                key = random.fold_in(rng_key, number)
                missing = random.bernoulli(key, self.probability, self._places(data[name]))
                result[name] = jnp.where(missing, jnp.nan, data[name])
        return result

    def _places(self, x: Array) -> tuple[int, ...]:
        if self.axis is None:
            return x.shape
        return tuple(n if axis == self.axis % x.ndim else 1 for axis, n in enumerate(x.shape))


def augment(
    rng_key: Array, data: Data, augmentations: Sequence[Augmentation], *, num_batch_axes: int = 1
) -> dict[str, Array]:
    """Apply augmentations to a batch of simulations, each with a key of its own. Traceable.

    :param rng_key: a key.
    :param data: values with leading batch axes.
    :param augmentations: functions of a key and one simulation, applied in their order.
    :param num_batch_axes: number of batch axes.
    :return: the values augmented.

    **Example**

    .. doctest::

        >>> import numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> from numpyro_amortized.adapters.augmentations import Noise, RandomSubsample, augment
        >>> batch = {"y": jnp.zeros((32, 10))}
        >>> steps = [RandomSubsample("y", 5), Noise("y", dist.Normal(0, 0.1))]
        >>> augment(random.key(0), batch, steps)["y"].shape
        (32, 5)
    """

    def one(rng_key: Array, values: Data) -> Data:
        for number, augmentation in enumerate(augmentations):
            values = augmentation(random.fold_in(rng_key, number), values)
        return values

    batch_shape = jnp.shape(jax.tree.leaves(data)[0])[:num_batch_axes]
    keys = random.split(typed_key(rng_key), prod(batch_shape)).reshape(batch_shape)
    for _ in range(num_batch_axes):
        one = jax.vmap(one)
    return dict(one(keys, jax.tree.map(jnp.asarray, dict(data))))


def _names(names: str | Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names
