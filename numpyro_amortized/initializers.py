# SPDX-License-Identifier: Apache-2.0
"""Initial parameters and other small draws, made on the host: drawing them compiles nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random


def host_generator(rng_key: Array) -> np.random.Generator:
    """NumPy's generator at the state of a key: drawing from it compiles nothing."""
    return np.random.default_rng(np.asarray(random.key_data(rng_key)).ravel().tolist())


def he_normal(
    rng_key: Array, shape: tuple[int, ...], dtype: Any = None, *, zero_columns: int = 0
) -> Array:
    """Kernels of variance ``2 / fan_in`` (He, Zhang, Ren and Sun, 2015), drawn on the host.

    :param zero_columns: number of last outputs whose kernels are zero.
    """
    draws = host_generator(rng_key).standard_normal(shape) * np.sqrt(2 / max(shape[0], 1))
    draws[:, shape[1] - zero_columns :] = 0
    return on_device(draws, dtype)


def zeros(rng_key: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Zeros, made on the host."""
    return on_device(np.zeros(shape), dtype)


def on_device(array: np.ndarray, dtype: Any = None) -> Array:
    """An array of the default float type; unlike ``jnp.asarray``, it compiles nothing."""
    return jax.device_put(array.astype(dtype or jnp.result_type(float)))
