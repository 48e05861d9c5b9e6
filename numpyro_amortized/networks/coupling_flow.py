# SPDX-License-Identifier: Apache-2.0
"""Coupling flows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax, random

from numpyro_amortized.initializers import host_generator, on_device
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.mlp import MLP, swish
from numpyro_amortized.networks.splines import Spline
from numpyro_amortized.networks.stacked import scan_layers, stack

_LOG_2PI = 1.8378770664093453


class Transform(Protocol):
    """A monotone map of one variable, with its parameters as an argument."""

    @property
    def num_params(self) -> int: ...
    def forward(self, params: Array, x: Array) -> tuple[Array, Array]: ...
    def inverse(self, params: Array, y: Array) -> tuple[Array, Array]: ...


class Permutation(nnx.Variable):
    """A fixed permutation matrix; not trained."""


class Coupling(nnx.Module):
    """Transforms the last variables, in an order of its own, given the first ones.

    :param order: permutation of the variables before the coupling.
    :param given: number of variables that stay as they are.
    """

    def __init__(
        self,
        order: np.ndarray,
        given: int,
        condition_size: int,
        *,
        transform: Transform,
        widths: Sequence[int],
        activation: Callable[[Array], Array],
        rngs: nnx.Rngs,
    ) -> None:
        self.transform = nnx.static(transform)
        self.given = given
        self.permutation = Permutation(on_device(np.eye(len(order))[:, order]))
        self.subnet = MLP(
            given,
            (len(order) - given) * transform.num_params,
            context_size=condition_size,
            widths=widths,
            activation=activation,
            zero_init=True,
            linear_path=True,
            rngs=rngs,
        )

    def forward(self, x: Array, context: Array) -> tuple[Array, Array]:
        """Towards the base space: ``(*batch, size)`` and log-determinants ``(*batch,)``."""
        x = self._permute(x, self.permutation[...])
        return self._couple(self.transform.forward, x, context)

    def inverse(self, y: Array, context: Array) -> tuple[Array, Array]:
        """From the base space; log-determinants of the inverse."""
        x, log_det = self._couple(self.transform.inverse, y, context)
        return self._permute(x, self.permutation[...].T), log_det

    def _couple(self, function: Callable, x: Array, context: Array) -> tuple[Array, Array]:
        given, x = jnp.split(x, [self.given], axis=-1)
        params = self.subnet(given, context)
        params = params.reshape((*params.shape[:-1], x.shape[-1], self.transform.num_params))
        # to compute a spline again costs less than to store its many small intermediates
        y, log_derivative = jax.checkpoint(function)(params, x)
        return jnp.concatenate([given, y], axis=-1), log_derivative.sum(-1)

    def _permute(self, x: Array, matrix: Array) -> Array:
        return jnp.matmul(x, matrix.astype(x.dtype), precision=lax.Precision.HIGHEST)


@final
class CouplingFlow(DensityNetwork):
    """Normalizing flow of couplings from the variables to a standard normal [1, 2].

    Couplings of equal shapes are stacked and scanned over: compile time does not grow with the
    depth.

    :param size: number of inference variables.
    :param condition_size: length of the context; may be 0.
    :param transform: :class:`Spline` or :class:`Affine`.
    :param depth: number of pairs of couplings: each pair transforms every variable.
    :param widths: hidden layers of each coupling's perceptron.
    :param activation: their activation.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Density estimation using Real NVP*, Dinh, Sohl-Dickstein and Bengio (2017).
    2. *Neural Spline Flows*, Durkan, Bekasov, Murray and Papamakarios (2019).
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        transform: Transform = Spline(bins=8),  # noqa: B008
        depth: int = 3,
        widths: Sequence[int] = (64, 64),
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        if min(size, depth, *widths, len(widths)) < 1:
            raise ValueError(
                "CouplingFlow: expected size >= 1, depth >= 1 and at least one hidden layer of "
                f"width >= 1, got size={size}, depth={depth}, widths={tuple(widths)}."
            )
        self.size = size
        self.condition_size = condition_size

        coupling = partial(
            Coupling,
            condition_size=condition_size,
            transform=transform,
            widths=tuple(widths),
            activation=activation,
            rngs=rngs,
        )
        # of an odd number, both couplings of a pair transform the larger half: equal shapes are
        # one program; a single variable needs no second one
        given = size // 2
        swap = np.roll(np.arange(size), size - given)
        orders = [order for _ in range(depth) for order in (_shuffle(size, rngs), swap)[:size]]
        # lists of one: the parameters keep the names that they have in saved files
        self.layers = stack([nnx.List([coupling(order, given)]) for order in orders])

    def log_prob(self, variables: Array, context: Array) -> Array:
        base, log_det = self.normalize(variables, context)
        return _standard_normal(base) + log_det

    def normalize(self, variables: Array, context: Array) -> tuple[Array, Array]:
        """Carry variables to the standard normal; increasing where there is one variable.

        :param variables: shape ``(*batch, size)``.
        :param context: shape ``(*batch, condition_size)``, batch axes broadcast.
        :return: shape ``(*batch, size)``, and log-determinants ``(*batch,)``.
        """
        return self._scan(Coupling.forward, variables, context, reverse=False)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        return -self.log_prob(variables, context)

    def sample(self, rng_key: Array, context: Array) -> Array:
        return self.sample_and_log_prob(rng_key, context)[0]

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        shape = (*context.shape[:-1], self.size)
        return self.transport(random.normal(rng_key, shape, context.dtype), context)

    def transport(self, base: Array, context: Array) -> tuple[Array, Array]:
        """Carry draws of the standard normal to the variables.

        :param base: shape ``(*batch, size)``.
        :param context: shape ``(*batch, condition_size)``, batch axes broadcast.
        :return: draws, shape ``(*batch, size)``, and their log densities ``(*batch,)``.
        """
        draws, log_det = self._scan(Coupling.inverse, base, context, reverse=True)
        return draws, _standard_normal(base) - log_det

    def _scan(
        self, function: Callable, x: Array, context: Array, *, reverse: bool
    ) -> tuple[Array, Array]:
        def step(layers: Sequence[Coupling], carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, log_det = carry
            x, more = function(layers[0], x, context)
            return x, log_det + more

        batch = jnp.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        x = jnp.broadcast_to(x, (*batch, self.size))
        start = (x, jnp.zeros(batch, x.dtype))
        return scan_layers(step, self.layers, start, reverse=reverse)


def _shuffle(size: int, rngs: nnx.Rngs) -> np.ndarray:
    return host_generator(rngs.params()).permutation(size)


def _standard_normal(x: Array) -> Array:
    return -0.5 * jnp.sum(x**2 + _LOG_2PI, axis=-1)
