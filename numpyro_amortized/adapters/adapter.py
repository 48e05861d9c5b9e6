# SPDX-License-Identifier: Apache-2.0
"""Adapters: sites to network inputs and back."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_amortized.adapters.base import Bijection, Data, Draws, Transform
from numpyro_amortized.adapters.binding import (
    Bindable,
    Binding,
    Shapes,
    bind_steps,
    located,
    needs,
    run,
    shapes_of,
)
from numpyro_amortized.adapters.chain import Chain
from numpyro_amortized.adapters.summarized import Structure, structures_of
from numpyro_amortized.concrete import concrete_values

if TYPE_CHECKING:
    from numpyro_amortized.adapters.groups import CollectGroups
    from numpyro_amortized.adapters.observed_variables import CollectObservations
    from numpyro_amortized.simulators.model import ModelSimulator

Ranks = dict[str, Any]  # name -> number of axes of one value, or a dict of them


@final
class Adapter(Chain):
    """A chain of transforms from the values of sites to the inputs of networks.

    An adapter is never changed: every method returns another one. Networks take the entries
    ``inference_variables`` and ``inference_conditions``, both vectors, ``summary_variables`` and
    ``summary_mask``, arrays or dicts of them by name.

    :meth:`bind` makes the adapter known to simulations: how many axes a value has, so that all
    further ones are batch axes; the shapes that bijections need to be undone; moments to be
    fitted. Approximators bind the adapter that they are given. Without it, an adapter takes one
    simulation at a time.

    :param transforms: the steps, in order.
    :param ranks: number of axes of one value of each entry, before and after; further leading axes
        are a batch. Not needed where the adapter is bound.

    **Example**

    .. doctest::

        >>> from jax import numpy as jnp
        >>> import numpyro_amortized as npa
        >>> adapter = (
        ...     npa.Adapter()
        ...     .constrain("sigma", lower=0)
        ...     .concatenate(["mu", "sigma"], into="inference_variables")
        ...     .as_set("y")
        ...     .rename("y", "summary_variables")
        ... )
        >>> draws = {"mu": jnp.zeros(100), "sigma": jnp.ones(100), "y": jnp.zeros((100, 10))}
        >>> inputs = adapter.bind(draws).forward(draws)
        >>> {name: value.shape for name, value in inputs.items()}
        {'inference_variables': (100, 2), 'summary_variables': (100, 10, 1)}
    """

    def __init__(
        self,
        transforms: Sequence[Transform] = (),
        *,
        ranks: Mapping[str, Any] | None = None,
        _shapes: Shapes | None = None,
    ) -> None:
        self.transforms = tuple(transforms)
        self.ranks = dict(ranks or {})
        self._shapes = _shapes

    @staticmethod
    def for_posterior(
        simulator: "ModelSimulator",
        *,
        sites: Sequence[str] | None = None,
        sets: Mapping[str, int | None] | None = None,
        series: Mapping[str, int | None] | None = None,
        images: Mapping[str, Sequence[int] | None] | None = None,
        hierarchical: bool | None = False,
        prior_to_normal: bool = True,
        pilot: Draws | None = None,
    ) -> "Adapter":
        """The adapter for the posterior of the latent sites given the observed ones.

        :param simulator: a traced model.
        :param sites: the latent sites to infer, by default all continuous ones; the others are
            marginalized by simulation.
        :param sets: overrides whether an observed site is a set: the axis of its members, or
            ``None`` for numbers in their order. By default a site is a set exactly if permuting
            its members alone leaves the model's log density unchanged.
        :param series: overrides whether an observed site is a time series: the axis of its steps,
            or ``None`` for numbers. By default a site is one if it is drawn in a ``scan``, by a
            process such as :class:`~numpyro.distributions.GaussianRandomWalk`, or at the steps
            of a latent site that is, unless that is inferred step by step.
        :param images: overrides whether an observed site is an image: the axes of its grid, or
            ``None`` for numbers. By default a site is one if it has two or three axes of at
            least eight cells that are in no plate.
        :param hierarchical: whether the posterior is factorized over the groups of a plate into
            ``p(globals | all groups)`` and, for each group, ``p(locals | globals, own group)``,
            for :class:`ContinuousApproximator`. ``None`` decides: where this is valid and the
            latents of all groups are more than 16 numbers, or their number varies.
        :param prior_to_normal: whether latents are mapped by the CDF of their prior where it has
            an accurate one, which makes the prior of the network's variables N(0, I); otherwise
            by the bijection of their support.
        :param pilot: draws from the simulator that fix moments and decisions, by default 2,000.
        :return: an adapter to ``inference_variables``, and ``inference_conditions`` or
            ``summary_variables``, a dict of arrays where several differ in structure or members.
        :raises ValueError: where a site is unknown, or cannot be inferred; where the posterior is
            to be factorized, and the model does not allow it.
        """
        from numpyro_amortized.adapters.posterior import posterior_adapter

        _check_model(simulator, "for_posterior")
        adapter = posterior_adapter(
            simulator,
            sites=sites,
            sets=sets,
            series=series,
            images=images,
            hierarchical=hierarchical,
            prior_to_normal=prior_to_normal,
            pilot=pilot,
        )
        shapes = {s.name: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in simulator.sites.values()}
        return Adapter(adapter.transforms, ranks=adapter.ranks, _shapes=shapes)

    @staticmethod
    def for_likelihood(
        simulator: "ModelSimulator",
        *,
        sets: Mapping[str, int | None] | None = None,
        pilot: Draws | None = None,
    ) -> "Adapter":
        """The adapter for the likelihood of the observed sites given the latent ones.

        Where observations are independent and alike given the latents, and given covariates that
        are context, the likelihood is that of one observation: its values are those of one
        member of the plate, and log densities of any number of observations add up. Discrete
        latents are marginalized by simulation.

        :param simulator: a traced model.
        :param sets: overrides the axis of the observations for every observed site and for the
            context that belongs to them; ``None`` for observations that are taken jointly.
        :param pilot: draws from the simulator that fix moments and decisions, by default 2,000.
        :return: an adapter to ``inference_variables``, the observed sites in trace order, and
            ``inference_conditions``, the latents and the context.
        :raises ValueError: where a site has no density that could be learned, with the fix.
        """
        from numpyro_amortized.adapters.likelihood import likelihood_adapter

        _check_model(simulator, "for_likelihood")
        return likelihood_adapter(simulator, sets=sets, pilot=pilot)

    @property
    def observations(self) -> "CollectObservations | None":
        """The step that makes variables of observations, for the adapter of a likelihood."""
        from numpyro_amortized.adapters.observed_variables import CollectObservations

        steps = [step for step in self.transforms if isinstance(step, CollectObservations)]
        return steps[0] if steps else None

    @property
    def groups(self) -> "CollectGroups | None":
        """The step that collects the data of groups, where the posterior factorizes over them."""
        from numpyro_amortized.adapters.groups import CollectGroups

        steps = [step for step in self.transforms if isinstance(step, CollectGroups)]
        return steps[0] if steps else None

    def append(self, transform: Transform) -> "Adapter":
        """An adapter with one more step."""
        return Adapter((*self.transforms, transform), ranks=self.ranks, _shapes=self._shapes)

    def bind(self, pilot: Draws) -> "Adapter":
        """The adapter complete: shapes known, moments fitted, and every step checked.

        :param pilot: simulations, values with one leading axis. A single one is enough where no
            moments are to be fitted.
        :return: an adapter that takes any number of leading batch axes.
        :raises ValueError: where a step finds no entry of its name, or inference variables pass
            through a step that cannot be undone.
        """
        lengths = {name: jnp.shape(x)[:1] for name, x in _leaves(pilot)}
        if len(set(lengths.values())) != 1 or () in lengths.values():
            raise ValueError(
                "Adapter.bind: expected draws with one leading axis of simulations, of the same "
                f"length, got lengths {lengths}."
            )
        shapes = shapes_of(pilot, num_batch_axes=1)
        binding = bind_steps(self.transforms, shapes, pilot)
        adapter = Adapter(binding.steps, ranks=self.ranks, _shapes=shapes)
        adapter._binding = binding
        return adapter

    @property
    def is_bound(self) -> bool:
        """Whether nothing is left to be fitted, and the shapes of the entries are known."""
        needs_draws = any(_is_incomplete(step) for step in self.transforms)
        return self._shapes is not None and not needs_draws

    @property
    def shapes(self) -> Shapes:
        """Shapes and types of one simulation's entries; empty before binding."""
        return self._shapes or {}

    @property
    def structures(self) -> dict[str, Structure]:
        """Of what is summarized, by name: sets, time series, images. Empty before binding."""
        if self._binding is None:
            return {}
        return structures_of(self._binding.steps, self._binding.shapes[-1])

    @cached_property
    def may_be_missing(self) -> frozenset[str]:
        """Entries that may be NaN: the networks do not see it. Empty before binding."""
        if self._binding is None:
            return frozenset()
        with concrete_values():  # it may be asked for first while tracing
            return self._unseen(self._binding)

    def _unseen(self, binding: Binding) -> frozenset[str]:
        inferred = binding.sources[0] if binding.sources else frozenset()
        ones = {
            name: jnp.ones(struct.shape, struct.dtype)
            for name, struct in binding.shapes[0].items()
            if not isinstance(struct, Mapping) and name not in inferred
        }
        numbers = [name for name, x in ones.items() if jnp.issubdtype(x.dtype, jnp.inexact)]
        nan = {name: jnp.full_like(ones[name], jnp.nan) for name in numbers}
        seen = _nans(self._forward(ones))
        return frozenset(n for n in numbers if _nans(self._forward(ones | {n: nan[n]})) == seen)

    def __call__(self, data: Data) -> dict[str, Array]:
        """The same as :meth:`forward`."""
        return self.forward(data)

    def forward(self, data: Data) -> dict[str, Array]:
        """Network inputs, with the leading batch axes of ``data``."""
        ranks = self.ranks if self._shapes is None else _ranks(self._shapes)
        return _batched(self._forward, data, ranks)

    def inverse(self, data: Data) -> dict[str, Array]:
        """Values of the latent sites from ``inference_variables``.

        Other entries are undone as far as bijections go; those that went through a one-way map
        are left out.

        :raises RuntimeError: where the adapter must be bound first.
        """
        ranks = self.ranks
        if self._binding is not None:
            before, after = (_ranks(self._binding.shapes[k]) for k in (0, -1))
            ranks = before | after | {n: rank for n, rank in before.items() if n in self._needed}
        return _batched(self._inverse, data, ranks)

    def log_det_jac(self, data: Data) -> Array:
        """Log absolute determinant of the Jacobian of :meth:`forward`, one for each batch entry.

        It is that of ``inference_variables`` with respect to the entries that they come from; of
        all bijections where the adapter makes no such entry.
        """
        ranks = self.ranks if self._shapes is None else _ranks(self._shapes)
        return _batched(self._log_det_jac, data, ranks)

    def save(
        self, path: str | PathLike[str], *, custom_objects: Mapping[str, Any] | None = None
    ) -> None:
        """Save the adapter in a directory, to be read by :func:`load`.

        :param path: the directory; what was saved there before is replaced.
        :param custom_objects: objects to be saved by a name, such as functions that have none.
            They are passed again to be loaded, as are functions and classes of your own.
        :raises TypeError: where a step could not be restored, naming it.
        :raises FileExistsError: where there is something else at the path.
        :raises OSError: where the path cannot be written; what is there stays as it is.
        """
        from numpyro_amortized.saving import save

        save(self, path, custom_objects=custom_objects)

    def __str__(self) -> str:
        if not self.is_bound or self._binding is None:
            return "\n".join(line for step in self.transforms for line in step.describe())
        binding = self._binding
        lines = [f"entries: {_format(binding.shapes[0])}"]
        for step, before, after in zip(
            binding.steps, binding.shapes, binding.shapes[1:], strict=False
        ):
            new = {n: s for n, s in after.items() if n not in before or before[n] != s}
            lines += step.describe()
            lines += [f"  -> {_format(new)}"] if new else []
        return "\n".join(lines)

    @cached_property
    def _binding(self) -> Binding | None:
        """``None`` where nothing is known of the entries."""
        return None if self._shapes is None else bind_steps(self.transforms, self._shapes)

    @property
    def _needed(self) -> set[str]:
        """Entries that bijections depend on, given to the inverse as they are before all steps."""
        return {name for step in self.transforms for name in needs(step)}

    def _forward(self, data: Data) -> dict[str, Array]:
        for number, step in enumerate(self.transforms):
            with located(number, step):
                data = step.forward(data)
        return dict(data)

    def _inverse(self, data: Data) -> dict[str, Array]:
        binding = self._binding
        steps = self.transforms if binding is None else binding.steps
        lost = [frozenset[str]()] * len(steps) if binding is None else binding.lost
        known = data.keys() if binding is None else binding.shapes[-1].keys()
        given = {n: x for n, x in data.items() if n in self._needed or n not in known}
        data = {n: x for n, x in data.items() if n not in given}
        for number, step in reversed(list(enumerate(steps))):
            with located(number, step):
                data = _undone(step, lost[number], data, given)
        return data | given

    def _log_det_jac(self, data: Data) -> Array:
        # a chain that was never bound is bound to the shapes at hand, a single simulation's
        binding = self._binding or bind_steps(self.transforms, shapes_of(data), check=False)
        total = jnp.zeros(())
        bijections = [(n, s) for n, s in enumerate(binding.steps) if isinstance(s, Bijection)]
        done = 0
        for number, step in bijections:
            data, done = run(binding.steps[done:number], data), number
            sources = data.keys() if binding.sources is None else binding.sources[number]
            own = {n: x for n, x in data.items() if n in sources}
            given = {n: x for n, x in data.items() if n in needs(step)}
            if own:
                with located(number, step):
                    total += step.log_det_jac(own | given)
        return total


