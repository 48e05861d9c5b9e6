# SPDX-License-Identifier: Apache-2.0
"""Saved and loaded again: the same draws; what is damaged or missing is named."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from numpyro.distributions import constraints

import numpyro_amortized as npa
from numpyro_amortized import directories, networks
from numpyro_amortized.adapters.base import Transform
from numpyro_amortized.directories import Content, DamagedError
from numpyro_amortized.serialization import Decoder, Encoder
from tests import models
from tests.conftest import AFFINE, FLOW, SETS

FIT = {"epochs": 1, "num_batches": 2, "batch_size": 8, "progress_bar": False}


def raises(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, words)))


def assert_equal(first, second):
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


@pytest.fixture(scope="module")
def normal_mean(approximate):
    """Hardly trained."""
    approximator = approximate(models.normal_mean, np.zeros(10))
    approximator.fit(random.key(0), **FIT)
    return approximator


@pytest.fixture(scope="module")
def saved(normal_mean, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "normal_mean"
    normal_mean.save(path)
    return path


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


MODEL = partial(models.normal_mean, np.zeros(10))


def test_draws_densities_and_training_are_the_same_bit_for_bit(normal_mean, saved):
    loaded = npa.load(saved, MODEL)
    conditions = {"y": np.linspace(-1, 2, 10)}
    draws = normal_mean.sample(random.key(0), 5, conditions)
    assert_equal(draws, loaded.sample(random.key(0), 5, conditions))
    values = draws | conditions
    np.testing.assert_array_equal(normal_mean.log_prob(values), loaded.log_prob(values))
    assert str(loaded) == str(normal_mean)
    again = npa.load(saved, npa.ModelSimulator(models.normal_mean, np.zeros(10)))
    histories = [a.fit(random.key(1), **FIT) for a in (loaded, again)]
    assert histories[0].loss == histories[1].loss


@pytest.mark.verify
def test_every_kind_of_support(tmp_path):
    simulator = npa.ModelSimulator(models.constrained, np.zeros(4))
    adapter = npa.Adapter.for_posterior(simulator)
    adapter.save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved", partial(models.constrained, np.zeros(4)))
    draws = simulator.sample(random.key(0), 3)
    assert str(loaded) == str(adapter)
    inputs = adapter.forward(draws)
    assert_equal(inputs, loaded.forward(draws))
    variables = {"inference_variables": inputs["inference_variables"]}
    assert_equal(adapter.inverse(variables), loaded.inverse(variables))
    np.testing.assert_array_equal(adapter.log_det_jac(draws), loaded.log_det_jac(draws))


@pytest.mark.verify
def test_context_and_sizes(tmp_path):
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(8), sizes={"n": (3, 8)})
    adapter = npa.Adapter.for_posterior(simulator)
    adapter.save(tmp_path / "saved")
    draws = simulator.sample(random.key(0), 3)
    assert_equal(adapter.forward(draws), npa.load(tmp_path / "saved", simulator).forward(draws))


def test_format_1_stays_loadable():
    """A file of the first version, never to be written again."""
    path = Path(__file__).parent / "data" / "format_1"
    loaded = npa.load(path, partial(models.normal_mean, np.zeros(3)))
    data = {"mu": np.array([-1.0, 0.0, 0.5]), "y": np.array([0.5, -0.25, 1.0])}
    expected = [-1.349560499, -0.826195538, -1.032998323]  # when it was written
    # float32 sums of another processor or version of XLA, at conditions of order one
    np.testing.assert_allclose(loaded.log_prob(data), expected, atol=1e-4)


def test_before_training(approximate, tmp_path):
    approximate(models.normal_mean, np.zeros(4)).save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved", partial(models.normal_mean, np.zeros(4)))
    with raises(RuntimeError, "not trained yet"):
        loaded.sample(random.key(0), 1, {"y": np.zeros(4)})


def test_saving_again_replaces(saved, normal_mean, copied):
    (copied / "note.txt").write_text("mine")
    normal_mean.save(copied)
    assert not (copied / "note.txt").exists()
    assert [entry.name for entry in copied.parent.iterdir()] == ["copy"]
    assert_equal(directories.read(copied).arrays, directories.read(saved).arrays)


# networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [networks.CouplingFlow, networks.Mixed])
def test_networks_keep_the_defaults_they_were_saved_with(network, monkeypatch):
    saved = Encoder().encode(network, ())
    assert Decoder({}).decode(saved) is network
    monkeypatch.setitem(networks.CouplingFlow.__init__.__kwdefaults__, "depth", 9)
    loaded = Decoder({}).decode(saved)
    flow = loaded if network is networks.CouplingFlow else loaded.keywords["flow"]
    assert flow.func is networks.CouplingFlow and flow.keywords == {"depth": 3}


def test_networks_saved_without_their_defaults():
    """The first files had names alone; a flow had six pairs of couplings then."""
    flow = Decoder({}).decode({"name": "CouplingFlow"})
    assert flow.func is networks.CouplingFlow and flow.keywords == {"depth": 6}
    mixed = Decoder({}).decode({"partial": {"name": "Mixed"}, "arguments": [], "keywords": {}})
    assert mixed.func is networks.Mixed and mixed.keywords["flow"].keywords == {"depth": 6}
    assert Decoder({}).decode({"name": "DeepSet"}).keywords == {"spread": False}
    assert Decoder({}).decode({"name": "GRU"}) is networks.GRU


def shifted(x):
    return jnp.tanh(x) + 0.1


class Doubling(NamedTuple):
    """A transform of the user's own."""

    factor: float = 2.0

    @property
    def num_params(self):
        return 1

    def forward(self, params, x):
        return self.factor * x, jnp.full_like(x, jnp.log(self.factor))

    def inverse(self, params, y):
        return y / self.factor, jnp.full_like(y, -jnp.log(self.factor))


