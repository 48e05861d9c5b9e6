# SPDX-License-Identifier: Apache-2.0
"""Laws of the solvers of differential equations."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_amortized.networks.ode import CARPENTER_KENNEDY, HEUN, Adaptive, FixedStep

START = np.array([0.5, 1.0, 2.0])


def field(t, x):
    """Nonlinear, and not autonomous."""
    return -2 * t * x**2


def exact(t):
    return 1 / (1 / START + t**2)


@pytest.mark.parametrize("grading", [1.0, 2.0])
@pytest.mark.parametrize(("scheme", "order"), [(HEUN, 2), (CARPENTER_KENNEDY, 4)])
def test_error_falls_with_the_order(scheme, order, grading):
    with jax.enable_x64(True):
        coarse, fine = (
            np.abs(FixedStep(n, scheme, grading).solve(field, jnp.asarray(START)) - exact(1)).max()
            for n in (40, 80)
        )
    # the next term of the expansion is a few per cent at these steps
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.2)


@pytest.mark.parametrize(
    "solver",
    [FixedStep(), pytest.param(Adaptive(), marks=pytest.mark.verify)],
    ids=["fixed", "adaptive"],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_solution_and_its_gradient(solver, reverse):
    if isinstance(solver, Adaptive):
        pytest.importorskip("diffrax")
    start = jnp.asarray(exact(1.0 if reverse else 0.0), jnp.float32)
    expected = exact(0.0 if reverse else 1.0)

    @jax.jit
    def solve(start):
        tree = solver.solve(lambda t, x: {"x": field(t, x["x"])}, {"x": start}, reverse=reverse)
        return tree["x"]

    np.testing.assert_allclose(solve(start), expected, rtol=1e-4)
    # x(1) = 1 / (1 / x(0) + 1), hence dx(1) / dx(0) = (x(1) / x(0))**2
    slope = jax.jit(jax.grad(lambda start: solve(start).sum()))(start)
    np.testing.assert_allclose(slope, (expected / start) ** 2, rtol=1e-3)


def test_steps_are_graded_and_end_at_the_ends():
    times = FixedStep(steps=10, grading=3.0).times()
    assert times[0] == 0 and times[-1] == 1 and (np.diff(np.diff(times)) < 0).all()
    np.testing.assert_allclose(FixedStep(steps=10, grading=1.0).times(), np.linspace(0, 1, 11))


def test_program_does_not_grow_with_the_steps():
    def program(steps):
        solver = FixedStep(steps=steps)
        return str(jax.make_jaxpr(lambda x: solver.solve(field, x))(jnp.ones(3)))

    assert len(program(2).splitlines()) == len(program(20).splitlines())
    assert program(20).count("integer_pow") == 1  # all stages share the field


def test_adaptive_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="pip install diffrax"):
        Adaptive().solve(field, jnp.ones(3))
