# SPDX-License-Identifier: Apache-2.0
"""Bijections of single numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_amortized import Adapter
from tests.adapters.laws import check_laws

POSITIVE = np.random.default_rng(0).gamma(2.0, 1.0, (6, 3)) + 0.1


def cube_and_mix(x):
    return jnp.stack([x[0] ** 3, x[1] + x[0], 2 * x[2]])


def unmix_and_root(z):
    first = jnp.cbrt(z[0])
    return jnp.stack([first, z[1] - first, z[2] / 2])


def double_log_det(x):
    return x.size * jnp.log(2.0)


CASES = {
    "log": Adapter().log("x"),
    "log1p": Adapter().log1p(["x"]),
    "log, p1": Adapter().log("x", p1=True),
    "sqrt": Adapter().sqrt("x"),
    "scale": Adapter().scale("x", -3.0),
    "scale by array": Adapter().scale("x", np.array([1.0, -2.0, 0.5])),
    "shift": Adapter().shift("x", [1.0, 2.0, 3.0]),
    "standardize": Adapter().standardize("x", mean=2.0, std=[0.5, 1.0, 2.0]),
    "standardize by name": Adapter().standardize(["x"], mean={"x": 2.0}, std={"x": 3.0}),
    "standardize, fitted": Adapter().standardize("x"),
    "standardize, pooled": Adapter().standardize("x", pooled=0),
    "standardize all": Adapter().standardize(),
    "apply": Adapter().apply("x", forward=cube_and_mix, inverse=unmix_and_root),
    "apply to scalars": Adapter().apply("s", forward=jnp.exp, inverse=jnp.log),
    "apply with log-determinant": Adapter().apply(
        "x", forward=lambda x: 2 * x, inverse=lambda z: z / 2, log_det_jac=double_log_det
    ),
    "several entries": Adapter().log(["x", "s"]).scale(["s"], 2.0),
    "to_array": Adapter().to_array(),
    "map_dtype": Adapter().map_dtype("s", "float64"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_laws(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        values = jnp.asarray(POSITIVE, dtype)
        check_laws(CASES[name], {"x": values, "s": values[:, 0], "other": values}, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_absent_entries_are_not_missed(name):
    adapter = CASES[name].bind({"x": POSITIVE, "s": POSITIVE[:, 0]})
    assert adapter({"z": jnp.ones(2)}).keys() == {"z"}
    assert adapter.inverse({"z": jnp.ones(2)}).keys() == {"z"}


@pytest.mark.parametrize("name", ["log", "log1p", "sqrt", "scale", "standardize"])
def test_counts_become_numbers(name):
    counts = {"x": jnp.array([[1, 2, 3], [4, 5, 6]])}
    numbers = {"x": counts["x"].astype(float)}
    adapter = CASES[name].bind(counts)
    np.testing.assert_array_equal(adapter(counts)["x"], adapter(numbers)["x"])
    np.testing.assert_array_equal(adapter.log_det_jac(counts), adapter.log_det_jac(numbers))


def test_moments_are_those_of_the_finite_numbers():
    rng = np.random.default_rng(1)
    draws = rng.normal([3.0, -2.0], [2.0, 0.1], (500, 4, 2))
    draws[::7] = np.nan
    draws[3, 0] = np.inf
    fitted = Adapter().standardize("y", pooled=0).bind({"y": draws})
    (step,) = fitted.transforms
    usable = draws.reshape(-1, 2)[np.isfinite(draws).reshape(-1, 2).all(-1)]
    np.testing.assert_allclose(np.squeeze(step.means["y"]), usable.mean(0), rtol=1e-2)
    np.testing.assert_allclose(np.squeeze(step.stds["y"]), usable.std(0), rtol=1e-2)
    assert fitted({"y": jnp.zeros((9, 2))})["y"].shape == (9, 2)  # another number of members


def test_moments_are_those_after_the_steps_before():
    draws = {"x": np.exp(np.random.default_rng(2).normal(1.0, 2.0, 4000))}
    adapter = Adapter().log("x").standardize("x").scale("x", 2.0).standardize("x").bind(draws)
    x = np.asarray(adapter(draws)["x"])
    # the same draws: exact but for rounding
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5


def test_moments_are_frozen():
    draws = {"x": np.linspace(0.0, 4.0, 50)}
    adapter = Adapter().standardize("x").bind(draws)
    np.testing.assert_allclose(adapter({"x": jnp.asarray(2.0)})["x"], 0, atol=1e-6)
    again = adapter.bind({"x": 100 + draws["x"]})
    np.testing.assert_allclose(again({"x": jnp.asarray(2.0)})["x"], 0, atol=1e-6)


def test_constant_entries_are_harmless():
    adapter = Adapter().standardize("x").bind({"x": np.full((20, 2), 7.0)})
    np.testing.assert_array_equal(adapter({"x": jnp.full(2, 7.0)})["x"], np.zeros(2))


def test_masked_numbers_do_not_count_and_stay():
    rng = np.random.default_rng(3)
    seen = rng.random((400, 5)) < 0.7
    values = np.where(seen, rng.normal(10.0, 2.0, (400, 5)), 1e6)
    data = {"y": values.astype(np.float32), "y_mask": seen}
    adapter = Adapter().standardize("y", mask="y_mask", pooled=0).bind(data)
    y = np.asarray(adapter(data)["y"])
    assert abs(y[seen].mean()) < 1e-3 and abs(y[seen].std() - 1) < 1e-3
    assert (y[~seen] == 1e6).all()
    np.testing.assert_allclose(adapter.inverse(adapter(data))["y"], values, rtol=1e-5)
    (step,) = adapter.transforms
    expected = -seen.sum(-1) * np.log(np.squeeze(step.stds["y"]))
    np.testing.assert_allclose(adapter.log_det_jac(data), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"standardize 'y'.*its mask 'y_mask'"):
        adapter({"y": jnp.ones(5)})


def test_all_entries_but_the_mask_are_standardized():
    draws = {"y": np.arange(6.0).reshape(3, 2), "m": np.ones((3, 2), bool)}
    adapter = Adapter().standardize(mask="m", pooled=0).bind(draws)
    assert adapter(draws)["m"].dtype == bool


@pytest.mark.parametrize(
    "chain, message",
    [
        (lambda: Adapter().scale("x", 0.0), "scale.*other than 0"),
        (lambda: Adapter().shift("x", np.nan), "shift.*finite"),
        (lambda: Adapter().standardize("x", mean=0.0, std=-1.0), "positive and finite `std`"),
        (lambda: Adapter().standardize("x", mean=0.0), "both `mean` and `std`"),
        (lambda: Adapter().standardize("x", mean={"y": 0}, std={"y": 1}), r"missing: \['x'\]"),
    ],
)
def test_bad_constants(chain, message):
    with pytest.raises(ValueError, match=message):
        chain()


def test_constants_must_not_change_the_shape():
    adapter = Adapter().shift("x", np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"shift: expected a shape that broadcasts.*\(3,\)"):
        adapter({"x": jnp.zeros(3)})


def test_a_map_to_other_coordinates_needs_its_log_determinant():
    adapter = Adapter().apply("x", forward=lambda x: x[:2], inverse=lambda z: jnp.append(z, 0))
    with pytest.raises(ValueError, match=r"as many numbers.*3, got 2.*log_det_jac"):
        adapter.log_det_jac({"x": jnp.ones(3)})


@pytest.fixture
def single_precision():
    with jax.enable_x64(False):
        yield


def test_types_are_mapped_and_restored(single_precision):
    draws = {"n": np.arange(4), "flag": np.arange(4) > 1, "x": np.ones(4)}
    adapter = Adapter().convert_dtype("int32", "float32").map_dtype("flag", "float32").bind(draws)
    inputs = adapter(draws)
    assert {str(x.dtype) for x in inputs.values()} == {"float32"}
    back = adapter.inverse(inputs)
    assert {n: str(x.dtype) for n, x in back.items()} == {
        "n": "int32",
        "flag": "bool",
        "x": "float32",
    }
    with pytest.raises(ValueError, match="'x' of type float32 would lose its fractions"):
        Adapter().map_dtype("x", "int32").bind(draws)


def test_double_precision_is_what_jax_has(single_precision):
    adapter = Adapter().map_dtype("x", "float64")
    assert adapter({"x": jnp.ones(2)})["x"].dtype == "float32"
    with jax.enable_x64(True):
        assert adapter({"x": jnp.ones(2, "float32")})["x"].dtype == "float64"
