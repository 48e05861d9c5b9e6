# SPDX-License-Identifier: Apache-2.0
"""Data sets whose simulations are changed at random, anew in every batch."""

from collections.abc import Callable, Sequence
from typing import Any, final

from jax import Array, random

from numpyro_amortized.adapters.augmentations import Augmentation, augment
from numpyro_amortized.datasets import Batch, Dataset, composed, mapped
from numpyro_amortized.streamed import StreamedDataset


@final
class AugmentedDataset(Dataset):
    """A data set with augmentations, which come before the adapter.

    Validation is as the caller gives it: augment a bank for it as well, where the shapes change.

    :param dataset: a data set on the device.
    :param augmentations: functions of a key and one simulation, applied in their order.
    :raises TypeError: where the data set is fed by the host.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentations: Sequence[Augmentation],
        _function: Callable[[Batch], Batch] | None = None,
    ) -> None:
        if isinstance(dataset, StreamedDataset):
            raise TypeError(
                "AugmentedDataset: expected a data set on the device, got "
                f"{type(dataset).__name__}, which the host feeds to the training loop."
            )
        self._dataset, self._augmentations = dataset, tuple(augmentations)
        self._function = _function
        self.arrays = dataset.arrays

    def start(self, rng_key: Array, arrays: Any) -> tuple[Any, Any]:
        start_key, change_key = random.split(rng_key)
        arrays, epoch = self._dataset.start(start_key, arrays)
        return arrays, (change_key, epoch)

    def batch(self, epoch: Any, step: Array, batch_size: int) -> Batch:
        change_key, epoch = epoch
        values = self._dataset.batch(epoch, step, batch_size)
        changed = augment(random.fold_in(change_key, step), values, self._augmentations)
        return mapped(self._function, changed)

    def head(self, num_simulations: int) -> Batch:
        return augment(random.key(0), self._dataset.head(num_simulations), self._augmentations)

    def map(self, function: Callable[[Batch], Batch]) -> "AugmentedDataset":
        function = composed(self._function, function)
        return AugmentedDataset(self._dataset, self._augmentations, function)
