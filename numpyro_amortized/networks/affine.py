# SPDX-License-Identifier: Apache-2.0
"""Affine transform of one variable."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

_LOG_SCALE_BOUND = 6.0


class Affine(NamedTuple):
    """``y = (x - shift) / scale``: two parameters a variable [1].

    The log scale is bounded smoothly, so that no parameter value overflows.

    **References**

    1. *Density estimation using Real NVP*, Dinh, Sohl-Dickstein and Bengio (2017).
    """

    @property
    def num_params(self) -> int:
        """Parameters of each variable."""
        return 2

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """To the base space.

        :param params: shape ``(*batch, 2)``.
        :param x: shape ``(*batch,)``.
        :return: the transformed value and the log derivative, each ``(*batch,)``.
        """
        shift, log_scale = _shift_and_log_scale(params)
        return (x - shift) * jnp.exp(-log_scale), -log_scale

    def inverse(self, params: Array, y: Array) -> tuple[Array, Array]:
        """From the base space; shapes as in :meth:`forward`, log derivative of the inverse."""
        shift, log_scale = _shift_and_log_scale(params)
        return y * jnp.exp(log_scale) + shift, log_scale


def _shift_and_log_scale(params: Array) -> tuple[Array, Array]:
    return params[..., 0], _LOG_SCALE_BOUND * jnp.tanh(params[..., 1] / _LOG_SCALE_BOUND)
