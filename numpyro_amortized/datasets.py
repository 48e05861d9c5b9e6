# SPDX-License-Identifier: Apache-2.0
"""Where the training loop takes its simulations from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from numpyro_amortized.initializers import host_generator
from numpyro_amortized.rejuvenation import Chains, Rejuvenation
from numpyro_amortized.sharding import split_rows
from numpyro_amortized.simulators.base import TraceableSimulator

Batch = dict[str, Array]


class Dataset(ABC):
    """Batches of simulations for a compiled training loop.

    ``arrays`` are what the loop carries from epoch to epoch on the device, ``start`` prepares an
    epoch and ``batch`` takes one of its batches; both are pure and traceable.
    """

    arrays: Any

    @abstractmethod
    def start(self, rng_key: Array, arrays: Any) -> tuple[Any, Any]:
        """New arrays, and what :meth:`batch` needs in this epoch."""

    @abstractmethod
    def batch(self, epoch: Any, step: Array, batch_size: int) -> Batch:
        """The batch of one step, leaves ``(batch_size, ...)``."""

    @abstractmethod
    def head(self, num_simulations: int) -> Batch:
        """As many simulations, or all there are: for their names, shapes and moments."""

    @abstractmethod
    def map(self, function: Callable[[Batch], Batch]) -> "Dataset":
        """The data set of the values of ``function``, which maps one simulation."""


@final
class OnlineDataset(Dataset):
    """Simulates every batch anew, inside the loop.

    :param simulator: a traceable simulator.
    :raises TypeError: for anything else.
    """

    def __init__(
        self, simulator: TraceableSimulator, _function: Callable[[Batch], Batch] | None = None
    ) -> None:
        if not isinstance(simulator, TraceableSimulator):
            raise TypeError(
                "OnlineDataset: expected a simulator that JAX can trace, got "
                f"{type(simulator).__name__}. One that runs on the host goes into a HostDataset."
            )
        self.simulator = simulator
        self.arrays: Batch = {}
        self._function = _function

    def start(self, rng_key: Array, arrays: Batch) -> tuple[Batch, Array]:
        return arrays, rng_key

    def batch(self, epoch: Array, step: Array, batch_size: int) -> Batch:
        def draw(rng_key: Array) -> Batch:
            values = self.simulator.simulate(rng_key)
            return values if self._function is None else self._function(values)

        keys = split_rows(random.split(random.fold_in(epoch, step), batch_size))
        return jax.vmap(draw)(keys)

    def head(self, num_simulations: int) -> Batch:
        return mapped(self._function, self.simulator.sample(random.key(0), num_simulations))

    def map(self, function: Callable[[Batch], Batch]) -> "OnlineDataset":
        return OnlineDataset(self.simulator, composed(self._function, function))


@final
class OfflineDataset(Dataset):
    """A bank of simulations, held on the device and shuffled there in every epoch.

    :param bank: arrays with a common leading axis of simulations.
    :raises TypeError: where it is no mapping.
    :raises ValueError: where the leading axes differ, or the bank is empty.
    """

    def __init__(self, bank: Mapping[str, Array | np.ndarray]) -> None:
        if not isinstance(bank, Mapping):
            raise TypeError(
                "OfflineDataset: expected a mapping of site names to arrays, got "
                f"{type(bank).__name__}."
            )
        lengths = {
            jax.tree_util.keystr(path, simple=True, separator="/"): (*np.shape(value), None)[0]
            for path, value in jax.tree.leaves_with_path(dict(bank), _is_array)
        }
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise ValueError(
                "OfflineDataset: expected arrays with a common leading axis of at least one "
                f"simulation, got lengths {lengths}."
            )
        self.arrays = dict(bank)

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    def start(self, rng_key: Array, arrays: Batch) -> tuple[Batch, Any]:
        return arrays, (random.permutation(rng_key, len(self)), arrays)

    def batch(self, epoch: Any, step: Array, batch_size: int) -> Batch:
        return _rows(epoch, step, batch_size)

    def head(self, num_simulations: int) -> Batch:
        return jax.tree.map(lambda values: jnp.asarray(values[:num_simulations]), self.arrays)

    def map(self, function: Callable[[Batch], Batch]) -> "OfflineDataset":
        return OfflineDataset(jax.jit(jax.vmap(function))(self.arrays))

    def split(self, rng_key: Array, held_out: int) -> tuple["OfflineDataset", "OfflineDataset"]:
        """Hold out simulations at random; the rest and those held out."""
        if not 0 < held_out < len(self):
            raise ValueError(
                f"validation: expected fewer simulations than the {len(self)} of the data set, "
                f"got {held_out}."
            )
        order = host_generator(rng_key).permutation(len(self))
        return self._take(order[held_out:]), self._take(order[:held_out])

    def finite(self, *, ignore: Collection[str] = ()) -> "OfflineDataset":
        """Those simulations whose values are all finite.

        :param ignore: names of entries that need not be.
        :raises ValueError: where there is none.
        """
        usable = np.logical_and.reduce(
            [
                np.isfinite(np.asarray(v)).reshape(len(self), -1).all(-1)
                for name, value in self.arrays.items()
                if name not in ignore
                for v in jax.tree.leaves(value)
            ]
        )
        if not usable.any():
            raise ValueError("OfflineDataset: no simulation has finite values throughout.")
        return self if usable.all() else self._take(usable)

    def _take(self, rows: np.ndarray) -> "OfflineDataset":
        return OfflineDataset(jax.tree.map(lambda v: np.asarray(v)[rows], self.arrays))


@final
class RejuvenatedDataset(Dataset):
    """A bank whose latents are moved within their posteriors before every epoch.

    :param bank: finite site values, arrays with a common leading axis of simulations.
    :param rejuvenation: the moves.
    :param num_moves: of each simulation in each epoch.
    """

    def __init__(
        self,
        bank: Batch | Chains,
        rejuvenation: Rejuvenation,
        num_moves: int,
        _function: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._rejuvenation, self.num_moves, self._function = rejuvenation, num_moves, _function
        self.arrays = bank if isinstance(bank, Chains) else jax.jit(rejuvenation.start)(bank)

    def __len__(self) -> int:
        return len(self.arrays.position)

    def start(self, rng_key: Array, arrays: Chains) -> tuple[Chains, Any]:
        order_key, move_key = random.split(rng_key)
        chains = self._rejuvenation.move(move_key, split_rows(arrays), self.num_moves)
        inputs = mapped(self._function, self._rejuvenation.values(chains))
        return chains, (random.permutation(order_key, len(self)), inputs)

    def batch(self, epoch: Any, step: Array, batch_size: int) -> Batch:
        return _rows(epoch, step, batch_size)

    def head(self, num_simulations: int) -> Batch:
        chains = jax.tree.map(lambda values: values[:num_simulations], self.arrays)
        return mapped(self._function, self._rejuvenation.values(chains))

    def map(self, function: Callable[[Batch], Batch]) -> "RejuvenatedDataset":
        function = composed(self._function, function)
        return RejuvenatedDataset(self.arrays, self._rejuvenation, self.num_moves, function)


def composed(
    first: Callable[[Batch], Batch] | None, second: Callable[[Batch], Batch]
) -> Callable[[Batch], Batch]:
    """The second function of the values of the first one, if there is one."""
    return second if first is None else lambda values: second(first(values))


def mapped(function: Callable[[Batch], Batch] | None, batch: Batch) -> Batch:
    """The function of each simulation of a batch, if there is one."""
    return batch if function is None else jax.vmap(function)(batch)


def _is_array(value: Any) -> bool:
    return not isinstance(value, Mapping)


def _rows(epoch: Any, step: Array, batch_size: int) -> Batch:
    order, arrays = epoch  # a last batch that does not fit begins earlier: slices are clamped
    chosen = lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
    return jax.tree.map(lambda array: array[chosen], arrays)


def finite_rows(batch: Batch) -> Array:
    """Which rows are finite in every entry, shape ``(batch_size,)``."""
    rows = [jnp.isfinite(v).reshape(len(v), -1).all(-1) for v in jax.tree.leaves(batch)]
    return jnp.stack(rows).all(0)