def _nans(data: Data) -> set[str]:
    return {path for path, array in _leaves(data) if bool(np.isnan(array).any())}


def _check_model(simulator: object, method: str) -> None:
    from numpyro_amortized.simulators.model import ModelSimulator

    if not isinstance(simulator, ModelSimulator):
        raise TypeError(
            f"Adapter.{method}: expected a ModelSimulator, from whose sites an adapter is derived, "
            f"got {type(simulator).__name__}. Wrap a NumPyro model, ModelSimulator(model, *args); "
            "for other simulators, write the steps: Adapter().concatenate(...)."
        )


def _is_incomplete(step: Transform) -> bool:
    return isinstance(step, Bindable) and not isinstance(step, Bijection)


def _undone(step: Transform, lost: frozenset[str], data: Data, given: Data) -> dict[str, Array]:
    if _is_incomplete(step):
        raise RuntimeError(
            "Adapter: this step is not complete yet. Call `adapter.bind(draws)` with simulations "
            "first."
        )
    if not isinstance(step, Bijection):
        return {name: value for name, value in data.items() if name not in lost}
    own = {name: given[name] for name in needs(step) if name in given}
    undone = step.inverse({**data, **own})
    return {name: value for name, value in undone.items() if name not in own}


def _batched[T](function: Callable[[Data], T], data: Data, ranks: Ranks) -> T:
    """A function of one simulation, over the leading axes that ``ranks`` leave."""
    arrays = _arrays(data)
    rank_of = dict(_leaves(ranks))
    batch_shapes = {
        name: array.shape[: array.ndim - rank_of[name]] if array.ndim >= rank_of[name] else None
        for name, array in _leaves(arrays)
        if name in rank_of
    }
    if len(set(batch_shapes.values())) > 1 or None in batch_shapes.values():
        got = {name: array.shape for name, array in _leaves(arrays)}
        raise ValueError(
            f"Adapter: expected the same leading batch axes before values of ranks "
            f"{ {name: rank_of.get(name) for name in got} }, got shapes {got}."
        )
    for _ in next(iter(batch_shapes.values()), None) or ():
        function = jax.vmap(function)
    return function(arrays)


def _arrays(data: Data) -> dict[str, Any]:
    return {n: _arrays(x) if isinstance(x, Mapping) else jnp.asarray(x) for n, x in data.items()}


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Entries and those of dicts within them, by their path."""
    pairs: list[tuple[str, Any]] = []
    for name, value in data.items():
        path = f"{prefix}{name}"
        pairs += _leaves(value, f"{path}/") if isinstance(value, Mapping) else [(path, value)]
    return pairs


def _ranks(shapes: Shapes) -> Ranks:
    return {path: len(struct.shape) for path, struct in _leaves(shapes)}


def _format(shapes: Shapes) -> str:
    return ", ".join(f"{path} {struct.shape}" for path, struct in _leaves(shapes))
