# SPDX-License-Identifier: Apache-2.0
"""Layer normalization."""

from typing import Any

import numpy as np
from flax import nnx
from jax import Array

from numpyro_amortized.initializers import on_device, zeros


def layer_norm(size: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Normalizes the last axis (Ba, Kiros and Hinton, 2016); made without compiling."""
    return nnx.LayerNorm(
        size,
        epsilon=1e-5,
        scale_init=_ones,
        bias_init=zeros,
        use_fast_variance=False,  # which cancels where the mean is large
        rngs=rngs,
    )


def _ones(rng_key: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    return on_device(np.ones(shape), dtype)
