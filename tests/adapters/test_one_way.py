# SPDX-License-Identifier: Apache-2.0
"""Maps that are not undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_amortized import Adapter

DATA = {
    "n": jnp.asarray(3.0),
    "k": jnp.asarray(2),
    "y": jnp.arange(4.0),
    "x": jnp.arange(8.0).reshape(4, 2),
}


def is_vector(name, struct):
    return len(struct.shape) == 1


@pytest.mark.parametrize(
    "adapter, names",
    [
        (Adapter().drop("y"), "nkx"),
        (Adapter().drop(["y", "n"]), "kx"),
        (Adapter().drop(predicate=is_vector), "nkx"),
        (Adapter().keep("y"), "y"),
        (Adapter().keep(exclude="y"), "nkx"),
        (Adapter().keep(predicate=is_vector), "y"),
        (Adapter().drop(["y", "x"], predicate=is_vector), "nkx"),
    ],
)
def test_entries_are_left_out(adapter, names):
    assert set(adapter(DATA)) == set(names)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), DATA)
    assert set(adapter.bind(batch)(batch)) == set(names)


@pytest.mark.parametrize("method", ["as_set", "as_time_series"])
def test_features_of_members_and_steps(method):
    adapter = getattr(Adapter(), method)(["n", "y", "x"])
    shapes = {name: value.shape for name, value in adapter(DATA).items()}
    assert shapes == {"n": (1, 1), "k": (), "y": (4, 1), "x": (4, 2)}
    np.testing.assert_array_equal(adapter(DATA)["y"][:, 0], DATA["y"])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (4, 1)),
        ({"exclude": ()}, (4, 2)),
        ({"expand": "right"}, (4, 1)),
        ({"expand": (0, 1)}, (4, 1)),
        ({"exclude": 0}, (1, 2)),
        ({"squeeze": -1}, (4,)),
    ],
)
def test_broadcast_of_a_scalar(options, expected):
    out = Adapter().broadcast("n", to="x", **options)(DATA)["n"]
    assert out.shape == expected and (out == 3).all()


@pytest.mark.parametrize("expand", ["right", -1, 1])
def test_broadcast_of_a_vector(expand):
    out = Adapter().broadcast("y", to="x", expand=expand, exclude=())(DATA)["y"]
    np.testing.assert_array_equal(out, np.stack([DATA["y"]] * 2, axis=-1))


def test_broadcast_needs_its_target():
    adapter = Adapter().broadcast("n", to="z")
    with pytest.raises(ValueError, match=r"broadcast \['n'\]: expected 'z'"):
        adapter(DATA)
    assert adapter({"x": DATA["x"]}).keys() == {"x"}


def test_take():
    adapter = Adapter().take("x", indices=[1]).take("y", indices=[0, -1], axis=0)
    out = adapter(DATA)
    np.testing.assert_array_equal(out["x"], DATA["x"][:, 1:])
    np.testing.assert_array_equal(out["y"], [0, 3])
    chosen = Adapter().take(predicate=is_vector, indices=(2,))(DATA)
    assert chosen["y"].tolist() == [2] and chosen["x"].shape == (4, 2)
    with pytest.raises(ValueError, match=r"take: axis -1.*no places \[2\]"):
        Adapter().take("x", indices=[0, 2])(DATA)


def test_one_hot():
    np.testing.assert_array_equal(Adapter().one_hot("k", 4)(DATA)["k"], [0, 0, 1, 0])
    batch = {"k": jnp.array([[0, 1, 5]])}
    assert Adapter().one_hot("k", 2).bind(batch)(batch)["k"].tolist() == [[[1, 0], [0, 1], [0, 0]]]


@pytest.mark.parametrize("return_mask", [True, False])
def test_missing_values(return_mask):
    data = {"y": jnp.array([1.0, jnp.nan, 3.0]), "n": jnp.asarray(2)}
    adapter = Adapter().nan_to_num(["y", "n"], -1.0, return_mask=return_mask)
    out = adapter(data)
    assert out["y"].tolist() == [1, -1, 3] and out["n"].dtype == data["n"].dtype
    assert ("y_mask" in out) == return_mask
    if return_mask:
        assert out["y_mask"].tolist() == [True, False, True] and bool(out["n_mask"])
    # gradients do not see what is missing
    slopes = jax.grad(lambda y: adapter({"y": y})["y"].sum())(data["y"])
    assert slopes.tolist() == [1, 0, 1]


def test_partly_observed_sets():
    nan = np.nan
    x = jnp.array([[1.0, 2.0], [nan, 3.0], [nan, nan]])
    adapter = (
        Adapter()
        .nan_to_num("x", return_mask=True)
        .as_set("x", mask="x_mask")
        .concatenate(["x", "x_mask"], into="summary_variables")
    )
    inputs = adapter.bind({"x": x[None]})({"x": x})
    assert inputs["summary_mask"].tolist() == [True, True, False]
    expected = [[1, 2, 1, 1], [0, 3, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(inputs["summary_variables"], expected)


def test_partly_observed_vectors_as_sets():
    y = jnp.array([[1.0, np.nan, 2.0], [np.nan, 0.5, 1.0]])
    adapter = Adapter().nan_to_num("y", return_mask=True).as_set("y", mask="y_mask")
    inputs = adapter.bind({"y": y})({"y": y})
    assert inputs["summary_mask"].tolist() == [[True, False, True], [False, True, True]]
    assert inputs["y"].shape == (2, 3, 1)


def test_which_entries_may_be_missing():
    draws = {"theta": np.ones(3), "y": np.ones((3, 4)), "x": np.ones((3, 4)), "n": np.arange(3)}
    chain = (
        Adapter()
        .concatenate("theta", into="inference_variables")
        .shift("y", 1.0)
        .nan_to_num("y")
        .rename("x", "inference_conditions")
    )
    assert chain.may_be_missing == frozenset()
    assert chain.bind(draws).may_be_missing == {"y"}


def test_a_mask_that_is_not_there():
    with pytest.raises(ValueError, match=r"as_set \['y'\]: expected the mask 'mask'"):
        Adapter().as_set("y", mask="mask")(DATA)


def test_own_function():
    adapter = Adapter().apply("y", forward=jnp.cumsum)
    np.testing.assert_array_equal(adapter(DATA)["y"], [0, 1, 3, 6])
    everything = Adapter().apply(exclude=["k"], forward=jnp.sum)(DATA)
    assert all(value.shape == () for value in everything.values())
