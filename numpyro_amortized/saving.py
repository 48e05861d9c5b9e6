# SPDX-License-Identifier: Apache-2.0
"""Saving approximators and adapters in a directory, and loading them again."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.latents import UnconstrainLatents
from numpyro_amortized.approximators.base import Approximator
from numpyro_amortized.approximators.parameters import named_arrays, with_arrays
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.datasets import Dataset
from numpyro_amortized.directories import FORMAT, Content, read, write
from numpyro_amortized.restorable import arguments, constraint_name
from numpyro_amortized.serialization import Decoder, Encoder, Json, former
from numpyro_amortized.simulators.base import Simulator
from numpyro_amortized.simulators.model import ModelSimulator
from numpyro_amortized.simulators.tracing import Site

__all__ = ["load", "save"]

Sites = dict[str, dict[str, Any]]


def save(
    saved: Approximator | Adapter,
    path: str | PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> None:
    """See :meth:`Approximator.save` and :meth:`Adapter.save`."""
    model = _bound_model(saved)
    encoder = Encoder(custom_objects, model=model)
    if isinstance(saved, Adapter):
        body = encoder.encode(saved, ("adapter",))
    else:
        body = _encoded(encoder, saved)
    configuration = {
        "format": FORMAT,
        "numpyro_amortized": version("numpyro_amortized"),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "model": None if model is None else type(model).__name__,
        "sites": _described(_sites(saved, model)),
        "custom_objects": encoder.custom_names,
        "saved": body,
    }
    write(Path(path), Content(configuration, encoder.arrays))


def load(
    path: str | PathLike[str],
    model: Source | Callable[..., Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Load what :meth:`Approximator.save` or :meth:`Adapter.save` wrote.

    Nothing that the files name is executed or imported: classes and functions are looked up among
    those of this package and an allow-list of JAX's and NumPyro's, and yours among
    ``custom_objects``. Draws are those of the approximator that was saved, bit for bit.

    :param path: the directory.
    :param model: the model, which no file can hold: a :class:`ModelSimulator`, or a function
        with its arguments bound by :func:`functools.partial`. Its sites must be those of the model
        that was saved. Approximators of other simulators and of data sets can do without theirs
        until they simulate.
    :param custom_objects: the functions, classes and modules of your own that were saved by name.
    :return: the approximator or adapter.
    :raises FileNotFoundError: where nothing was saved at the path.
    :raises ValueError: where a file is damaged, naming it; where the model has other sites, naming
        the difference; where the model or an object of your own is missing.
    """
    content = read(Path(path))
    configuration = content.configuration
    _check_precision(Path(path), configuration["x64"])
    needed = configuration["custom_objects"]
    if missing := [name for name in needed if name not in (custom_objects or {})]:
        raise ValueError(
            f"custom_objects: expected the objects of your own {missing} by name, as they were "
            f"saved in {path}: load(path, custom_objects={{{missing[0]!r}: ...}})."
        )
    source = _source(model, configuration)
    decoder = Decoder(content.arrays, custom_objects, model=source)
    if "adapter" in configuration["saved"]:
        return decoder.decode(configuration["saved"])
    source = MissingSource(configuration["model"]) if source is None else source
    return _decoded(decoder, configuration["saved"], source)


@final
class MissingSource(Simulator):
    """Stands for the simulator or data set with which a loaded approximator was not provided."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> dict[str, Array]:
        raise RuntimeError(
            f"The approximator was loaded without its {self._name}, so it cannot simulate. Pass it "
            "again: load(path, model=...)."
        )


def _encoded(encoder: Encoder, approximator: Approximator) -> Json:
    made_from = _made_from(encoder, approximator)
    modules = approximator.modules
    variables = {} if modules is None else named_arrays(modules)
    return made_from | {
        "conditioning": encoder.encode(approximator.adapter, ("adapter",)),
        "is_trained": modules is not None,
        "variables": {n: encoder.encode(x, ("variables", n)) for n, x in variables.items()},
    }


def _made_from(encoder: Encoder, approximator: Approximator) -> Json:
    """What it is; members share the source, the adapter and the networks of the whole."""
    options = {n: _option(encoder, n, x) for n, x in approximator.options.items()}
    made_from = {"approximator": type(approximator).__name__, "options": options}
    if (derived := approximator.derived_summary) is not None:
        made_from["derived_summary"] = encoder.encode(derived, ("summary_network",))
    return made_from


def _option(encoder: Encoder, name: str, value: Any) -> Json:
    """Options are values, or approximators by name."""
    if isinstance(value, Mapping) and any(isinstance(x, Approximator) for x in value.values()):
        return {"members": {n: _made_from(encoder, x) for n, x in value.items()}}
    return encoder.encode(value, (name,))


def _decoded(decoder: Decoder, saved: Json, source: Source) -> Approximator:
    approximator = _made(decoder, saved, source, decoder.decode(saved["conditioning"]))
    if saved["is_trained"]:
        variables = {n: decoder.decode(x) for n, x in saved["variables"].items()}
        approximator.restore(lambda modules: with_arrays(modules, variables))
    return approximator


def _made(decoder: Decoder, saved: Json, source: Source, adapter: Adapter) -> Approximator:
    kinds = {kind.__name__: kind for kind in _approximators(Approximator)}
    if (name := saved["approximator"]) not in kinds:
        raise ValueError(
            f"configuration: expected an approximator from {list(kinds)}, got '{name}'. Install "
            "the version of numpyro_amortized with which it was saved."
        )
    cls: Any = kinds[name]
    given: dict[str, Any] = {}
    for option, value in saved["options"].items():
        if isinstance(value, dict) and "members" in value:
            members = value["members"].items()
            given[option] = {n: _made(decoder, x, source, adapter) for n, x in members}
        else:
            given[option] = decoder.decode(value)
    first, *others = arguments(cls)
    if "adapter" in others:
        given["adapter"] = adapter
    made: Approximator = cls(**({first: source} | given))
    if made.derived_summary is not None:
        derived = saved.get("derived_summary") or former(made.derived_summary)
        made.derived_summary = decoder.decode(derived)
    return made


def _approximators(base: type) -> list[type[Approximator]]:
    """The package's own approximators, all of which are imported with it."""
    kinds: list[type] = base.__subclasses__()
    own = [kind for kind in kinds if kind.__module__.startswith("numpyro_amortized.")]
    return own + [below for kind in own for below in _approximators(kind)]