SMALL = {"widths": (8,), "activation": jax.nn.relu}
NETWORKS = {
    "spline": partial(networks.CouplingFlow, depth=1, transform=networks.Spline(4), **SMALL),
    "affine": partial(networks.CouplingFlow, depth=1, transform=networks.Affine(), **SMALL),
    "flow matching": partial(
        networks.FlowMatching,
        optimal_transport=networks.OptimalTransport(iterations=3),
        solver=networks.FixedStep(2),
        **SMALL,
    ),
    "diffusion": partial(networks.DiffusionModel, solver=networks.Adaptive(rtol=1e-3), **SMALL),
}
SUMMARIES = {
    "deep set": SETS,
    "set transformer": partial(networks.SetTransformer, width=8, depth=1, activation=jnp.tanh),
    "time series": partial(
        networks.TimeSeriesTransformer,
        width=8,
        depth=1,
        time_embedding=partial(networks.Time2Vec, size=4, periods=(2.0, 9.0)),
    ),
    "gru": partial(networks.GRU, width=4, bidirectional=True),
    "convolution": partial(networks.Convolution, widths=(4,)),
}


def reloaded(tmp_path, approximator, model=MODEL, **custom_objects):
    """Untrained networks are told by their variables, which are drawn from another key."""
    approximator._modules = nnx.Dict(approximator._build(nnx.Rngs(7)))
    approximator.save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved", model, custom_objects)
    graphs, states = zip(*(nnx.split(a.modules) for a in (approximator, loaded)), strict=True)
    assert graphs[0] == graphs[1]
    for first, second in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(first, second)
    return loaded


@pytest.mark.parametrize("name", NETWORKS)
def test_inference_networks(name, normal_mean, tmp_path):
    reloaded(
        tmp_path,
        npa.ContinuousApproximator(
            normal_mean.source, adapter=normal_mean.adapter, inference_network=NETWORKS[name]
        ),
    )


