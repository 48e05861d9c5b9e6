# SPDX-License-Identifier: Apache-2.0
"""Competing models in one simulator, with the index of the model that each draw comes from."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike

from numpyro_amortized.simulators.base import (
    Simulator,
    TraceableSimulator,
    check_shape,
    typed_key,
)
from numpyro_amortized.simulators.branches import split_branches
from numpyro_amortized.simulators.common_entries import (
    Entry,
    KeyConflicts,
    check_key_conflicts,
    common_entries,
    complete,
)
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.sequential import make_simulator
from numpyro_amortized.simulators.shared_context import Context, draw_context, given, taken

__all__ = ["ModelComparisonSimulator"]

_INDICES = "model_indices"
_TOLERANCE = 1e-5  # of a sum of probabilities in float32


class ModelComparisonSimulator(Simulator):
    """
    Simulates from several models, and tells for each draw which one it comes from.

    Where it mixes draws of :class:`.TraceableSimulator` alone, and no context is shared, it is one
    itself: it runs in training loops without a return to the host. Vectorized, every model is then
    simulated for every draw and one result is kept: the cost is that of all models together.
    Otherwise it has :meth:`sample` alone, and simulates about as often as needed.

    **Example**

    .. doctest::

        >>> import numpyro, numpyro.distributions as dist
        >>> from jax import numpy as jnp, random
        >>> def normal(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> def heavy(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Cauchy(mu, 1), obs=y)
        >>> models = [ModelSimulator(model, jnp.zeros(5)) for model in (normal, heavy)]
        >>> simulator = ModelComparisonSimulator(models, probs=[0.8, 0.2])
        >>> {name: x.shape for name, x in simulator.sample(random.key(0), 100).items()}
        {'model_indices': (100, 2), 'mu': (100,), 'y': (100, 5)}

    :param simulators: one for each model, at least two. A single :class:`.ModelSimulator` with a
        discrete latent site marked ``infer={"branching": True}`` is split into its branches by
        :func:`.split_branches`; their probabilities are those of that site, unless others are
        given.
    :param probs: prior probabilities of the models; equal by default.
    :param logits: their logarithms, up to a constant; at most one of the two is given.
    :param use_mixed_batches: whether each draw has a model of its own, or one model is drawn for a
        whole batch. In the latter case shapes may differ between the models.
    :param key_conflicts: what becomes of entries that not all models have: "drop" leaves them out,
        "fill" sets them to ``fill_value`` in the draws of models that lack them, "error" refuses
        them.
    :param fill_value: a scalar. Integers that it is to stand beside become floats if it is one.
    :param shared_simulator: simulates the context of all models, once for a batch; a simulator, or
        what :func:`.make_simulator` takes. The context is given to the models by name: to functions
        as arguments, to NumPyro models as keyword arguments. Scalar integers are given as Python
        integers, so that they can be sizes; each new value of one compiles NumPyro models and JAX
        functions anew. The context is part of the draws, the same in all of a batch.
    :raises TypeError: if what is given is no simulator.
    :raises ValueError: if probabilities are none or do not fit the models, or entries of the
        models conflict; what Python functions return is known only once it is drawn.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Chooses whether draws can be made inside of a traced loop."""
        if cls is not ModelComparisonSimulator:  # a copy, or one that is unpickled
            return super().__new__(cls)
        kind = _InLoop if _is_traceable(*args, **kwargs) else _OnHost
        return super().__new__(kind)  # type: ignore[return-value]

    def __init__(
        self,
        simulators: Sequence[Simulator] | ModelSimulator,
        *,
        probs: ArrayLike | Sequence[float] | None = None,
        logits: ArrayLike | Sequence[float] | None = None,
        use_mixed_batches: bool = True,
        key_conflicts: KeyConflicts = "drop",
        fill_value: float = np.nan,
        shared_simulator: Any = None,
    ) -> None:
        check_key_conflicts(key_conflicts, fill_value)
        if isinstance(simulators, ModelSimulator):
            simulators, by_site = _branches(simulators)
            probs = by_site if probs is None and logits is None else probs
        self._simulators = _models(simulators)
        self._probs = _checked_probs(probs, logits, self.num_models)
        self._use_mixed_batches = use_mixed_batches
        self._key_conflicts, self._fill_value = key_conflicts, fill_value
        self._shared = None if shared_simulator is None else make_simulator(shared_simulator)
        if isinstance(self, _InLoop):
            self._traceable = [s for s in self._simulators if isinstance(s, TraceableSimulator)]
            shapes = [jax.eval_shape(each.simulate, random.key(0)) for each in self._traceable]
            self._entries = self._common_entries([_entries(each) for each in shapes])

    @property
    def simulators(self) -> tuple[Simulator, ...]:
        """Those of the models."""
        return self._simulators

    @property
    def num_models(self) -> int:
        """How many models there are."""
        return len(self._simulators)

    @property
    def probs(self) -> np.ndarray:
        """Prior probabilities of the models, shape ``(num_models,)``."""
        return self._probs.copy()

    def _draw_indices(self, rng_key: Array, shape: tuple[int, ...]) -> Array:
        return random.categorical(rng_key, jnp.log(jnp.asarray(self._probs)), shape=shape)

    def _one_hot(self, indices: ArrayLike) -> Array:
        return jax.nn.one_hot(indices, self.num_models, dtype=jnp.int32)

    def _common_entries(self, entries: Sequence[Mapping[str, Entry]]) -> dict[str, Entry]:
        for each in entries:
            if _INDICES in each:
                raise ValueError(
                    f"'{_INDICES}' is the name of an entry of a model, but tells which model a "
                    "draw comes from. Rename that entry."
                )
        return common_entries(entries, self._key_conflicts, self._fill_value)


@final
class _InLoop(ModelComparisonSimulator, TraceableSimulator):
    _traceable: list[TraceableSimulator]
    _entries: dict[str, Entry]

    def simulate(self, rng_key: Array) -> dict[str, Array]:
        """
        Draws once. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :return: name to value, of its own shape.
        """
        index_key, model_key = random.split(typed_key(rng_key))
        index = self._draw_indices(index_key, ())
        models = [partial(self._simulate_one, each) for each in self._traceable]
        return lax.switch(index, models, model_key) | {_INDICES: self._one_hot(index)}

    def _simulate_one(self, simulator: TraceableSimulator, rng_key: Array) -> dict[str, Array]:
        return complete(simulator.simulate(rng_key), self._entries, self._fill_value)


@final
class _OnHost(ModelComparisonSimulator):
    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> dict[str, Array]:
        """
        Draws a batch of simulations. Equal keys give equal batches, whatever ``workers`` is.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param workers: number of worker processes, for models that run on the host.
        :return: name to values of shape ``(*batch_shape, *shape)``.
        :raises ValueError: if entries of the models conflict, or no model takes the context.
        """
        shape = check_shape(batch_shape)
        index_key, context_key, model_key = random.split(typed_key(rng_key), 3)
        indices = self._batch_of_indices(index_key, math.prod(shape))
        context = {} if self._shared is None else self._draw_context(self._shared, context_key)
        draws = self._draw_models(model_key, indices, context, workers)
        values: dict[str, Any] = dict(self._merged(draws, indices))
        _refuse_collision(values, context)
        values |= {n: np.broadcast_to(x, (len(indices), *np.shape(x))) for n, x in context.items()}
        values[_INDICES] = self._one_hot(indices)
        return {n: jnp.asarray(x).reshape(shape + np.shape(x)[1:]) for n, x in values.items()}

    def _batch_of_indices(self, rng_key: Array, size: int) -> np.ndarray:
        drawn = self._draw_indices(rng_key, (size if self._use_mixed_batches else 1,))
        return np.broadcast_to(np.asarray(drawn), (size,))

    def _draw_context(self, shared: Simulator, rng_key: Array) -> Context:
        context = draw_context(shared, rng_key)
        if not any(taken(simulator, context) for simulator in self._simulators):
            raise ValueError(
                f"shared_simulator: no model takes any of {list(context)}. Name what is shared "
                "like the arguments of the functions and NumPyro models that it is for."
            )
        return context

    def _draw_models(
        self, rng_key: Array, indices: np.ndarray, context: Context, workers: int | None
    ) -> list[dict[str, Array]]:
        """Of each model at least the draws needed, and at least one, which shows its entries."""
        counts = np.bincount(indices, minlength=self.num_models).tolist()
        keys = random.split(rng_key, self.num_models)
        draws = []
        for simulator, key, count in zip(self._simulators, keys, counts, strict=True):
            # Compiled programs have a size: one for all batches, not one for each count.
            is_compiled = isinstance(simulator, TraceableSimulator) and self._use_mixed_batches
            size = len(indices) if is_compiled else max(count, 1)
            draws.append(given(simulator, context)(key, size, workers))
        return draws

    def _merged(
        self, draws: Sequence[Mapping[str, Array]], indices: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The draws of each model in the rows that it was chosen for."""
        entries = [_entries(each, num_axes=1) for each in draws]
        if not self._use_mixed_batches:
            chosen = entries[indices[0]]
            entries = [{n: chosen.get(n, own) for n, own in each.items()} for each in entries]
        common = self._common_entries(entries)
        merged = {n: np.empty((len(indices), *s), d) for n, (s, d) in common.items()}
        for i in np.unique(indices):
            rows = np.flatnonzero(indices == i)
            for name, values in merged.items():
                own = draws[i].get(name)
                values[rows] = self._fill_value if own is None else np.asarray(own)[: len(rows)]
        return merged


def _is_traceable(
    simulators: Any = (),
    *,
    use_mixed_batches: bool = True,
    shared_simulator: Any = None,
    **_: Any,
) -> bool:
    models = (simulators,) if isinstance(simulators, ModelSimulator) else _models(simulators)
    traceable = all(isinstance(each, TraceableSimulator) for each in models)
    return traceable and use_mixed_batches and shared_simulator is None


def _models(simulators: Any) -> tuple[Simulator, ...]:
    if not isinstance(simulators, Sequence) or isinstance(simulators, str):
        raise TypeError(
            "simulators: expected a list of simulators, or one ModelSimulator with a site marked "
            f"as branching, got {type(simulators).__name__}."
        )
    if len(simulators) < 2:
        raise ValueError(f"simulators: expected at least two models, got {len(simulators)}.")
    return tuple(map(make_simulator, simulators))


def _branches(simulator: ModelSimulator) -> tuple[tuple[ModelSimulator, ...], np.ndarray]:
    if any(site.role == "context" for site in simulator.sites.values()):
        raise ValueError(
            "simulators: a model that is split has no context or sizes of its own. Draw them in "
            "shared_simulator, or pass one ModelSimulator for each branch."
        )
    observed = [name for name, site in simulator.sites.items() if site.role == "observed"]
    args, kwargs = simulator.args, simulator.kwargs
    branches = split_branches(simulator.model, *args, observed=observed, **kwargs)
    return branches.simulators, branches.probs


def _checked_probs(probs: Any, logits: Any, num_models: int) -> np.ndarray:
    if probs is not None and logits is not None:
        raise ValueError("probs, logits: expected at most one of them, got both.")
    name, values = ("probs", probs) if logits is None else ("logits", logits)
    if values is None:
        return np.full(num_models, 1 / num_models)
    array, is_logits = np.asarray(values, float), logits is not None
    if array.shape != (num_models,):
        raise ValueError(
            f"{name}: expected one number for each of {num_models} models, got shape {array.shape}."
        )
    too_low = array.max() == -np.inf if is_logits else array.min() < 0
    if too_low or not np.all(array < np.inf):
        raise ValueError(f"{name}: expected finite numbers, and no negative probs; got {values}.")
    if is_logits:
        array = np.exp(array - array.max())
    if not is_logits and abs(array.sum() - 1) > _TOLERANCE:
        raise ValueError(f"probs: expected a sum of 1, got {array.sum()}. Divide them by it.")
    return array / array.sum()


def _entries(draws: Mapping[str, Any], *, num_axes: int = 0) -> dict[str, Entry]:
    return {
        name: Entry(x.shape[num_axes:], jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in draws.items()
    }


def _refuse_collision(values: Mapping[str, Any], context: Context) -> None:
    if both := [name for name in context if name in values or name == _INDICES]:
        raise ValueError(
            f"shared_simulator: {both} are names of the context and of what models return. Rename "
            "one of them."
        )
