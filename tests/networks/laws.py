# SPDX-License-Identifier: Apache-2.0
"""Laws of every density network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

LogProb = Callable[[Array, Array], Array]


def check_context_broadcasts(log_prob: LogProb, condition_size: int) -> tuple[Array, Array]:
    """:return: values ``(3, 2)`` and contexts ``(4, 1, condition_size)``, which broadcast."""
    contexts = random.normal(random.key(0), (4, 1, condition_size))
    x = random.normal(random.key(1), (3, 2))
    log_q = log_prob(x, contexts)
    assert log_q.shape == (4, 3)
    one_by_one = jnp.stack([log_prob(x, context) for context in contexts[:, 0]])
    np.testing.assert_allclose(log_q, one_by_one, rtol=1e-4, atol=1e-4)
    assert jnp.abs(log_q - log_q[:1]).max() > 0.01
    return x, contexts


def check_eager_and_vectorized(log_prob: LogProb, compiled: LogProb, condition_size: int) -> None:
    """Without ``jit`` and under ``vmap``, the density is that of the compiled one."""
    x = random.normal(random.key(1), (6, 2))
    contexts = random.normal(random.key(0), (6, condition_size))
    expected = compiled(x, contexts)
    np.testing.assert_allclose(log_prob(x, contexts), expected, rtol=1e-4, atol=1e-4)
    mapped = jax.jit(jax.vmap(log_prob))(x, contexts)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-4)


def program_length(log_prob: LogProb) -> int:
    """Number of lines of the program for values ``(3, 2)`` and contexts ``(3, 2)``."""
    return len(str(jax.make_jaxpr(log_prob)(jnp.zeros((3, 2)), jnp.zeros((3, 2)))).splitlines())