@pytest.mark.parametrize("name", SUMMARIES)
def test_summary_networks(name, normal_mean, tmp_path):
    options = {"inference_network": FLOW, "summary_network": SUMMARIES[name]}
    approximator = npa.ContinuousApproximator(
        normal_mean.source, adapter=normal_mean.adapter, **options
    )
    reloaded(tmp_path, approximator)


def with_network(normal_mean, network):
    return npa.ContinuousApproximator(
        normal_mean.source, adapter=normal_mean.adapter, inference_network=network
    )


def test_own_functions_and_classes_are_passed_again(normal_mean, tmp_path):
    network = partial(
        networks.CouplingFlow, transform=Doubling(3.0), activation=shifted, widths=[4]
    )
    approximator = with_network(normal_mean, network)
    reloaded(tmp_path, approximator, Doubling=Doubling, shifted=shifted)
    with raises(ValueError, "custom_objects", "'Doubling'", "load(path, custom_objects="):
        npa.load(tmp_path / "saved", MODEL)


def test_a_ready_module_goes_by_a_name(normal_mean, tmp_path):
    module = networks.CouplingFlow(1, 32, depth=1, widths=(8,), rngs=nnx.Rngs(1))
    approximator = with_network(normal_mean, module)
    with raises(TypeError, "inference_network", "ready module", "partial", "custom_objects="):
        approximator.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    approximator._modules = nnx.Dict(approximator._build(nnx.Rngs(7)))
    approximator.save(tmp_path / "saved", custom_objects={"flow": module})
    fresh = networks.CouplingFlow(1, 32, depth=1, widths=(8,), rngs=nnx.Rngs(2))
    before = jax.tree.map(np.array, nnx.state(fresh))
    loaded = npa.load(tmp_path / "saved", MODEL, {"flow": fresh})
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(fresh))  # not changed
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(module), nnx.state(loaded.inference_network)
    )
    wider = networks.CouplingFlow(1, 32, depth=1, widths=(9,), rngs=nnx.Rngs(2))
    with raises(ValueError, "variables are not those", "inference_network/", "expected (", "got ("):
        npa.load(tmp_path / "saved", MODEL, {"flow": wider})


def trained(summary_network):
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(10))
    approximator = npa.ContinuousApproximator(
        simulator, inference_network=AFFINE, summary_network=summary_network
    )
    approximator.fit(random.key(0), **FIT)
    return approximator


def assert_same_draws(first, second):
    data = {"y": np.linspace(-1, 2, 10)}
    assert_equal(*(a.sample(random.key(1), 5, data) for a in (first, second)))


@pytest.mark.verify
def test_derived_summary_networks_keep_the_defaults_they_were_saved_with(tmp_path, monkeypatch):
    approximator = trained(None)
    approximator.save(tmp_path / "saved")
    monkeypatch.setitem(networks.DeepSet.__init__.__kwdefaults__, "embedding_size", 16)
    loaded = npa.load(tmp_path / "saved", MODEL)
    assert str(loaded) == str(approximator)
    assert_same_draws(approximator, loaded)


@pytest.mark.verify
def test_derived_summary_networks_saved_without_a_word(tmp_path):
    """The first files did not say what was derived; deep sets had no spreads then."""
    approximator = trained(partial(networks.DeepSet, spread=False))
    approximator.save(tmp_path / "new")
    content = directories.read(tmp_path / "new")
    content.configuration["saved"]["options"]["summary_network"] = None
    directories.write(tmp_path / "old", content)
    assert_same_draws(approximator, npa.load(tmp_path / "old", MODEL))


# adapters ------------------------------------------------------------------------------------


def halved(x):
    return x / 2


def doubled(x):
    return 2 * x


@dataclass(frozen=True, eq=False)
class Squared(Transform):
    """A step of the user's own."""

    name: str
    offset: np.ndarray

    def forward(self, data):
        return dict(data) | {self.name: data[self.name] ** 2 + self.offset}

    def describe(self):
        return [f"{self.name}: squared"]


