# SPDX-License-Identifier: Apache-2.0
"""What approximators have in common: a source of simulations, an adapter, networks, training."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
import optax
from flax import nnx
from jax import Array, random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import as_numbers, check_positive
from numpyro_amortized.datasets import (
    Batch,
    Dataset,
    OfflineDataset,
    OnlineDataset,
    RejuvenatedDataset,
)
from numpyro_amortized.rejuvenation import Rejuvenation, has_density
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site
from numpyro_amortized.training import History, default_optimizer, train

_VALIDATION_SHARE, _MAX_VALIDATION = 0.1, 2000
NetworkSpec = nnx.Module | Callable[..., nnx.Module]


class Approximator(ABC):
    """A trainable approximation of a distribution that a simulator defines.

    :param source: a :class:`ModelSimulator`, or a NumPyro model without arguments.
    :param adapter: sites to network inputs.
    :raises TypeError: where the source is neither.
    """

    def __init__(
        self, source: ModelSimulator | Callable[[], object], *, adapter: Adapter | None
    ) -> None:
        self.source = source if isinstance(source, ModelSimulator) else _model_simulator(source)
        self.adapter = Adapter.for_posterior(self.source) if adapter is None else adapter
        self._modules: nnx.Dict | None = None

    @abstractmethod
    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The networks."""

    @property
    @abstractmethod
    def _needed_sites(self) -> tuple[str, ...]:
        """The sites that the networks see."""

    @abstractmethod
    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        """Losses, shape ``(batch_size,)``."""

    def fit(
        self,
        rng_key: Array,
        *,
        epochs: int | None = None,
        num_batches: int | None = None,
        batch_size: int = 256,
        dataset: Mapping[str, Array] | Dataset | None = None,
        validation: Mapping[str, Array] | int | None = None,
        optimizer: optax.GradientTransformation | None = None,
        rejuvenation: int | None = None,
        progress_bar: bool = True,
    ) -> History:
        """Train the networks; called again, training goes on from there.

        Without a data set, every batch is simulated anew inside the compiled loop. With one, it is
        shuffled on the device in every epoch, and a tenth of it is held out for validation. The
        parameters of the epoch with the least validation loss are kept. Simulations and steps
        that are not finite are skipped and counted.

        :param rng_key: a key; the networks are initialised from it at the first call.
        :param epochs: number of epochs, by default as many as make 3,500 steps, at least 10.
        :param num_batches: steps of an epoch, by default 100 online; over a bank, at most and by
            default those of one pass.
        :param batch_size: simulations of a step.
        :param dataset: a bank of simulations, site values with a leading axis; or a data set.
        :param validation: a bank for validation, or its size; by default a tenth of the data set,
            or 1,000 further simulations. With 0 there is none, and the last parameters are kept.
        :param optimizer: an Optax optimizer, by default AdamW with warm-up and cosine decay.
        :param rejuvenation: Metropolis moves of each simulation's latents within their posterior
            before every epoch over a bank, 0 for none; by default as many as pay where the
            model's density is known. The moves need no simulations, and leave the bank's
            distribution as it is.
        :param progress_bar: whether to show one.
        :return: losses, counts and durations.
        :raises ValueError: where an argument does not fit, or most simulations are not finite.
        :raises FloatingPointError: where most gradients are not finite.
        """
        init_key, split_key, validation_key, train_key = random.split(typed_key(rng_key), 4)
        _check_options(
            validation, rejuvenation, epochs=epochs, num_batches=num_batches, batch_size=batch_size
        )
        inputs, held_out, dropped = self._inputs(
            split_key, validation_key, dataset, validation, rejuvenation
        )
        modules = self._modules
        if modules is None:
            modules = nnx.Dict(self._build(nnx.Rngs(init_key)))
        num_batches = num_batches or _default_num_batches(inputs, batch_size)
        batch_size, num_batches = _fit_to_bank(inputs, batch_size, num_batches)
        epochs = epochs or max(_MIN_EPOCHS, -(-_NUM_STEPS // num_batches))
        graphdef, params, *rest = nnx.split(modules, nnx.Param, ...)

        def loss_fn(params: nnx.State, rng_key: Array, batch: Batch) -> Array:
            return self._loss(nnx.merge(graphdef, params, *rest), rng_key, batch)

        params, history = train(
            train_key,
            loss_fn,
            params,
            inputs,
            optimizer=optimizer or default_optimizer(epochs * num_batches),
            epochs=epochs,
            num_batches=num_batches,
            batch_size=batch_size,
            validation=held_out,
            progress_bar=progress_bar,
        )
        nnx.update(modules, params)
        self._modules = modules  # only now: what failed to train must not be sampled from
        skipped = history.skipped_simulations + dropped
        return dataclasses.replace(history, skipped_simulations=skipped)

    def _inputs(
        self,
        split_key: Array,
        validation_key: Array,
        dataset: Mapping[str, Array] | Dataset | None,
        validation: Mapping[str, Array] | int | None,
        num_moves: int | None,
    ) -> tuple[Dataset, Batch | None, int]:
        """Network inputs for training and validation, and the number of rows not finite."""
        dropped = 0
        if dataset is None:
            dataset = OnlineDataset(self.source)
        if isinstance(dataset, Mapping | OfflineDataset):
            bank = dataset.arrays if isinstance(dataset, OfflineDataset) else dataset
            whole = OfflineDataset(self._check_bank(bank))
            dataset = whole.finite()
            dropped = len(whole) - len(dataset)
            if dropped >= len(whole) / 2:
                raise ValueError(
                    f"dataset: {dropped} of {len(whole)} simulations have values that are not "
                    "finite. Restrict the priors to values at which the model can be simulated."
                )
            if validation is None:
                validation = int(np.ceil(min(_VALIDATION_SHARE * len(dataset), _MAX_VALIDATION)))
            if not isinstance(validation, Mapping) and validation:
                dataset, held_out = dataset.split(split_key, validation)
                validation = held_out.arrays
            dataset = self._rejuvenated(dataset, num_moves)
        inputs = dataset.map(self._adapt)
        if isinstance(validation, int) and validation == 0:
            return inputs, None, dropped
        if not isinstance(validation, Mapping):
            validation = self.source.sample(validation_key, validation or _ONLINE_VALIDATION)
        held_out = OfflineDataset(self._check_bank(validation)).map(self._adapt).finite()
        return inputs, held_out.arrays, dropped

    def _rejuvenated(self, dataset: OfflineDataset, num_moves: int | None) -> Dataset:
        """The bank with its moves, where the model has a density and the bank every site."""
        complete = all(
            site.name in dataset.arrays
            for site in self.source.sites.values()
            if site.role != "deterministic"
        )
        can_move = complete and has_density(self.source)
        if num_moves and not can_move:
            raise ValueError(
                "rejuvenation: expected a model with a density for every site, and a bank with "
                f"values of all of them, got a bank of {list(dataset.arrays)}; pass 0 for no moves."
            )
        num_moves = (_NUM_MOVES if can_move else 0) if num_moves is None else num_moves
        if not num_moves:
            return dataset
        moves = Rejuvenation.of(self.source, self.adapter, dataset.arrays)
        return RejuvenatedDataset(dataset.arrays, moves, num_moves)

    def _adapt(self, values: Batch) -> Batch:
        return self.adapter.forward(values)

    def _check_bank(self, bank: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """The sites that the networks see, with shapes checked."""
        needed = self._needed_sites
        missing = [name for name in needed if name not in bank]
        if missing:
            raise ValueError(
                f"dataset: expected values of the sites {list(needed)}, missing: {missing}."
            )
        sites = [
            site
            for site in self.source.sites.values()
            if site.name in bank and site.role != "deterministic"
        ]
        return {site.name: _check_simulations(site, bank[site.name]) for site in sites}

    def _trained(self) -> nnx.Dict:
        if self._modules is None:
            raise RuntimeError(
                f"{type(self).__name__}: the networks are not trained yet; call "
                "`fit(rng_key)` first."
            )
        return self._modules


_NUM_STEPS, _MIN_EPOCHS = 3500, 10
_NUM_MOVES = 20
_ONLINE_BATCHES, _ONLINE_VALIDATION = 100, 1000


def _model_simulator(source: Callable[[], object]) -> ModelSimulator:
    if not callable(source):
        raise TypeError(
            "source: expected a ModelSimulator or a NumPyro model without arguments, got "
            f"{type(source).__name__}. Wrap a model with arguments: ModelSimulator(model, *args)."
        )
    return ModelSimulator(source)


def _check_simulations(site: Site, value: Array | np.ndarray) -> np.ndarray:
    if np.ndim(value) == 0 or np.shape(value)[1:] != site.shape:
        raise ValueError(
            f"dataset: site '{site.name}': expected shape (num_simulations, "
            f"{', '.join(map(str, site.shape))}), got {np.shape(value)}."
        )
    try:
        return as_numbers(site, value).astype(site.dtype)
    except ValueError as error:
        raise ValueError(f"dataset: {error}") from error


def make_network(network: NetworkSpec, rngs: nnx.Rngs, **sizes: int) -> nnx.Module:
    """A ready module as it is; a class or a partial of one with its sizes."""
    return network if isinstance(network, nnx.Module) else network(**sizes, rngs=rngs)


def _check_options(
    validation: Mapping[str, Array] | int | None, rejuvenation: int | None, **sizes: int | None
) -> None:
    check_positive(**{name: size for name, size in sizes.items() if size is not None})
    counts = {"validation": validation, "rejuvenation": rejuvenation}
    for name, count in counts.items():
        if count is None or (name == "validation" and isinstance(count, Mapping)):
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"{name}: expected an integer of at least 0, got {count!r}.")


def _default_num_batches(inputs: Dataset, batch_size: int) -> int:
    if isinstance(inputs, OfflineDataset | RejuvenatedDataset):
        return -(-len(inputs) // batch_size)
    return _ONLINE_BATCHES


def _fit_to_bank(inputs: Dataset, batch_size: int, num_batches: int) -> tuple[int, int]:
    """A bank smaller than a batch makes one batch; an epoch is at most one pass."""
    if not isinstance(inputs, OfflineDataset | RejuvenatedDataset):
        return batch_size, num_batches
    batch_size = min(batch_size, len(inputs))
    return batch_size, min(num_batches, -(-len(inputs) // batch_size))