def _bound_model(saved: Approximator | Adapter) -> Source | None:
    """The simulator or data set that has to be passed again."""
    if not isinstance(saved, Adapter):
        return saved.source
    bound = [t.simulator for t in saved.transforms if isinstance(t, UnconstrainLatents)]
    return bound[0] if bound else None


def _sites(saved: Approximator | Adapter, model: Source | None) -> Mapping[str, Site]:
    if isinstance(model, ModelSimulator):
        return model.sites
    return {} if isinstance(saved, Adapter) else saved.sites


def _described(sites: Mapping[str, Site]) -> Sites:
    """What a model is recognized by."""
    return {
        site.name: {
            "role": site.role,
            "shape": list(site.shape),
            "dtype": np.dtype(site.dtype).name,
            "support": constraint_name(site.support),
        }
        for site in sites.values()
    }


def _check_precision(path: Path, x64: bool) -> None:
    if x64 != jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{path}: saved with {'double' if x64 else 'single'} precision, and JAX now has the "
            f"other one. Call jax.config.update('jax_enable_x64', {x64}) at the start."
        )


def _source(model: Source | Callable[..., Any] | None, configuration: Json) -> Source | None:
    """The simulator passed again, its sites checked."""
    is_model = configuration["model"] == ModelSimulator.__name__
    if model is None:
        if is_model:
            raise ValueError(
                "model: expected the NumPyro model that was saved, with the sites "
                f"{list(configuration['sites'])}, since no file can hold it: "
                "load(path, model=functools.partial(model, *args)), or a ModelSimulator."
            )
        return None
    source = _as_simulator(model)
    if is_model and not isinstance(source, ModelSimulator):
        raise TypeError(
            f"model: expected a NumPyro model or a ModelSimulator, got {type(source).__name__}."
        )
    if isinstance(source, ModelSimulator):
        _check_sites(_described(source.sites), configuration["sites"])
    else:
        _check_entries(source, configuration["sites"])
    return source


def _as_simulator(model: Source | Callable[..., Any]) -> Source:
    if isinstance(model, Simulator | Dataset):
        return model
    if isinstance(model, partial):
        return ModelSimulator(model.func, *model.args, **model.keywords)
    if not callable(model):
        raise TypeError(
            "model: expected a NumPyro model, a simulator or a data set, got "
            f"{type(model).__name__}."
        )
    return ModelSimulator(model)


def _check_sites(got: Sites, expected: Sites) -> None:
    if list(got) != list(expected):
        missing = [name for name in expected if name not in got]
        extra = [name for name in got if name not in expected]
        raise ValueError(
            f"model: expected the sites {list(expected)}, as they were saved, got {list(got)}; "
            f"missing: {missing}, unexpected: {extra}. Pass the model that was saved."
        )
    for name, site in expected.items():
        for what, value in site.items():
            if got[name][what] != value:
                raise ValueError(
                    f"model: site '{name}': expected the {what} {value}, as it was saved, got "
                    f"{got[name][what]}. Pass the model that was saved, with arguments of the same "
                    "shapes."
                )


def _check_entries(source: Source, expected: Sites) -> None:
    """A simulator without a model is recognized by the shapes and types of its values."""
    draws = source.head(1) if isinstance(source, Dataset) else source.sample(random.key(0), 1)
    entries: Sites = {
        name: {"shape": list(jnp.shape(x)[1:]), "dtype": jnp.result_type(x).name}
        for name, x in draws.items()
    }
    kept = {n: {k: s[k] for k in ("shape", "dtype")} for n, s in expected.items()}
    _check_sites({n: entries[n] for n in kept if n in entries}, kept)
