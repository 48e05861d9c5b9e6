# SPDX-License-Identifier: Apache-2.0
"""What approximators have in common: a source of simulations, an adapter, networks, training."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import (
    Conditions,
    check_conditions,
    check_positive,
)
from numpyro_amortized.approximators.context import NetworkSpec, context_of, with_summaries
from numpyro_amortized.approximators.inputs import (
    Recipe,
    held_out,
    some_members,
    training_inputs,
)
from numpyro_amortized.approximators.memberwise import memberwise
from numpyro_amortized.approximators.self_consistency import SelfConsistency
from numpyro_amortized.approximators.sources import (
    Source,
    as_source,
    bound_adapter,
    check_target,
    source_sites,
)
from numpyro_amortized.approximators.summaries import SummarySpec, describe_summary, summary_spec
from numpyro_amortized.datasets import Batch, Dataset
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.varying_size import VaryingSize
from numpyro_amortized.training import History, default_optimizer, train


class Approximator(ABC):
    """A trainable approximation of a distribution that a simulator defines.

    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :param adapter: sites to network inputs; needed where the source is no model.
    :param summary_network: a class, a partial of one, or a ready module; a mapping of them where
        several arrays are summarized.
    :param summary_regularizer: maps the summaries of a batch, ``(batch_size, summary_size)``, to a
        number that is added to the training loss.
    :param regularizer_weight: its factor.
    :param members: approximators of which this one is made, by name: its networks are theirs.
    :raises TypeError: where the source is none of these.
    :raises ValueError: where there is no adapter and no model to derive it from.
    """

    def __init__(
        self,
        source: Source | Callable[[], object],
        *,
        adapter: Adapter | None,
        summary_network: SummarySpec | None,
        summary_regularizer: Callable[[Array], Array] | None = None,
        regularizer_weight: float = 1.0,
        members: Mapping[str, "Approximator"] = MappingProxyType({}),
    ) -> None:
        self.source = as_source(source)
        if not isinstance(adapter, Adapter | None):
            raise TypeError(
                f"adapter: expected an Adapter, got {type(adapter).__name__}: make one by "
                "Adapter.for_posterior(simulator), or by Adapter() and its steps."
            )
        if adapter is None:
            adapter = _default_adapter(self.source)
        self.adapter = bound_adapter(self.source, adapter)
        self.sites = source_sites(self.source, self.adapter, self._target)
        self._given_summary = summary_network
        self._regularizer = summary_regularizer
        self._regularizer_weight = regularizer_weight
        if summary_regularizer is not None:
            _check_regularizer(regularizer_weight, self._row)
        self._modules: nnx.Dict | None = None
        self._members = dict(members)

    @abstractmethod
    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The networks."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the constructor takes besides the source and the adapter, by name.

        Together with the source, the adapter and the networks' variables, that is what is saved.
        Values are networks as they were given, numbers, functions, and lists, tuples and mappings
        of them; or members by name, which share the adapter and the networks.
        """

    @property
    @abstractmethod
    def _target(self) -> str:
        """The network input that is learned."""

    @property
    @abstractmethod
    def _needed_sites(self) -> tuple[str, ...]:
        """The sites that the networks see."""

    @property
    @abstractmethod
    def _kept_sites(self) -> tuple[str, ...]:
        """The sites that the loss sees as they are."""

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
        self_consistency: SelfConsistency | None = None,
        workers: int | None = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        progress_bar: bool = True,
    ) -> History:
        """Train the networks; called again, training goes on from there.

        Without a data set, every batch is simulated anew inside the compiled loop: nothing can be
        overfitted, and the last parameters are kept. A data set is shuffled on the device in
        every epoch, a tenth of it is held out for validation, and the parameters of the epoch with
        the least validation loss are kept. Simulations and steps that are not finite are skipped
        and counted.

        :param rng_key: a key; the networks are initialised from it at the first call.
        :param epochs: number of epochs, by default as many as make 7,000 steps, at least 10.
        :param num_batches: steps of an epoch, by default 100 online; over a bank, at most and by
            default those of one pass.
        :param batch_size: simulations of a step.
        :param dataset: a bank of simulations, site values with a leading axis; or a data set.
        :param validation: a bank for validation, or its size; by default a tenth of the data set,
            and none online, where some thousand simulations tell the last epochs apart worse than
            the falling learning rate does. With 0 there is none: the last parameters are kept.
        :param optimizer: an Optax optimizer, by default AdamW with warm-up and cosine decay.
        :param rejuvenation: Metropolis moves of each simulation's latents within their posterior
            before every epoch over a bank, 0 for none; by default as many as pay where the
            model's density is known. The moves need no simulations, and leave the bank's
            distribution as it is.
        :param self_consistency: a further loss, by which the model's density teaches the networks,
            on simulations and on unlabelled data; by default none.
        :param workers: number of worker processes, where the simulator runs on the host.
        :param checkpoint_dir: a directory for this run alone, in which it is kept at the ends of
            epochs. Called again with the same arguments after a crash, ``fit`` goes on where it
            was; the final parameters are those of an uninterrupted run, bit for bit. Optimizers
            are compared by the structure of their state, simulations by their first values.
        :param progress_bar: whether to show one.
        :return: losses, counts and durations.
        :raises ValueError: where an argument does not fit, most simulations are not finite, or the
            run kept in ``checkpoint_dir`` is another one.
        :raises OSError: where ``checkpoint_dir`` cannot be written.
        :raises KeyboardInterrupt: where the user interrupts; the best parameters of the epochs so
            far are then kept.
        :raises FloatingPointError: where most gradients are not finite.
        """
        init_key, split_key, validation_key, train_key = random.split(typed_key(rng_key), 4)
        _check_options(
            validation, rejuvenation, epochs=epochs, num_batches=num_batches, batch_size=batch_size
        )
        _check_optimizer(optimizer)
        penalty = None if self_consistency is None else self_consistency.penalty(self)
        recipe = self._recipe if penalty is None else self._recipe.keeping_given()
        inputs, kept, dropped = training_inputs(
            split_key,
            recipe,
            dataset,
            validation=validation,
            num_moves=rejuvenation,
            workers=workers,
        )
        modules = self._modules
        if modules is None:
            modules = nnx.Dict(self._build(nnx.Rngs(init_key)))
        num_batches = num_batches or _default_num_batches(inputs, batch_size)
        batch_size, num_batches = _fit_to_bank(inputs, batch_size, num_batches)
        epochs = epochs or max(_MIN_EPOCHS, -(-_NUM_STEPS // num_batches))
        graphdef, params, *rest = nnx.split(modules, nnx.Param, ...)

        def loss_fn(params: nnx.State, rng_key: Array, batch: Batch) -> Array:
            if self.adapter.observations is not None:
                rng_key, member_key = random.split(rng_key)
                batch = some_members(member_key, batch)
            modules = nnx.merge(graphdef, params, *rest)
            losses = self._regularized_loss(modules, rng_key, batch)
            if penalty is None:
                return losses
            return losses + penalty(modules, random.fold_in(rng_key, 1), batch)

        def install(params: nnx.State) -> None:
            nnx.update(modules, params)
            self._install(modules)  # only now: what failed to train must not be sampled from

        optimizer = optimizer or default_optimizer(epochs * num_batches)
        params, history = train(
            train_key,
            loss_fn,
            params,
            inputs,
            optimizer=memberwise(optimizer, tuple(self._members)) if self._members else optimizer,
            epochs=epochs,
            num_batches=num_batches,
            batch_size=batch_size,
            validation=held_out(validation_key, recipe, kept, workers),
            progress_bar=progress_bar,
            checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
            keep=install,
        )
        install(params)
        skipped = history.skipped_simulations + dropped
        return dataclasses.replace(history, skipped_simulations=skipped)

    def save(
        self, path: str | PathLike[str], *, custom_objects: Mapping[str, Any] | None = None
    ) -> None:
        """Save everything but the model in a directory, to be read by :func:`load`.

        It appears at once when it is complete; what was saved there before is then replaced. The
        directory holds readable JSON, and arrays in Orbax's format.

        :param path: the directory.
        :param custom_objects: objects to be saved by a name, such as a network that was passed
            ready-made or a function without a name of its own. Functions and classes of yours go
            by their names. All of them are passed again to be loaded.
        :raises TypeError: where something could not be restored, naming it.
        :raises FileExistsError: where there is something else at the path.
        :raises OSError: where the path cannot be written; what is there stays as it is.
        """
        from numpyro_amortized.saving import save

        save(self, path, custom_objects=custom_objects)

    @property
    def modules(self) -> nnx.Dict | None:
        """The trained networks by name, ``None`` before ``fit``."""
        return self._modules

    def restore(self, restored: Callable[[nnx.Dict], nnx.Dict]) -> None:
        """Take over networks that were trained before.

        :param restored: untrained networks to those.
        """
        self._install(restored(nnx.Dict(self._build(nnx.Rngs(0)))))

    @property
    def summary_network(self) -> NetworkSpec | None:
        """The trained network, ``None`` where nothing is summarized."""
        if self._modules is None:
            return self._summary_spec
        return self._modules.get("summary_network")

    @property
    def derived_summary(self) -> NetworkSpec | None:
        """What summarizes the data by default, ``None`` where the user said it or nothing does.

        It can be set to what it was when the networks were trained: defaults change.
        """
        if self._members or "summary_variables" not in self._row:
            return None
        return None if self._summary_spec is self._given_summary else self._summary_spec

    @derived_summary.setter
    def derived_summary(self, network: NetworkSpec) -> None:
        self._summary_spec = network

    @property
    def networks(self) -> nnx.Dict:
        """The trained networks.

        :raises RuntimeError: before ``fit``.
        """
        return self._trained()

    def check_conditions(self, conditions: Mapping[str, ArrayLike]) -> Conditions:
        """Conditions with a leading axis of data sets, padded where the size varies.

        :raises ValueError: where they do not fit the model.
        """
        missing = self.adapter.may_be_missing
        return check_conditions(self.sites, conditions, self.varying_size, missing)

    @cached_property
    def encode(self) -> Callable[..., Array]:
        """``(graphdef, state, conditions)`` to what the networks are conditioned on."""

        def encode(graphdef: nnx.GraphDef, state: nnx.State, conditions: Batch) -> Array:
            return self.context(nnx.merge(graphdef, state), conditions)

        return jax.jit(encode, static_argnums=0)

    def context(self, modules: nnx.Dict, conditions: Batch) -> Array:
        """What the networks are conditioned on; pure and traceable."""
        if not self._members:
            return context_of(modules, self.adapter.forward(conditions))
        members = self._members.items()
        return jnp.concatenate([m.context(modules[n], conditions) for n, m in members], axis=-1)

    def _regularized_loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        if self._regularizer is None:
            return self._loss(modules, rng_key, inputs)
        inputs = with_summaries(modules, inputs)
        penalty = self._regularizer_weight * self._regularizer(inputs["summaries"])
        return self._loss(modules, rng_key, inputs) + penalty

    def _describe_summary(self) -> list[str]:
        if "summary_variables" not in self._row or self.summary_network is None:
            return []
        structures = self.adapter.structures
        return describe_summary(self.summary_network, self._given_summary, structures)

    @cached_property
    def _summary_spec(self) -> NetworkSpec:
        return summary_spec(self._given_summary, self.adapter.structures, self._row)

    @cached_property
    def _row(self) -> Batch:
        """Shapes of one row of network inputs."""
        row = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in self.sites.items()}
        inputs = jax.eval_shape(self.adapter.forward, row)
        check_target(inputs, self._target)
        return inputs

    @property
    def varying_size(self) -> VaryingSize | None:
        """The size that differs between simulations, ``None`` where none does."""
        return self.source.varying_size if isinstance(self.source, ModelSimulator) else None

    @property
    def _recipe(self) -> Recipe:
        sites = self.source.sites if isinstance(self.source, ModelSimulator) else self.sites
        return Recipe(self.source, self.adapter, sites, self._needed_sites, self._kept_sites)

    def _install(self, modules: nnx.Dict) -> None:
        self._modules = modules
        for name, member in self._members.items():
            member._install(modules[name])

    def _network[Spec](self, name: str, spec: Spec) -> Spec | nnx.Module:
        """The trained network; before ``fit``, what it is made from."""
        return spec if self._modules is None else self._modules[name]

    def _trained(self) -> nnx.Dict:
        if self._modules is None:
            raise RuntimeError(
                f"{type(self).__name__}: the networks are not trained yet; call "
                "`fit(rng_key)` first."
            )
        return self._modules


_NUM_STEPS, _MIN_EPOCHS = 7000, 10
_ONLINE_BATCHES = 100


def _default_adapter(source: Source) -> Adapter:
    if not isinstance(source, ModelSimulator):
        raise ValueError(
            f"adapter: expected one, since {type(source).__name__} is no model from which it could "
            "be derived: Adapter().concatenate([...], into='inference_variables')..."
        )
    return Adapter.for_posterior(source)


def _check_regularizer(weight: float, row: Batch) -> None:
    if "summary_variables" not in row:
        raise ValueError(
            "summary_regularizer: nothing is summarized, all data are conditioned on as numbers. "
            "Leave it out, or say what is summarized: Adapter.for_posterior(simulator, sets=...)."
        )
    if not (np.isfinite(weight) and weight > 0):
        raise ValueError(f"regularizer_weight: expected a positive number, got {weight!r}.")


def _check_options(
    validation: Mapping[str, Array] | int | None, rejuvenation: int | None, **sizes: int | None
) -> None:
    check_positive(**{name: size for name, size in sizes.items() if size is not None})
    counts = {"validation": validation, "rejuvenation": rejuvenation}
    for name, count in counts.items():
        what = "a bank or an integer" if name == "validation" else "an integer"
        if count is None or (name == "validation" and isinstance(count, Mapping)):
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"{name}: expected {what} of at least 0, got {count!r}.")


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, optax.GradientTransformation | None):
        got = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            f"optimizer: expected an Optax optimizer, such as optax.adam(1e-3), got {got}."
        )


def _default_num_batches(inputs: Dataset, batch_size: int) -> int:
    if isinstance(inputs, Sized):
        return -(-len(inputs) // batch_size)
    return _ONLINE_BATCHES


def _fit_to_bank(inputs: Dataset, batch_size: int, num_batches: int) -> tuple[int, int]:
    """A bank smaller than a batch makes one batch; an epoch is at most one pass."""
    if not isinstance(inputs, Sized):
        return batch_size, num_batches
    batch_size = min(batch_size, len(inputs))
    return batch_size, min(num_batches, -(-len(inputs) // batch_size))
