# SPDX-License-Identifier: Apache-2.0
"""Laws of summary networks, and of perceptrons."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree

from numpyro_amortized.networks import MLP, DeepSet
from numpyro_amortized.networks.attention import MultiHeadAttention
from numpyro_amortized.networks.convolution import Convolution, ConvolutionLayer
from numpyro_amortized.networks.fusion import Fusion
from numpyro_amortized.networks.gru import GRU
from numpyro_amortized.networks.masks import fill
from numpyro_amortized.networks.set_transformer import SetTransformer
from numpyro_amortized.networks.time_embeddings import Sinusoidal, Time2Vec
from numpyro_amortized.networks.time_series_transformer import TimeSeriesTransformer
from tests.conftest import others_verified


@pytest.fixture
def network():
    return DeepSet(3, 5, widths=(16,), embedding_size=8, rngs=nnx.Rngs(0))


@pytest.fixture
def sets():
    return random.normal(random.key(0), (4, 6, 3))


def test_shape_and_batch_axes(network, sets):
    summarize = jax.jit(lambda x: network(x))
    expected = jnp.stack([summarize(x) for x in sets])
    assert network.summary_size == 5 and expected.shape == (4, 5)
    np.testing.assert_allclose(summarize(sets), expected, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(network, sets.reshape(2, 2, 6, 3)).shape == (2, 2, 5)


def test_order_of_members_does_not_matter(network, sets):
    shuffled = random.permutation(random.key(1), sets, axis=1)
    np.testing.assert_allclose(network(shuffled), network(sets), rtol=1e-4, atol=1e-5)
    mixed = random.permutation(random.key(1), sets, axis=2)
    assert jnp.abs(network(mixed) - network(sets)).max() > 1e-3


@pytest.mark.parametrize("padding", [0.0, 1e6, np.nan, np.inf])
def test_masked_members_change_nothing(network, sets, padding):
    padded = jnp.concatenate([sets, jnp.full((4, 3, 3), padding)], axis=1)
    mask = jnp.arange(9) < 6
    np.testing.assert_allclose(
        network(padded, jnp.broadcast_to(mask, (4, 9))), network(sets), rtol=1e-4, atol=1e-5
    )


def test_masked_members_have_no_gradient(network, sets):
    mask = jnp.arange(6) < 4
    gradient = jax.jit(jax.grad(lambda x: network(x, jnp.broadcast_to(mask, (4, 6))).sum()))(sets)
    assert (gradient[:, 4:] == 0).all() and (gradient[:, :4] != 0).any()


def test_size_of_the_set_is_seen(network):
    x = jnp.ones((2, 3))
    assert jnp.abs(network(x) - network(jnp.ones((20, 3)))).max() > 1e-3
    nothing = network(x, jnp.zeros(2, bool))
    assert jnp.isfinite(nothing).all()


@pytest.mark.parametrize(
    "sizes", [{"size": 0}, {"size": 2, "widths": ()}, {"size": 0, "context_size": 0}]
)
def test_perceptron_needs_an_input_and_a_layer(sizes):
    with pytest.raises(ValueError, match="MLP: expected an input or a context"):
        MLP(**{"out_size": 1, "rngs": nnx.Rngs(0)} | sizes)


def test_perceptron_of_input_and_context():
    network = MLP(2, 3, context_size=4, widths=(8, 8), rngs=nnx.Rngs(0))
    x, context = jnp.ones((5, 1, 2)), jnp.ones((7, 4))
    assert network(x, context).shape == (5, 7, 3)
    alone = MLP(0, 3, context_size=4, widths=(8,), rngs=nnx.Rngs(0))
    assert alone(None, context).shape == (7, 3)
    zero = MLP(2, 3, zero_init=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(zero(x), 0)


class TwoSites(nnx.Module):
    """Fusion, with one array taken for the data of two sites."""

    def __init__(self, size: int, summary_size: int, *, rngs: nnx.Rngs) -> None:
        self.summary_size = summary_size
        networks = {"all": DEEP_SET, "first": partial(DEEP_SET, summary_size=4)}
        sizes = {"all": size, "first": 1}
        self.fusion = Fusion(sizes, summary_size, networks=networks, widths=(16,), rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        masks = None if mask is None else {"all": mask, "first": mask}
        return self.fusion({"all": x, "first": x[..., :1]}, masks)


DEEP_SET = partial(DeepSet, widths=(16,), embedding_size=8)
TRANSFORMER = partial(TimeSeriesTransformer, width=16, num_heads=2, patch_size=4)
SETS = {
    "deep set": DEEP_SET,
    "set transformer": partial(SetTransformer, width=16, num_heads=2, num_inducing=4, num_seeds=2),
    "fusion": TwoSites,
}
SERIES = {
    "transformer": partial(TRANSFORMER, time_embedding=Time2Vec),
    "gru": partial(GRU, width=16, bidirectional=True),
    "gru_with_kernel": partial(GRU, width=16, kernel_size=3),
    "convolution": partial(Convolution, widths=(8, 16), depth=2),
}
IMAGES = {"image": partial(Convolution, num_spatial_dims=2, widths=(8, 16))}
NETWORKS = SETS | SERIES | IMAGES
LENGTH, PADDED, SIZE = 7, 9, 3


class Case(NamedTuple):
    """A network, and two compiled functions of its parameters, data and a mask.

    Most of the time here goes into compiling: all laws are about the same two programs.
    """

    network: nnx.Module
    params: nnx.State
    x: Array
    num_axes: int
    single: Callable[..., Array]  # mapped over two batch axes, without a mask
    gradients: Callable[..., tuple]  # and summaries; for data with two batch axes, and padding

    def __call__(self, x: Array, mask: Array) -> Array:
        return self.gradients(self.params, x, mask)[1]

    @property
    def desired(self) -> Array:
        return self.single(self.params, self.x)

    def padded(self, value: float) -> tuple[Array, Array]:
        """Data with more members on every axis, and the mask that leaves them out."""
        widths = [(0, 0), (0, 0), *self.num_axes * [(0, PADDED - LENGTH)]]
        mask = np.pad(np.ones(self.x.shape[:-1], bool), widths)
        return np.pad(self.x, [*widths, (0, 0)], constant_values=value), mask


@cache
def compiled(name: str) -> Case:
    num_axes = 1 + (name in IMAGES)
    network = NETWORKS[name](SIZE, 5, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(network)
    weights = np.linspace(1, 2, 20).reshape(2, 2, 5)

    def loss(params, x, mask):
        summaries = nnx.merge(graphdef, params)(x, mask)
        return (weights * summaries).sum(), summaries

    def single(params, x):
        return nnx.merge(graphdef, params)(x)

    rng = np.random.default_rng(0)
    # parameters that start at zero would leave parts of the laws untested
    moved = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(p.dtype), params)
    x = rng.standard_normal((2, 2, *num_axes * [LENGTH], SIZE)).astype(np.float32)
    single = jax.jit(jax.vmap(jax.vmap(single, (None, 0)), (None, 0)))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return Case(network, moved, x, num_axes, single, gradients)


# Their laws are those of the network that they differ from by a layer or an axis.
ALIKE = {"gru", "image"}


@pytest.fixture(scope="module", params=others_verified(NETWORKS, NETWORKS.keys() - ALIKE))
def case(request) -> Case:
    return compiled(request.param)


def assert_close(actual: Array, desired: Array) -> None:
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e6, np.nan, np.inf])
def test_padding_changes_nothing(case, value):
    """Nor do batch axes: the desired summaries are computed without any."""
    assert case.desired.shape == (2, 2, 5) and case.network.summary_size == 5
    assert jnp.abs(case.desired[0] - case.desired[1]).min() > 1e-5  # the data are seen
    assert_close(case(*case.padded(value)), case.desired)


@pytest.mark.parametrize("name", SETS)
def test_members_are_exchangeable(name):
    x, mask = compiled(name).padded(np.nan)
    order = np.random.default_rng(1).permutation(PADDED)
    assert_close(compiled(name)(x[:, :, order], mask[:, :, order]), compiled(name).desired)


@pytest.mark.parametrize("name", SERIES)
def test_steps_are_not_exchangeable(name):
    case = compiled(name)
    assert jnp.abs(case.single(case.params, case.x[:, :, ::-1]) - case.desired).max() > 1e-2


def test_steps_that_carry_their_times_are_exchangeable():
    network = TRANSFORMER(SIZE, 5, patch_size=1, time_feature=-1, rngs=nnx.Rngs(0))
    x = compiled("transformer").x[0, 0]
    both = jax.jit(network)(jnp.stack([x, x[::-1]]))
    assert_close(both[0], both[1])


@pytest.mark.parametrize("name", [*SETS, "gru"])
def test_members_left_out_are_as_none(name):
    case, keep = compiled(name), np.arange(PADDED) % 3 > 0
    x, _ = case.padded(1.0)
    order = np.argsort(~keep, stable=True)  # those that are kept first
    masks = np.broadcast_to(keep, x.shape[:-1]), np.broadcast_to(keep[order], x.shape[:-1])
    assert_close(case(x, masks[0]), case(x[:, :, order], masks[1]))


def test_gradients(case):
    """They reach every parameter of every layer as it is initialised, but no masked value."""
    x, mask = case.padded(1.0)
    (for_params, for_x), _ = case.gradients(nnx.state(case.network), x, mask)
    for path, gradient in jax.tree.leaves_with_path(for_params):
        layers = gradient.reshape(len(gradient), -1) if gradient.ndim > 2 else gradient[None]
        assert jnp.isfinite(gradient).all(), path
        assert (np.abs(layers).max(tuple(range(1, layers.ndim))) > 1e-6).all(), path
    assert (for_x[~mask] == 0).all() and (for_x[mask] != 0).all()


@pytest.mark.parametrize("start", [True, False])
def test_nothing_observed(case, start):
    x, mask = case.padded(np.nan)
    params = nnx.state(case.network) if start else case.params
    gradients, summaries = case.gradients(params, x, np.zeros_like(mask))
    assert_close(summaries, np.broadcast_to(summaries[0, 0], (2, 2, 5)))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves([summaries, gradients]))


def test_no_members(case):
    """They are one, which is masked: the case above."""
    x = jnp.zeros((2, 2, *case.num_axes * [0], SIZE))
    assert jax.eval_shape(case.network, x).shape == (2, 2, 5)
    filled, mask = fill(x, None, case.num_axes)
    assert filled.shape == (2, 2, *case.num_axes * [1], SIZE)
    assert mask.shape == filled.shape[:-1] and not mask.any()


def test_types_of_numbers(case):
    def type_of(dtype):
        return jax.eval_shape(case.network, case.x.astype(dtype)).dtype

    assert type_of(int) == jnp.float32
    with jax.enable_x64(True):
        assert type_of(jnp.float32) == jnp.float32
        assert type_of(jnp.float64) == jnp.float64


def train(network: nnx.Module, simulate: Callable, *, steps: int = 500) -> float:
    """Trains a network whose summary is an estimate; its root mean squared error at the end.

    All data are new, also those of the last steps.
    """
    graphdef, params = nnx.split(network)
    vector, unravel = ravel_pytree(params)  # one update for all compiles faster
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def loss(vector, rng_key):
        x, target = simulate(rng_key, 64)
        return jnp.mean((nnx.merge(graphdef, unravel(vector))(x) - target) ** 2)

    def step(carry, rng_key):
        vector, state = carry
        value, gradient = jax.value_and_grad(loss)(vector, rng_key)
        updates, state = optimizer.update(gradient, state)
        return (vector + updates, state), value

    carry, keys = (vector, optimizer.init(vector)), random.split(random.key(5), steps)
    return float(jnp.sqrt(jax.jit(partial(lax.scan, step))(carry, keys)[1][-30:].mean()))


def normal_sets(rng_key, num):
    """Twenty normals; their mean and the logarithm of their standard deviation."""
    keys = random.split(rng_key, 3)
    mean, scale = random.normal(keys[0], (num, 1)), jnp.exp(0.5 * random.normal(keys[1], (num, 1)))
    x = mean + scale * random.normal(keys[2], (num, 20))
    return x[..., None], jnp.stack([x.mean(-1), jnp.log(x.std(-1))], axis=-1)


def autoregressions(rng_key, num):
    """29 steps of an AR(1) process of unit variance; their first autocorrelation."""
    rho_key, noise_key = random.split(rng_key)
    rho = random.uniform(rho_key, (num,), minval=-0.95, maxval=0.95)
    noise = random.normal(noise_key, (30, num))

    def step(x, shock):
        x = rho * x + jnp.sqrt(1 - rho**2) * shock
        return x, x

    x = lax.scan(step, noise[0], noise[1:])[1].T
    return x[..., None], (jnp.mean(x[:, 1:] * x[:, :-1], -1) / jnp.mean(x**2, -1))[:, None]


def blobs(rng_key, num):
    """Images of 10 x 10 cells of a blob; its position, from -1 to 1."""
    place_key, noise_key = random.split(rng_key)
    place = random.uniform(place_key, (num, 2), minval=-1, maxval=1)
    grid = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(-1, 1, 10)], indexing="ij"), axis=-1)
    distances = jnp.sum((grid - place[:, None, None]) ** 2, axis=-1)
    x = jnp.exp(-distances / 0.1) + 0.1 * random.normal(noise_key, distances.shape)
    return x[..., None], place


SITES = {"x": DEEP_SET, "y": partial(GRU, width=8)}


def differences(rng_key, num):
    """Two sites, a set and a series; the difference of their means."""
    keys = random.split(rng_key, 2)
    x, y = random.normal(keys[0], (num, 5, 1)), random.normal(keys[1], (num, 8, 1))
    return {"x": x, "y": y}, x.mean(-2) - y.mean(-2)


@pytest.mark.parametrize(
    ("network", "simulate", "tolerance"),
    [
        (SETS["set transformer"], normal_sets, 0.12),  # of standard deviations 1.0 and 0.5
        (SERIES["transformer"], autoregressions, 0.12),  # of 0.5
        (SERIES["gru"], autoregressions, 0.12),
        (SERIES["convolution"], autoregressions, 0.12),
        (IMAGES["image"], blobs, 0.13),  # of 0.58; a cell has the length 0.22
        (partial(Fusion, networks=SITES, widths=(16,)), differences, 0.05),  # of 0.57
    ],
)
@pytest.mark.verify
def test_learns(network, simulate, tolerance):
    """Root mean squared errors, to be compared with the estimates' standard deviations."""
    x, target = simulate(random.key(0), 1)
    size = jax.tree.map(lambda value: value.shape[-1], x)
    assert train(network(size, target.shape[-1], rngs=nnx.Rngs(1)), simulate) < tolerance


