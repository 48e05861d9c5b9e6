# SPDX-License-Identifier: Apache-2.0
"""Values that are needed as such, also while a caller is traced."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp

__all__ = ["concrete_values"]


@contextmanager
def concrete_values() -> Iterator[None]:
    """What is computed within has values, whether or not something is being traced.

    Where nothing is traced, this does nothing: under JAX's own context, programs would be compiled
    apart from those of the same computations outside.
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        with jax.ensure_compile_time_eval():
            yield
    else:
        yield
