# SPDX-License-Identifier: Apache-2.0
"""The amortized posterior wherever NumPyro takes a guide."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.util import unconstrain_fn

from numpyro_amortized.approximators.conditions import given_names
from numpyro_amortized.approximators.density import with_density
from numpyro_amortized.distributions import AmortizedPosterior
from numpyro_amortized.simulators.arguments import model_signature
from numpyro_amortized.simulators.base import typed_key

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
        self._refuse_unbound()
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
        """
        shape = (num_chains,) if num_chains > 1 else ()
        draws = self.sample_posterior(rng_key, params or {}, *args, sample_shape=shape, **kwargs)
        latents = {name: draws[name] for name in self.approximator.inferred_sites}
        to_reals = partial(unconstrain_fn, self.model, args, kwargs)
        return (jax.vmap(to_reals) if shape else to_reals)(latents)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """A plain trace: the base class would reject discrete latents."""
        self.prototype_trace = self._model_trace(args, kwargs)
        names = self.approximator.inferred_sites
        latents = [
            name
            for name, site in self.prototype_trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        ]
        if missing := [name for name in names if name not in latents]:
            raise ValueError(
                f"AmortizedGuide: expected a model with the latent sites {list(names)}, those of "
                f"the approximator, got one with {latents}; missing: {missing}."
            )

    def _model_trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        with handlers.block():
            seeded = handlers.seed(self.model, random.key(0))
            return handlers.trace(seeded).get_trace(*args, **kwargs)

    def _given(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple["DensityApproximator", dict[str, Array]]:
        """Observed sites and context of one data set, and the approximator for its groups."""
        if self.observed is not None:
            return self._one_data_set(self.observed)
        trace = self._model_trace(args, kwargs)
        sites = self.approximator.sites
        # a size that varies is read from the data, whatever the model is called with
        needed = [sites[name] for name in given_names(sites, self.approximator.varying_size)]
        found = {
            site.name: trace[site.name]["value"]
            for site in needed
            if site.name in trace and trace[site.name].get("is_observed")
        }
        arguments = model_signature(self.model).bind_partial(*args, **kwargs).arguments
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

    def _refuse_unbound(self) -> None:
        if self.observed is None:
            raise ValueError(
                "AmortizedGuide: medians and quantiles are those of one data set. Bind it: "
                "AmortizedGuide(model, approximator, observed={...})."
            )


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