DRAWS = {
    "a": np.linspace(0.1, 2, 40).reshape(20, 2),
    "s": np.full((20, 3), 1 / 3),
    "k": np.arange(20) % 3,
    "y": np.random.default_rng(0).normal(size=(20, 4)),
    "z": np.where(np.arange(80).reshape(20, 4) % 7, 1.5, np.nan),
}
STEPS = {
    "constrain": lambda a: a.constrain("a", lower=0),
    "interval": lambda a: a.constrain("a", lower=np.zeros(2), upper=np.array([3.0, 4.0])),
    "simplex": lambda a: a.constrain("s", constraint=constraints.simplex),
    "elementwise": lambda a: a.log("a").log1p("s").scale("y", np.arange(1.0, 5)).shift("y", 0.5),
    "apply": lambda a: a.apply("y", forward=jnp.tanh, inverse=jnp.arctanh),
    "standardize": lambda a: a.standardize(exclude=["k", "z"]),
    "moments": lambda a: a.standardize("y", mean=1.0, std={"y": np.full(4, 2.0)}),
    "names": lambda a: a.concatenate(["a", "y"], into="v", axis=None).rename("v", "w").drop("z"),
    "parts": lambda a: a.split("y", into=["b", "c"]).group(["b", "c"], "g").ungroup("g"),
    "axes": lambda a: a.expand_dims("k", axis=0).squeeze("k", axis=0).as_time_series("y"),
    "types": lambda a: a.map_dtype("k", jnp.float32).map_dtype("a", np.float16),
    "one-way": lambda a: a.one_hot("k", 3).take("y", indices=[0, 2]).broadcast("k", to="s"),
    "missing": lambda a: a.nan_to_num("z", -1.0, return_mask=True).as_set("z", mask="z_mask"),
    "unbound": lambda a: a.convert_dtype("int32", "float32").keep(exclude="z"),
}


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_adapters(name, bound, tmp_path):
    adapter = STEPS[name](npa.Adapter())
    adapter = adapter.bind(DRAWS) if bound else adapter
    adapter.save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved")
    assert str(loaded) == str(adapter)
    assert loaded.is_bound == adapter.is_bound and list(loaded.shapes) == list(adapter.shapes)
    both = [a if bound else a.bind(DRAWS) for a in (adapter, loaded)]
    first, second = (a.forward(DRAWS) for a in both)
    assert_equal(first, second)
    assert_equal(both[0].inverse(first), both[1].inverse(second))


def test_own_functions_and_steps_of_adapters(tmp_path):
    adapter = npa.Adapter().apply("a", forward=doubled, inverse=halved)
    adapter = adapter.append(Squared("y", np.arange(4.0))).bind(DRAWS)
    adapter.save(tmp_path / "saved")
    own = {"doubled": doubled, "halved": halved, "Squared": Squared}
    loaded = npa.load(tmp_path / "saved", custom_objects=own)
    assert_equal(adapter.forward(DRAWS), loaded.forward(DRAWS))


def other_doubled(x):
    return x


other_doubled.__name__ = "doubled"


class Opaque(Transform):
    def __init__(self, secret):
        pass

    def forward(self, data):
        return dict(data)

    def describe(self):
        return ["opaque"]


