# SPDX-License-Identifier: Apache-2.0
"""Posterior probabilities of competing models."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.comparison import INDICES, comparison_adapter
from numpyro_amortized.approximators.base import Approximator
from numpyro_amortized.approximators.conditions import given_names, in_batches
from numpyro_amortized.approximators.context import (
    NetworkSpec,
    build_summary,
    context_of,
    make_network,
    network_name,
)
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.mlp import MLP
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.comparison import ModelComparisonSimulator

__all__ = ["ModelComparisonApproximator"]

_TOLERANCE = 1e-5  # of a sum of probabilities in float32


@final
class ModelComparisonApproximator(Approximator):
    """Amortized posterior probabilities of models, and Bayes factors, by a classifier [1].

    The classifier learns the log evidence of each model up to a constant that they share: the log
    prior probabilities of training are added to its outputs before the cross entropy. Other
    prior probabilities need no other training.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> import numpyro_amortized as npa
        >>> def null(y):
        ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        ...     numpyro.sample("y", dist.Normal(0, sigma), obs=y)
        >>> def free(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> models = {m.__name__: npa.ModelSimulator(m, jnp.zeros(5)) for m in (null, free)}
        >>> approximator = npa.ModelComparisonApproximator(models)
        >>> history = approximator.fit(random.key(0), epochs=2, progress_bar=False)
        >>> approximator.predict({"y": jnp.zeros((3, 5))}).shape
        (3, 2)

    **References**

    1. Radev, S. T. et al. (2021). Amortized Bayesian model comparison with evidential deep
       learning. *IEEE Transactions on Neural Networks and Learning Systems*.

    :param simulators: a :class:`.ModelComparisonSimulator`, or a sequence of simulators, or a
        mapping of model names to them.
    :param adapter: what all models observe to network inputs, ``model_indices`` left as they are;
        derived for NumPyro models.
    :param classifier_network: a class, a :func:`functools.partial` of one (``size``, ``out_size``
        and ``rngs`` are supplied), or a ready module.
    :param summary_network: the same for the network that summarizes data.
    :raises ValueError: where a model has no prior probability, or an adapter cannot be derived.
    """

    def __init__(
        self,
        simulators: ModelComparisonSimulator | Sequence[Simulator] | Mapping[str, Simulator],
        *,
        adapter: Adapter | None = None,
        classifier_network: NetworkSpec = MLP,
        summary_network: SummarySpec | None = None,
    ) -> None:
        simulator = _as_comparison(simulators)
        if not (simulator.probs > 0).all():
            raise ValueError(
                f"probs: expected all positive, got {simulator.probs}: what is never simulated "
                "cannot be compared."
            )
        self.model_names = _names(simulators, simulator.num_models)
        self._prior = simulator.probs
        self._classifier_spec = classifier_network
        super().__init__(
            simulator,
            adapter=comparison_adapter(simulator) if adapter is None else adapter,
            summary_network=summary_network,
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "classifier_network": self._classifier_spec,
            "summary_network": self._given_summary,
        }

    @property
    def classifier_network(self) -> NetworkSpec:
        """The trained network; before ``fit``, what it is made from."""
        return self._network("classifier_network", self._classifier_spec)

    def predict(
        self,
        conditions: Mapping[str, ArrayLike],
        *,
        probs: bool = True,
        prior_probs: ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> Array:
        """Posterior probabilities of the models, in their order.

        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param probs: whether probabilities are returned, or their logarithms up to a constant.
        :param prior_probs: of the models, shape ``(num_models,)``; by default those of the
            training. They may be zero.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: shape ``(num_conditions, num_models)``, without the first axis for one data set.
        :raises ValueError: where the conditions or probabilities do not fit.
        :raises RuntimeError: before ``fit``.
        """
        prior = self._prior if prior_probs is None else _checked(prior_probs, len(self._prior))
        logits = self._log_evidences(conditions, batch_size) + jnp.log(jnp.asarray(prior))
        return jax.nn.softmax(logits, axis=-1) if probs else logits

    def log_bayes_factors(
        self,
        conditions: Mapping[str, ArrayLike],
        *,
        reference: int | str = 0,
        batch_size: int | None = None,
    ) -> Array:
        """Log Bayes factors of every model against one of them, which has zero.

        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param reference: place or name of the model that the others are compared with.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: shape ``(num_conditions, num_models)``, without the first axis for one data set.
        :raises ValueError: where the conditions do not fit, or there is no such model.
        :raises RuntimeError: before ``fit``.
        """
        if reference in self.model_names:
            reference = self.model_names.index(str(reference))
        if not isinstance(reference, int) or not 0 <= reference < len(self.model_names):
            raise ValueError(
                f"reference: expected one of {list(self.model_names)} or its place, got "
                f"{reference!r}."
            )
        evidences = self._log_evidences(conditions, batch_size)
        return evidences - evidences[..., reference : reference + 1]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} of {', '.join(self.model_names)}", str(self.adapter)]
        lines += [f"classifier network: {network_name(self.classifier_network)}"]
        lines += self._describe_summary()
        return "\n  ".join("\n".join(lines).splitlines())

    def _log_evidences(self, conditions: Mapping[str, ArrayLike], batch_size: int | None) -> Array:
        graphdef, state = nnx.split(self._trained())
        checked = self.check_conditions(conditions)
        evaluate = partial(self._classify, graphdef, state)
        return checked.unbatch(in_batches(evaluate, (checked.values,), batch_size))

    @property
    def _target(self) -> str:
        return INDICES

    @property
    def _needed_sites(self) -> tuple[str, ...]:
        return (INDICES, *given_names(self.sites))

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        return ()

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        modules["classifier_network"] = make_network(
            self._classifier_spec, rngs, size=condition_size, out_size=len(self._prior)
        )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        evidences = modules["classifier_network"](context_of(modules, inputs))
        labels = inputs[INDICES].astype(evidences.dtype)
        return optax.softmax_cross_entropy(evidences + jnp.log(jnp.asarray(self._prior)), labels)

    @cached_property
    def _classify(self) -> Callable[..., Array]:
        """Log evidences up to a constant, shape ``(num_conditions, num_models)``."""

        def classify(graphdef: nnx.GraphDef, state: nnx.State, conditions: Batch) -> Array:
            context = self.encode(graphdef, state, conditions)
            return nnx.merge(graphdef, state)["classifier_network"](context)

        return jax.jit(classify, static_argnums=0)


def _as_comparison(
    simulators: ModelComparisonSimulator | Sequence[Simulator] | Mapping[str, Simulator],
) -> ModelComparisonSimulator:
    if isinstance(simulators, ModelComparisonSimulator):
        return simulators
    if isinstance(simulators, Mapping):
        simulators = list(simulators.values())
    return ModelComparisonSimulator(simulators)  # type: ignore[abstract]


def _names(simulators: object, num_models: int) -> tuple[str, ...]:
    if isinstance(simulators, Mapping):
        return tuple(map(str, simulators))
    return tuple(f"model {k}" for k in range(num_models))


def _checked(prior_probs: ArrayLike, num_models: int) -> np.ndarray:
    values = np.asarray(prior_probs, float)
    fits = values.shape == (num_models,) and (values >= 0).all()
    if not fits or not abs(values.sum() - 1) < _TOLERANCE:
        raise ValueError(
            f"prior_probs: expected {num_models} probabilities with a sum of 1, got {prior_probs}."
        )
    return values