def test_attention_is_that_of_jax():
    attention = MultiHeadAttention(6, num_heads=2, rngs=nnx.Rngs(0))
    x, y = random.normal(random.key(0), (3, 4, 6)), random.normal(random.key(1), (3, 5, 6))
    mask = random.bernoulli(random.key(2), 0.6, (3, 5)).at[:, 0].set(True)
    heads = lambda layer, z: layer(z).reshape(*z.shape[:-1], 2, 3)  # noqa: E731
    expected = jax.nn.dot_product_attention(
        heads(attention.query, x),
        heads(attention.key, y),
        heads(attention.value, y),
        mask=mask[:, None, None],
        scale=0.5 / np.sqrt(3),
    )
    assert_close(attention(x, y, mask), attention.output(expected.reshape(3, 4, 6)))


@pytest.mark.parametrize("num_axes", [1, 2])
def test_convolution_is_that_of_jax(num_axes):
    layer = ConvolutionLayer(2, 3, kernel_size=3, num_spatial_dims=num_axes, rngs=nnx.Rngs(0))
    x = random.normal(random.key(0), (2, *range(4, 4 + num_axes), 2))
    # neighbours along the last axis are outermost
    kernel = np.asarray(layer.linear.kernel[...]).reshape(*num_axes * [3], 2, 3)
    kernel = kernel.transpose(*reversed(range(num_axes)), num_axes, num_axes + 1)
    letters = "HW"[:num_axes]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    expected = lax.conv_general_dilated(
        x, kernel, num_axes * (1,), "SAME", dimension_numbers=numbers
    )
    assert_close(jax.jit(layer)(x), expected)