REFUSED = {
    "lambda": (
        lambda a: a.apply("a", forward=lambda x: x),
        ("step 1 (a: <lambda>", "function", "without a name", "def", "custom_objects="),
    ),
    "one name": (
        lambda a: a.apply("a", forward=doubled).apply("y", forward=other_doubled),
        ("step 2", "two objects of your own have the name 'doubled'", "Rename"),
    ),
    "no attribute": (lambda a: a.append(Opaque(3)), ("step 1 (opaque)", "`secret`", "attribute")),
    "object": (
        lambda a: a.append(Squared("y", object())),
        ("step 1 (y: squared)", "offset", "object cannot be restored", "frozen dataclass"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_restored_is_refused_on_saving(case, tmp_path):
    make, words = REFUSED[case]
    with raises(TypeError, *words):
        make(npa.Adapter()).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_lambda_goes_by_a_name_that_is_given(tmp_path):
    square = lambda x: x**2  # noqa: E731
    adapter = npa.Adapter().apply("a", forward=square).bind(DRAWS)
    adapter.save(tmp_path / "saved", custom_objects={"square": square})
    loaded = npa.load(tmp_path / "saved", custom_objects={"square": square})
    assert_equal(adapter.forward(DRAWS), loaded.forward(DRAWS))


# models --------------------------------------------------------------------------------------


def other_name(y):
    import numpyro
    import numpyro.distributions as dist

    m = numpyro.sample("m", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(m, 1).expand([len(y)]), obs=y)


def other_support(y):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.HalfNormal(1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


MODELS = {
    "none": (None, ValueError, ("model", "['mu', 'y']", "partial")),
    "length": (partial(models.normal_mean, np.zeros(9)), ValueError, ("'y'", "shape", "10", "9")),
    "names": (partial(other_name, np.zeros(10)), ValueError, ("missing: ['mu']", "['m']")),
    "support": (
        partial(other_support, np.zeros(10)),
        ValueError,
        ("'mu'", "support real", "got positive"),
    ),
    "kind": (npa.LambdaSimulator(lambda rng_key: {}), TypeError, ("model", "JaxSimulator")),
    "number": (3, TypeError, ("model", "got int")),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_sites_of_the_model_are_checked(case, saved):
    model, kind, words = MODELS[case]
    with raises(kind, *words):
        npa.load(saved, model)


@pytest.mark.verify
def test_simulators_without_a_model(tmp_path):
    def simulate(rng_key):
        mu, noise = random.normal(rng_key, (2,))
        return {"mu": mu, "y": mu + noise}

    adapter = npa.Adapter().concatenate("mu", into="inference_variables")
    adapter = adapter.concatenate("y", into="inference_conditions")
    approximator = npa.ContinuousApproximator(
        npa.LambdaSimulator(simulate), adapter=adapter, inference_network=FLOW
    )
    approximator.fit(random.key(0), **FIT)
    approximator.save(tmp_path / "saved")
    draws = approximator.sample(random.key(1), 3, {"y": 0.5})
    alone = npa.load(tmp_path / "saved")
    assert_equal(draws, alone.sample(random.key(1), 3, {"y": 0.5}))
    with raises(RuntimeError, "loaded without its JaxSimulator", "load(path, model="):
        alone.fit(random.key(0), **FIT)
    again = npa.load(tmp_path / "saved", npa.LambdaSimulator(simulate))
    again.fit(random.key(0), **FIT)
    with raises(ValueError, "model", "expected the sites ['mu', 'y']", "missing: ['y']"):
        npa.load(tmp_path / "saved", npa.LambdaSimulator(lambda rng_key: {"mu": jnp.ones(())}))


# files ---------------------------------------------------------------------------------------


def files(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_files_are_named(damage, copied):
    for name in files(copied):
        before = (copied / name).read_bytes()
        match damage:
            case "truncated":
                (copied / name).write_bytes(before[: len(before) // 2])
            case "altered":
                changed = bytearray(before)
                changed[len(before) // 2] ^= 1
                (copied / name).write_bytes(changed)
            case "missing":
                (copied / name).unlink()
        with raises(DamagedError, name, "" if name == "manifest.json" else damage):
            npa.load(copied, MODEL)
        (copied / name).write_bytes(before)
    npa.load(copied, MODEL)


def rewritten(path, change):
    content = directories.read(path)
    directories.write(path, Content(change(content.configuration), content.arrays))


@pytest.mark.parametrize("name", ["os.system", "numpy.load", "save", "builtins.eval", "Encoder"])
def test_files_restore_no_other_names(name, tmp_path):
    npa.Adapter().apply("a", forward=jnp.tanh).save(tmp_path / "saved")

    def change(configuration):
        return json.loads(json.dumps(configuration).replace("jax.numpy.tanh", name))

    rewritten(tmp_path / "saved", change)
    with raises(ValueError, f"'{name}' is none of the names that a file may restore"):
        npa.load(tmp_path / "saved")


@pytest.mark.parametrize("call", [{"name": "jax.numpy.exp"}, {"__reduce__": 1}, {"pickle": ""}])
def test_files_call_nothing(call, tmp_path):
    npa.Adapter().save(tmp_path / "saved")

    def change(configuration):
        step = {"class": call, "arguments": {}}
        return configuration | {
            "saved": {"adapter": {"transforms": [step], "ranks": {}, "shapes": {}}}
        }

    rewritten(tmp_path / "saved", change)
    with raises(ValueError, "configuration: expected"):
        npa.load(tmp_path / "saved")


def test_later_formats_are_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with raises(ValueError, "written in format 2", "up to 1", "newer version"):
        npa.load(copied, MODEL)


def test_the_other_precision_is_refused(saved):
    with jax.enable_x64(True), raises(ValueError, "single precision", "jax_enable_x64"):
        npa.load(saved, MODEL)


def test_paths(saved, normal_mean, tmp_path):
    with raises(FileNotFoundError, str(tmp_path / "nothing")):
        npa.load(tmp_path / "nothing")
    with raises(DamagedError, str(tmp_path), "manifest.json is missing"):
        npa.load(tmp_path)
    (tmp_path / "file").write_text("mine")
    with raises(FileExistsError, str(tmp_path / "file"), "got a file"):
        normal_mean.save(tmp_path / "file")
    with raises(FileExistsError, str(tmp_path), "directory with other files"):
        normal_mean.save(tmp_path)
    with raises(OSError, str(tmp_path / "file" / "below")):
        normal_mean.save(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupted_write_leaves_what_was_there(copied, monkeypatch):
    before = directories.read(copied)

    def interrupt(*_):
        raise KeyboardInterrupt

    content = Content({}, {"x": np.ones(3)})
    for name in ("_save_arrays", "_checksum", "_sync"):
        with monkeypatch.context() as patch:
            patch.setattr(directories, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                directories.write(copied, content)
        assert_equal(directories.read(copied).arrays, before.arrays)
    copied.rename(copied.with_name(f".{copied.name}.previous"))  # a crash between two renamings
    assert_equal(directories.read(copied).arrays, before.arrays)


def test_a_full_disk(tmp_path):
    program = (
        "import numpy as np; from pathlib import Path; from numpyro_amortized import directories\n"
        "content = directories.Content({}, {'x': np.random.default_rng(0).normal(size=(10**5,))})\n"
        f"directories.write(Path({str(tmp_path / 'saved')!r}), content)"
    )

    # files of at most 100 KiB, as on a disk with no more space
    shell = f"trap '' XFSZ; ulimit -f 100; exec {sys.executable} -c \"$0\""
    done = subprocess.run(
        ["bash", "-c", shell, program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert "saving failed" in done.stderr and str(tmp_path / "saved") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_all_kinds(tmp_path):
    arrays = {
        "bf16": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
        "bool": np.array([True, False]),
        "complex": np.ones((2, 2), np.complex64),
        "empty": np.zeros((0, 3), np.float32),
        "nan": np.array([np.nan, np.inf, -0.0]),
        "scalar": np.array(3, np.uint32),
    }
    directories.write(tmp_path / "saved", Content({"empty": True}, arrays))
    for name, x in directories.read(tmp_path / "saved").arrays.items():
        assert (x.dtype, x.shape) == (arrays[name].dtype, arrays[name].shape)
        np.testing.assert_array_equal(x, arrays[name])
