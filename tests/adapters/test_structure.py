# SPDX-License-Identifier: Apache-2.0
"""Bijections that move numbers: names, axes, joining, nesting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_amortized import Adapter
from tests.adapters.laws import check_laws

RNG = np.random.default_rng(0)
DRAWS = {
    "mu": RNG.normal(size=4),
    "theta": RNG.normal(size=(4, 3)),
    "omega": RNG.normal(size=(4, 2, 3)),
    "psi": RNG.normal(size=(4, 2, 1)),
    "theta_a": RNG.normal(size=(4, 2)),
}
NESTED = {"latents": {"mu": DRAWS["mu"], "theta": DRAWS["theta"]}, "psi": DRAWS["psi"]}

CASES = {
    "rename": (Adapter().rename("mu", "nu"), DRAWS),
    "concatenate": (Adapter().concatenate(["mu", "theta"], into="v"), DRAWS),
    "concatenate one": (Adapter().concatenate("mu", into="v"), DRAWS),
    "concatenate to one's name": (Adapter().concatenate(["mu", "theta"], into="mu"), DRAWS),
    "concatenate matrices": (Adapter().concatenate(["omega", "psi"], into="v"), DRAWS),
    "concatenate rows": (
        Adapter().concatenate(["omega", "omega2"], into="v", axis=0),
        DRAWS | {"omega2": DRAWS["omega"][:, :1]},
    ),
    "concatenate all": (
        Adapter().concatenate(["omega", "mu", "theta", "psi"], into="v", axis=None),
        DRAWS,
    ),
    "split": (Adapter().split("theta", into=["a", "b", "c"]), DRAWS),
    "split in places": (Adapter().split("theta", into=["a", "b"], indices_or_sections=[1]), DRAWS),
    "split rows": (Adapter().split("omega", into=["a", "b"], axis=0), DRAWS),
    "group": (Adapter().group(["mu", "theta"], "g"), DRAWS),
    "group with prefix": (Adapter().group(["theta", "theta_a"], "g", prefix="theta"), DRAWS),
    "ungroup": (Adapter().ungroup("latents"), NESTED),
    "ungroup with prefix": (Adapter().ungroup("latents", prefix="l_"), NESTED),
    "ungroup and join": (
        Adapter().ungroup("latents").concatenate(["mu", "theta"], into="v"),
        NESTED,
    ),
    "group and ungroup": (Adapter().group(["mu"], "g").ungroup("g", prefix="g_"), DRAWS),
    "expand_dims": (Adapter().expand_dims(["mu", "theta"], axis=-1), DRAWS),
    "expand_dims twice": (Adapter().expand_dims("mu", axis=(0, 1)), DRAWS),
    "squeeze": (Adapter().squeeze("psi", axis=-1), DRAWS),
    "to_array": (Adapter().to_array("mu"), DRAWS),
    "a chain": (
        Adapter()
        .rename("mu", "nu")
        .expand_dims("nu", axis=0)
        .split("theta", into=["first", "rest"], indices_or_sections=[1])
        .concatenate(["rest", "nu"], into="v")
        .scale("v", 2.0)
        .group(["v", "first"], "g"),
        DRAWS,
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_laws(name, dtype):
    adapter, draws = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        draws = jax.tree.map(lambda x: jnp.asarray(x, dtype), draws)
        check_laws(adapter, draws, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_absent_entries_are_not_missed(name):
    adapter, draws = CASES[name]
    adapter = adapter.bind(draws)
    assert adapter({"z": jnp.ones(2)}).keys() == {"z"}
    assert adapter.inverse({"z": jnp.ones(2)}).keys() == {"z"}


def test_values_are_where_they_belong():
    data = {"mu": jnp.asarray(1.0), "theta": jnp.array([2.0, 3.0])}
    joined = Adapter().concatenate(["theta", "mu"], into="v")(data)
    np.testing.assert_array_equal(joined["v"], [2, 3, 1])
    parts = Adapter().split("v", into=["a", "b"], indices_or_sections=[1])(joined)
    assert list(parts) == ["a", "b"] and parts["b"].tolist() == [3, 1]
    assert Adapter().group(["mu"], "g")(data)["g"].keys() == {"mu"}


def test_sets_of_another_size_are_taken_apart():
    adapter = Adapter().concatenate(["x", "y"], into="z")
    adapter = adapter.bind({"x": np.ones((1, 5, 2)), "y": np.ones((1, 5, 1))})
    data = {"x": jnp.ones((3, 8, 2)), "y": jnp.zeros((3, 8, 1))}
    back = adapter.inverse(adapter(data))
    assert back["x"].shape == (3, 8, 2) and back["y"].shape == (3, 8, 1)


@pytest.mark.parametrize(
    "adapter, message",
    [
        (Adapter().rename("mu", "theta"), "an entry 'theta' is there already"),
        (Adapter().concatenate(["mu", "nu"], into="v"), r"expected entries from .*got \['nu'\]"),
        (Adapter().split("theta", into=["a", "b"], indices_or_sections=3), "expected 2 parts"),
        (Adapter().ungroup("mu"), "expected 'mu' to be a dict"),
        (Adapter().group(["mu"], "theta"), "an entry 'theta' is there already"),
    ],
)
def test_errors(adapter, message):
    with pytest.raises(ValueError, match=message):
        adapter.bind(DRAWS)


def test_prefix_of_a_group():
    with pytest.raises(ValueError, match=r"begin with 't_', got \['mu'\]"):
        Adapter().group(["mu"], "g", prefix="t_")


def test_some_of_the_entries():
    adapter = Adapter().concatenate(["mu", "theta"], into="v")
    with pytest.raises(ValueError, match=r"into 'v'.*missing: \['theta'\]"):
        adapter({"mu": jnp.ones(())})
