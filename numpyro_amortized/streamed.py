# SPDX-License-Identifier: Apache-2.0
"""Data sets that the host feeds to the training loop while it runs."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import Any, final

import numpy as np
from jax import Array, lax, random

from numpyro_amortized.datasets import Batch, Dataset, composed, mapped
from numpyro_amortized.loads import Load, Rows, Schedule, host_rows, prefetch
from numpyro_amortized.simulators.base import Simulator

DEFAULT_MEMORY = 2**27


class StreamedDataset(Dataset):
    """Simulations that the host reads or makes in a thread while the device trains.

    The loop gets them in loads of constant shape, which :meth:`start` has as its ``arrays``.

    :param memory: bytes of a load. Two are held: the one trained on and the one that follows.
    :param function: maps one simulation, on the device.
    """

    def __init__(self, memory: int, function: Callable[[Batch], Batch] | None) -> None:
        self.arrays: Batch = {}
        self.memory, self.function = memory, function

    @abstractmethod
    def loads(self, rng_key: Array, schedule: Schedule) -> AbstractContextManager[Iterator[Load]]:
        """What the loop works on, one dispatch after the other; within the context only."""

    def start(self, rng_key: Array, arrays: Batch) -> tuple[Batch, Batch]:
        return {}, arrays

    def batch(self, epoch: Batch, step: Array, batch_size: int) -> Batch:
        begin = step * batch_size
        rows = {n: lax.dynamic_slice_in_dim(v, begin, batch_size) for n, v in epoch.items()}
        return mapped(self.function, rows)


@final
class HostDataset(StreamedDataset):
    """Simulates every batch anew, on the host, while the device trains on those before.

    Batch ``i`` is ``simulator.sample`` with a key folded by ``i``: equal keys give equal
    simulations, whatever ``workers`` is. Backends of joblib that are configured around ``fit``
    hold here too.

    **Example**

    .. doctest::

        >>> from numpyro_amortized.simulators.functions import LambdaSimulator
        >>> from numpyro_amortized.streamed import HostDataset
        >>> normal = LambdaSimulator(lambda rng: {"x": rng.normal()})
        >>> HostDataset(normal, workers=1).head(3)["x"].shape
        (3,)

    :param simulator: any simulator, in particular one that JAX cannot trace.
    :param workers: number of worker processes.
    :param memory: bytes of simulations for one dispatch, at most.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        workers: int | None = None,
        memory: int = DEFAULT_MEMORY,
        _function: Callable[[Batch], Batch] | None = None,
    ) -> None:
        super().__init__(memory, _function)
        self.simulator, self.workers = simulator, workers

    def loads(self, rng_key: Array, schedule: Schedule) -> AbstractContextManager[Iterator[Load]]:
        import joblib  # only those who simulate on the host wait for it

        # the backend that is configured here is not known to the thread
        pieces = self._pieces(rng_key, schedule, joblib.parallel.get_active_backend())
        return prefetch(pieces, schedule, memory=self.memory, order=None)

    def _pieces(
        self, rng_key: Array, schedule: Schedule, backend: tuple[Any, int]
    ) -> Iterator[Rows]:
        from joblib import parallel_config

        with parallel_config(backend[0], n_jobs=backend[1]):
            batch_size = schedule.batch_size
            for index in count(schedule.rows_done // batch_size):
                key = random.fold_in(rng_key, np.uint32(index))
                yield host_rows(self.simulator.sample(key, batch_size, workers=self.workers))

    def head(self, num_simulations: int) -> Batch:
        draws = self.simulator.sample(random.key(0), num_simulations, workers=self.workers)
        return mapped(self.function, draws)

    def map(self, function: Callable[[Batch], Batch]) -> "HostDataset":
        function = composed(self.function, function)
        return HostDataset(
            self.simulator, workers=self.workers, memory=self.memory, _function=function
        )
