# SPDX-License-Identifier: Apache-2.0
"""The amortized posterior wherever NumPyro takes a guide."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.autoguide import AutoContinuous, AutoGuide

from numpyro_amortized.adapters.latents import UnconstrainLatents
from numpyro_amortized.approximators.conditions import given_names
from numpyro_amortized.approximators.density import with_density
from numpyro_amortized.distributions import AmortizedPosterior
from numpyro_amortized.minibatch import sample_minibatch
from numpyro_amortized.simulators.arguments import model_signature
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.transport import PosteriorFlow, unconstrained_space

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator

__all__ = ["AmortizedGuide"]

_NUM_DRAWS = 4000  # behind a quantile


class _Tuned:
    """Networks with parameters that SVI may be changing; compared by identity."""

    def __init__(self, approximator: "DensityApproximator", modules: nnx.Dict) -> None:
        self.approximator = approximator
        self.inference_network = approximator.density(modules)


@final
class AmortizedGuide(AutoGuide):
    """An amortized posterior as a guide of its model.

    The data are those that the model observes when it is called with the guide's arguments, or
    those that are bound at construction. The networks are as trained so far. In SVI they are
    parameters, so that optimization goes on from the amortized posterior.

    Its sites are the latents that the approximator infers. Where the model has others, put it in an
    :class:`~numpyro.infer.autoguide.AutoGuideList` beside guides of those: it sees the data that
    :class:`numpyro.handlers.block` hides.

    Where the model subsamples a plate, as SVI of many groups does, the guide must be bound to the
    whole data set. The latents of the groups that are drawn then come with each step, if the
    posterior factorizes over groups.

    Bound to data, a guide serves :class:`~numpyro.infer.reparam.NeuTraReparam` as an
    :class:`~numpyro.infer.autoguide.AutoContinuous` does, whose other methods it does not have.

    :param model: a NumPyro model, that of the approximator.
    :param approximator: trained.
    :param prefix: of the names of the guide's own sites.
    :param observed: the data set that the guide is bound to: the conditions of the approximator,
        needed where the guide is called without data.
    :param trainable: which variables of the networks SVI tunes, a filter of Flax NNX, such as
        ``nnx.All(nnx.Param, nnx.PathContains("inference_network"))``; ``False`` freezes all.
    :raises TypeError: where the approximator has no density.
    :raises RuntimeError: where it is not trained.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        approximator: "DensityApproximator",
        *,
        prefix: str = "auto",
        observed: Mapping[str, ArrayLike] | None = None,
        trainable: Any = nnx.Param,
    ) -> None:
        super().__init__(model, prefix=prefix)
        while isinstance(model, handlers.block):  # what guides of other sites do not see, this does
            model = model.fn
        self._whole_model = model
        self.approximator = with_density(approximator)
        self.observed = None if observed is None else dict(observed)
        if self.observed is not None:
            self._one_data_set(self.observed)
        graphdef, tuned, *others = nnx.split(approximator.networks, trainable, ...)
        # own arrays: training goes on in place
        self._graphdef = graphdef
        self._tuned, self._rest = jax.tree.map(jnp.copy, (tuned, others))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Draws the latents, given the data among the arguments."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        approximator, given = self._given(args, kwargs)
        if self._prototype_frames:
            return self._sample_minibatch(approximator, given)
        posterior = _posterior(approximator, self._networks(), given)
        vector = numpyro.sample(f"_{self.prefix}_latent", posterior, infer={"is_auxiliary": True})
        values, log_det = _latents(approximator, vector, given)
        shares = log_det / len(values)
        return {name: self._sample_site(name, x, shares) for name, x in values.items()}

    def sample_posterior(
        self,
        rng_key: Array,
        params: Mapping[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Draws of the latent and deterministic sites.

        :param rng_key: a key.
        :param params: those of SVI; ``{}`` for the networks as they were trained.
        :param args: of the model, not needed where the guide is bound to data.
        :param sample_shape: shape of the draws.
        :param kwargs: keyword arguments of the model.
        :return: values ``(*sample_shape, *shape)``.
        """
        approximator, given = self._given(args, kwargs)
        with handlers.block():
            modules = handlers.substitute(self._networks, data=dict(params))()
        posterior = _posterior(approximator, modules, given)
        return posterior.constrain(posterior.sample(typed_key(rng_key), sample_shape))

    def median(self, params: Mapping[str, Any]) -> dict[str, Array]:
        """Posterior medians of a guide that is bound to data.

        :param params: those of SVI; ``{}`` for the networks as they were trained.
        :raises ValueError: where the guide is not bound.
        """
        return {name: x[0] for name, x in self.quantiles(params, [0.5]).items()}

    def quantiles(
        self, params: Mapping[str, Any], quantiles: float | Sequence[float]
    ) -> dict[str, Array]:
        """Posterior quantiles of a guide that is bound to data, from 4,000 draws.

        :param params: those of SVI; ``{}`` for the networks as they were trained.
        :param quantiles: between 0 and 1.
        :return: values ``(*shape of quantiles, *shape)`` of the inferred latents.
        :raises ValueError: where the guide is not bound.
        """
        self._bound_data()
        draws = self.sample_posterior(random.key(0), params, sample_shape=(_NUM_DRAWS,))
        q = jnp.asarray(quantiles)
        names = self.approximator.inferred_sites
        return {name: jnp.quantile(draws[name], q, axis=0) for name in names}

    def init_params(
        self,
        rng_key: Array,
        num_chains: int,
        *args: Any,
        params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Array]:
        """A start for every chain of MCMC: ``mcmc.run(..., init_params=...)``.

        :param rng_key: a key.
        :param num_chains: that of :class:`numpyro.infer.MCMC`.
        :param args: of the model.
        :param params: those of SVI, by default the networks as they were trained.
        :param kwargs: keyword arguments of the model.
        :return: draws in NumPyro's unconstrained space; several chains have an axis of their own.
            Continuous latents that the approximator does not infer are drawn from the prior given
            the others.
        """
        draw_key, rest_key = random.split(typed_key(rng_key))
        shape = (num_chains,) if num_chains > 1 else ()
        draws = self.sample_posterior(draw_key, params or {}, *args, sample_shape=shape, **kwargs)
        latents = {name: draws[name] for name in self.approximator.inferred_sites}
        start = partial(self._unconstrained, args, kwargs)
        if not shape:
            return start(rest_key, latents)
        return jax.vmap(start)(random.split(rest_key, shape), latents)

    def get_base_dist(self) -> dist.Distribution:
        """The standard normal distribution that :meth:`get_transform` starts from."""
        return dist.Normal().expand([self._space.size]).to_event(1)

    def get_transform(self, params: Mapping[str, Any]) -> PosteriorFlow:
        """The flow to the posterior in NumPyro's unconstrained space, of a bound guide.

        :param params: those of SVI; ``{}`` for the networks as they were trained.
        :raises ValueError: where the guide is not bound, or the network is no flow.
        """
        approximator, given = self._bound_data()
        if self.prototype_trace is None:
            self._set_prototype(self._space.simulator.trace(random.key(0), given))
        with handlers.block():
            modules = handlers.substitute(self._networks, data=dict(params))()
            return PosteriorFlow(approximator, modules, given, self._space)

    def _unpack_latent(self, vector: Array) -> dict[str, Array]:
        return self._space.split(vector)

    def _unpack_and_constrain(self, vector: Array, params: Mapping[str, Any]) -> dict[str, Array]:
        approximator, given = self._bound_data()

        def one(vector: Array) -> dict[str, Array]:
            values = self._space.inverse({"inference_variables": vector, **given})
            latents = {name: values[name] for name in approximator.inferred_sites}
            assert approximator.predictive is not None
            return latents | approximator.predictive.deterministic(latents, given)

        for _ in range(jnp.ndim(vector) - 1):
            one = jax.vmap(one)
        return one(vector)

    @cached_property
    def _space(self) -> UnconstrainLatents:
        return unconstrained_space(self._bound_data()[0])

    def _bound_data(self) -> tuple["DensityApproximator", dict[str, Array]]:
        if self.observed is None:
            raise ValueError(
                "AmortizedGuide: medians, quantiles and flows are those of one data set. Bind it: "
                "AmortizedGuide(model, approximator, observed={...})."
            )
        return self._one_data_set(self.observed)

    def _unconstrained(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rng_key: Array, latents: Any
    ) -> dict[str, Array]:
        """All continuous latents of the model; those that are not inferred come from the prior."""
        trace = self._model_trace(args, kwargs, rng_key, latents)
        self._check_latents(trace)
        return {
            name: biject_to(site["fn"].support).inv(site["value"])
            for name, site in trace.items()
            if _is_latent(site) and not site["fn"].support.is_discrete
        }

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """A plain trace: the base class would reject discrete latents."""
        trace = self._model_trace(args, kwargs)
        self._set_prototype(trace)
        if self._prototype_frames:
            self._refuse_other_data(trace)

    def _set_prototype(self, trace: Mapping[str, Any]) -> None:
        self._check_latents(trace)
        inferred = self.approximator.inferred_sites
        self.prototype_trace = {
            name: site
            for name, site in trace.items()
            if name in inferred or site["type"] == "plate"
        }
        self._prototype_frame_full_sizes = _plate_sizes(trace)
        self._prototype_frames = _subsampled(trace, inferred)

    def _check_latents(self, trace: Mapping[str, Any]) -> None:
        names = self.approximator.inferred_sites
        latents = [name for name, site in trace.items() if _is_latent(site)]
        if missing := [name for name in names if name not in latents]:
            raise ValueError(
                f"AmortizedGuide: expected a model with the latent sites {list(names)}, those of "
                f"the approximator, got one with {latents}; missing: {missing}."
            )

    def _model_trace(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rng_key: Array | None = None,
        latents: Mapping[str, Array] | None = None,
    ) -> dict[str, Any]:
        with handlers.block():
            model = handlers.substitute(self._whole_model, data=dict(latents or {}))
            seeded = handlers.seed(model, random.key(0) if rng_key is None else rng_key)
            return handlers.trace(seeded).get_trace(*args, **kwargs)

    def _sample_minibatch(
        self, approximator: "DensityApproximator", given: dict[str, Array]
    ) -> dict[str, Array]:
        """The latents of the groups in the subsampled plate, and the global ones."""
        assert self.prototype_trace is not None
        groups = approximator.adapter.groups
        if groups is None or list(self._prototype_frames) != [groups.plate]:
            raise ValueError(
                f"AmortizedGuide: the model subsamples the plates {list(self._prototype_frames)} "
                "of latents, but the posterior does not factorize over them: all are drawn "
                "together. Train with adapter=Adapter.for_posterior(simulator, hierarchical=True)."
            )
        [plate] = self._create_plates().values()
        event_dims = {
            name: self.prototype_trace[name]["fn"].event_dim for name in approximator.inferred_sites
        }
        modules = self._networks()
        return sample_minibatch(self.prefix, approximator, modules, given, plate, event_dims)

    def _given(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple["DensityApproximator", dict[str, Array]]:
        """Observed sites and context of one data set, and the approximator for its groups."""
        if self.observed is not None:
            return self._one_data_set(self.observed)
        trace = self._model_trace(args, kwargs)
        self._refuse_subsamples(trace)
        sites = self.approximator.sites
        # a size that varies is read from the data, whatever the model is called with
        needed = [sites[name] for name in given_names(sites, self.approximator.varying_size)]
        found = {
            site.name: trace[site.name]["value"]
            for site in needed
            if site.name in trace and trace[site.name].get("is_observed")
        }
        arguments = model_signature(self._whole_model).bind_partial(*args, **kwargs).arguments
        found = found | {
            s.name: arguments[s.name] for s in needed if s.role == "context" and s.name in arguments
        }
        observed = [s.name for s in needed if s.role == "observed"]
        if missing := [name for name in observed if name not in found]:
            raise ValueError(
                f"AmortizedGuide: the model observes no {missing} when it is called with these "
                "arguments. Pass the data, or bind them: AmortizedGuide(model, approximator, "
                "observed={...})."
            )
        return self._one_data_set(found)

    def _one_data_set(
        self, conditions: Mapping[str, ArrayLike]
    ) -> tuple["DensityApproximator", dict[str, Array]]:
        approximator = self.approximator.for_groups(conditions)
        checked = approximator.check_conditions(conditions)
        if checked.is_batch:
            raise ValueError(
                f"AmortizedGuide: expected one data set, got a batch of {checked.num_datasets}."
            )
        return approximator, checked.unbatch(checked.values)

    def _networks(self) -> nnx.Dict:
        """The networks, those variables that are tuned as a parameter of NumPyro."""
        pure = nnx.to_pure_dict(self._tuned)
        if not jax.tree.leaves(pure):
            return nnx.merge(self._graphdef, self._tuned, *self._rest)
        state = jax.tree.map(lambda x: x, self._tuned)
        nnx.replace_by_pure_dict(state, numpyro.param(f"{self.prefix}$params", pure))
        return nnx.merge(self._graphdef, state, *self._rest)

    def _sample_site(self, name: str, value: Array, log_det: Array) -> Array:
        """The site at its value; the change of volume is spread over its members."""
        assert self.prototype_trace is not None
        event_dim = self.prototype_trace[name]["fn"].event_dim
        batch_shape = value.shape[: value.ndim - event_dim]
        log_density = jnp.broadcast_to(log_det / math.prod(batch_shape), batch_shape)
        return numpyro.sample(name, dist.Delta(value, log_density, event_dim=event_dim))

    def _refuse_other_data(self, trace: Mapping[str, Any]) -> None:
        """Batches that are cut by hand are not those that the plate says."""
        observed = self.observed or {}
        for name in [name for name in observed if name in trace]:
            site = trace[name]
            for frame in [f for f in site["cond_indep_stack"] if f.name in self._prototype_frames]:
                axis = jnp.ndim(site["value"]) - site["fn"].event_dim + frame.dim
                index, seen = trace[frame.name]["value"], site["value"]
                if isinstance(seen, jax.core.Tracer) or isinstance(index, jax.core.Tracer):
                    continue
                own = np.take(np.asarray(observed[name]), index, axis)
                if not np.allclose(own, seen, equal_nan=True):
                    raise ValueError(
                        f"AmortizedGuide: at the members of plate '{frame.name}' that it draws, "
                        f"the model observes other values of '{name}' than those that are bound. "
                        "Pass the whole data to the model, and take numpyro.subsample of them."
                    )

    def _refuse_subsamples(self, trace: Mapping[str, Any]) -> None:
        """Some of the data do not tell the latents that all of them share."""
        own = [name for name in trace if name in self.approximator.sites]
        for frame in _subsampled(trace, own).values():
            raise ValueError(
                f"AmortizedGuide: the model sees {frame.size} of {_plate_sizes(trace)[frame.name]} "
                f"members of plate '{frame.name}', but the global latents need the full data. Bind "
                "them: AmortizedGuide(model, approximator, observed={...})."
            )


AutoContinuous.register(AmortizedGuide)  # NeuTraReparam asks for one


def _plate_sizes(trace: Mapping[str, Any]) -> dict[str, int]:
    return {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}


def _subsampled(trace: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The frames of plates around some sites of which the trace holds not all members."""
    sizes = _plate_sizes(trace)
    frames = [f for name in names for f in trace[name].get("cond_indep_stack", ())]
    return {f.name: f for f in frames if f.size != sizes[f.name]}


def _is_latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _posterior(
    approximator: "DensityApproximator", modules: nnx.Dict, given: dict[str, Array]
) -> AmortizedPosterior:
    with handlers.block():
        context = approximator.context(modules, given)
    return AmortizedPosterior(context, given, _Tuned(approximator, modules))  # type: ignore[arg-type]


def _latents(
    approximator: "DensityApproximator", vector: Array, given: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    with handlers.block():  # the adapter runs the model
        sites = approximator.sites_at(vector, given)
        latents = {name: sites[name] for name in approximator.inferred_sites}
        return latents, approximator.adapter.log_det_jac(latents | given)