def test_gru_is_that_of_flax():
    network = GRU(2, 3, width=4, rngs=nnx.Rngs(0))
    cell = nnx.GRUCell(2, 4, rngs=nnx.Rngs(1))
    layer = network.layers
    cell.dense_i.kernel[...] = layer.input.kernel[0]
    cell.dense_h.kernel[...] = layer.recurrent.kernel[0]
    x, state = random.normal(random.key(0), (9, 5, 2)), jnp.zeros((5, 4))
    states, _ = network._states(x, jnp.ones((9, 5), bool))
    for t in range(9):
        state, _ = cell(state, x[t])
        assert_close(states[0, t], state)


@pytest.mark.parametrize("embedding", [Sinusoidal, Time2Vec])
def test_times_have_embeddings_of_their_own(embedding):
    vectors = embedding(rngs=nnx.Rngs(0))(jnp.arange(200.0))
    assert vectors.shape == (200, 16)
    distances = jnp.linalg.norm(vectors[:, None] - vectors, axis=-1)
    assert distances[jnp.triu_indices(200, 1)].min() > 0.5


def test_sites_of_a_fusion():
    build = partial(Fusion, {"x": 1, "y": 2}, rngs=nnx.Rngs(0))
    ready = GRU(2, 7, width=4, rngs=nnx.Rngs(1))
    network = build(networks={"x": DEEP_SET, "y": ready})
    assert network.summary_size == 32 and network.networks[1] is ready
    inputs = {"y": jnp.ones((3, 5, 2)), "x": jnp.ones((3, 4, 1))}
    masks = {"y": np.zeros((3, 5), bool)}
    apply = jax.jit(network)
    missing = apply(inputs, masks)
    assert_close(missing, apply(inputs | {"y": jnp.full((3, 5, 2), np.nan)}, masks))
    assert jnp.abs(missing - apply(inputs)).max() > 1e-3
    with pytest.raises(ValueError, match=r"networks: expected the sites \['x', 'y'\], got \['x'\]"):
        build(networks={"x": DEEP_SET})
    with pytest.raises(ValueError, match="inputs: expected the sites"):
        network({"x": inputs["x"]})
    with pytest.raises(ValueError, match=r"masks: expected the sites.*got.*'z'"):
        network(inputs, {"z": jnp.ones((3, 5), bool)})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (partial(SetTransformer, num_heads=3), "num_heads: expected a divisor of width=64, got 3"),
        (partial(TimeSeriesTransformer, time_feature=2), "time_feature: expected one of the 2"),
        (partial(TimeSeriesTransformer, patch_size=3), "patch_size: expected 1 or an even number"),
        (partial(Convolution, kernel_size=4), "kernel_size: expected an odd number, got 4"),
        (lambda size, rngs: Sinusoidal(5, rngs=rngs), "Sinusoidal: expected an even size"),
        (lambda size, rngs: Time2Vec(1, rngs=rngs), "Time2Vec: expected a size of at least 2"),
    ],
)
def test_options_that_do_not_fit(network, message):
    with pytest.raises(ValueError, match=message):
        network(2, rngs=nnx.Rngs(0))
