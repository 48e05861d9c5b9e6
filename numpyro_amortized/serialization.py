# SPDX-License-Identifier: Apache-2.0
"""Configurations as readable JSON, with their arrays beside it.

A value is written as what it is made from: an object by the name of its class and the arguments of
its constructor, a function by its name. Names are looked up among those of :mod:`restorable` and
what the user passes as ``custom_objects``; nothing else is ever called, unpickled or imported.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from numpyro.distributions.constraints import Constraint

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.base import Transform
from numpyro_amortized.restorable import arguments, defaults, names, restorable
from numpyro_amortized.simulators.base import Simulator

__all__ = ["Decoder", "Encoder", "Json", "former"]

Json = Any  # None, a number, a string, a list of these, or a dict of them by string
Place = tuple[str, ...]  # where a value stands, for errors
_PLAIN = (type(None), bool, int, str)
# of networks that were saved without theirs, where they have changed since
_FORMER_FLOW = {"flow": {"name": "CouplingFlow"}}
_FORMER_DEFAULTS: Mapping[str, Json] = {
    "CouplingFlow": {"depth": 6},
    "DeepSet": {"spread": False},
    "Discretized": _FORMER_FLOW,
    "Mixed": _FORMER_FLOW,
}


@final
class Encoder:
    """Values to JSON; what cannot be restored is refused.

    :param custom_objects: objects that are saved by a name, and will be passed again to be loaded.
    :param model: the simulator that will be passed again.
    """

    def __init__(
        self, custom_objects: Mapping[str, Any] | None = None, *, model: Any = None
    ) -> None:
        self._custom, self._model = dict(custom_objects or {}), model
        self.arrays: dict[str, np.ndarray] = {}
        self.custom_names: list[str] = []

    def encode(self, value: Any, place: Place) -> Json:
        """The value as JSON.

        :param value: to be saved.
        :param place: where it stands.
        :raises TypeError: where it could not be restored, naming the place.
        """
        for name, known in self._custom.items():
            if value is known:
                return self._by_custom_name(name, value, place)
        if type(value) in _PLAIN:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, list):
            return [self.encode(x, (*place, str(k))) for k, x in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": self.encode(list(value), place)}
        if isinstance(value, dict | MappingProxyType):
            return {"mapping": self._mapping(value, place)}
        if isinstance(value, np.ndarray | np.generic | Array):
            return self._array(value)
        return self._object(value, place)

    def _object(self, value: Any, place: Place) -> Json:
        if value is self._model and value is not None:
            return {"model": True}
        if isinstance(value, Adapter):
            return {"adapter": self._adapter(value, place)}
        if isinstance(value, jax.ShapeDtypeStruct):
            return {"shape": list(value.shape), "dtype": str(value.dtype)}
        if isinstance(value, partial):
            return {
                "partial": self.encode(value.func, place),
                "arguments": [self.encode(x, (*place, str(k))) for k, x in enumerate(value.args)],
                "keywords": self._mapping(value.keywords, place),
            }
        if (name := names().get(id(value))) is not None:
            return {"name": name} | self._defaults(value, place)
        if isinstance(value, np.dtype) or _is_dtype(value):
            return {"dtype": jnp.dtype(value).name}
        return self._instance(value, place)

    def _defaults(self, value: Any, place: Place) -> Json:
        """A network is restored as it was made, whatever its defaults are by then."""
        if not (isinstance(value, type) and issubclass(value, nnx.Module)):
            return {}
        return {"defaults": self._mapping(defaults(value), place)}

    def _instance(self, value: Any, place: Place) -> Json:
        if isinstance(value, Constraint) and (name := _parameter_free(value)) is not None:
            return {"name": name}
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return self._by_custom_name(value.__name__, value, place)
        if isinstance(value, Simulator):
            raise TypeError(
                f"{_said(place)}: bound to another simulator than the one of the approximator, so "
                "that one model passed to load could not stand for both. Make the adapter and the "
                "approximator from the same simulator."
            )
        if isinstance(value, nnx.Module):
            raise TypeError(
                f"{_said(place)}: a ready module, {type(value).__name__}, cannot be saved by "
                "itself, since what it was made from is not known. Pass a class or functools."
                "partial of one to the approximator, or name the module: "
                "save(path, custom_objects={'my_network': module}), and the same for load."
            )
        cls = type(value)
        known = names().get(id(cls))
        if known is None and not _is_data(cls):
            raise TypeError(
                f"{_said(place)}: {cls.__name__} cannot be restored from a file: {value!r}. Make "
                "it a frozen dataclass at the top of a module, or name it: save(path, "
                "custom_objects={'my_object': value}), and the same for load."
            )
        kind = {"name": known} if known else self._by_custom_name(cls.__name__, cls, place)
        if isinstance(value, Enum):
            return {"class": kind, "member": value.name}
        made_from = {name: self._argument(value, name, place) for name in arguments(cls)}
        return {"class": kind, "arguments": made_from}

    def _argument(self, value: Any, name: str, place: Place) -> Json:
        if not hasattr(value, name):
            raise TypeError(
                f"{_said(place)}: {type(value).__name__} does not keep `{name}`, which it was made "
                f"with, as an attribute `{name}`, so it cannot be restored from a file. Set it in "
                "its constructor."
            )
        return self.encode(getattr(value, name), (*place, name))

    def _adapter(self, adapter: Adapter, place: Place) -> Json:
        steps = [
            self.encode(step, (*place, f"step {number + 1} ({'; '.join(step.describe())})"))
            for number, step in enumerate(adapter.transforms)
        ]
        return {
            "transforms": steps,
            "ranks": self._mapping(adapter.ranks, place),
            "shapes": self._mapping(adapter.shapes, place),
        }

    def _mapping(self, value: Mapping[Any, Any], place: Place) -> Json:
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{_said(place)}: expected keys that are strings, got {wrong}.")
        return {key: self.encode(x, (*place, key)) for key, x in value.items()}

    def _array(self, value: Any) -> Json:
        name = f"array_{len(self.arrays)}"
        if isinstance(value, Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.arrays[name] = np.asarray(random.key_data(value))
            return {"rng_key": name, "impl": str(random.key_impl(value))}
        self.arrays[name] = np.asarray(value)
        return {"array": name}

    def _by_custom_name(self, name: str, value: Any, place: Place) -> Json:
        if not name.isidentifier():
            raise TypeError(
                f"{_said(place)}: a function without a name cannot be restored from a file. Define "
                "it by `def`, or name it: save(path, custom_objects={'my_function': function}), "
                "and the same for load."
            )
        if self._custom.setdefault(name, value) is not value:
            raise TypeError(
                f"{_said(place)}: two objects of your own have the name '{name}', so a file could "
                "not tell them apart. Rename one of them."
            )
        if name not in self.custom_names:
            self.custom_names.append(name)
        return {"custom": name}


@final
class Decoder:
    """What :class:`Encoder` wrote, to values.

    :param arrays: by name.
    :param custom_objects: the user's own objects, by name.
    :param model: the simulator passed again.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        custom_objects: Mapping[str, Any] | None = None,
        *,
        model: Any = None,
    ) -> None:
        self._arrays, self._custom = arrays, dict(custom_objects or {})
        self._model = model

    def decode(self, value: Json) -> Any:
        """The value.

        :raises ValueError: for names that may not be restored, and what was never encoded.
        """
        if isinstance(value, list):
            return [self.decode(x) for x in value]
        if not isinstance(value, dict):
            return value
        tag = next(iter(value), None)
        if tag not in _READERS:
            raise ValueError(f"configuration: expected one of {list(_READERS)}, got {value!r}.")
        return _READERS[tag](self, value)

    def _float(self, value: Json) -> float:
        return float(value["float"])

    def _tuple(self, value: Json) -> tuple[Any, ...]:
        return tuple(self.decode(value["tuple"]))

    def _mapping(self, value: Json) -> dict[str, Any]:
        return {key: self.decode(x) for key, x in value["mapping"].items()}

    def _array(self, value: Json) -> np.ndarray:
        return self._arrays[value["array"]][()]

    def _rng_key(self, value: Json) -> Array:
        return random.wrap_key_data(jnp.asarray(self._arrays[value["rng_key"]]), impl=value["impl"])

    def _saved_model(self, value: Json) -> Any:
        if self._model is None:
            raise ValueError("model: expected the model that was saved, got None; pass it again.")
        return self._model

    def _adapter(self, value: Json) -> Adapter:
        steps, ranks, shapes = (value["adapter"][n] for n in ("transforms", "ranks", "shapes"))
        return Adapter(
            self.decode(steps),
            ranks=self._mapping({"mapping": ranks}),
            _shapes=self._mapping({"mapping": shapes}) or None,
        )

    def _shape(self, value: Json) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(value["shape"]), np.dtype(value["dtype"]))

    def _partial(self, value: Json) -> partial:
        keywords = self._mapping({"mapping": value["keywords"]})
        return partial(self.decode(value["partial"]), *self.decode(value["arguments"]), **keywords)

    def _dtype(self, value: Json) -> np.dtype:
        return jnp.dtype(value["dtype"])

    def _name(self, value: Json) -> Any:
        name = value["name"]
        if name not in restorable():
            raise ValueError(
                f"configuration: '{name}' is none of the names that a file may restore. It was "
                "altered, or written by another version of numpyro_amortized."
            )
        known = restorable()[name]
        before = value.get("defaults", _FORMER_DEFAULTS.get(name, {}))
        if not before:
            return known
        now = Encoder().encode(known, ())["defaults"]
        changed = {n: x for n, x in before.items() if n not in now or now[n] != x}
        return partial(known, **self._mapping({"mapping": changed})) if changed else known

    def _custom_object(self, value: Json) -> Any:
        if value["custom"] not in self._custom:
            raise ValueError(f"custom_objects: expected an object named '{value['custom']}'.")
        return self._custom[value["custom"]]

    def _class(self, value: Json) -> Any:
        cls = self.decode(value["class"])
        if not isinstance(cls, type):
            raise ValueError(f"configuration: expected a class, got {cls!r}.")
        if issubclass(cls, Enum):
            return cls[value["member"]]
        return cls(**self._mapping({"mapping": value["arguments"]}))


_READERS: dict[Any, Callable[[Decoder, Json], Any]] = {
    "float": Decoder._float,
    "tuple": Decoder._tuple,
    "mapping": Decoder._mapping,
    "array": Decoder._array,
    "rng_key": Decoder._rng_key,
    "model": Decoder._saved_model,
    "adapter": Decoder._adapter,
    "shape": Decoder._shape,
    "partial": Decoder._partial,
    "dtype": Decoder._dtype,
    "name": Decoder._name,
    "custom": Decoder._custom_object,
    "class": Decoder._class,
}


def former(network: Any) -> Json:
    """A network of today's by its name and arguments alone, as the first files had it."""

    def without_defaults(value: Json) -> Json:
        if isinstance(value, list):
            return [without_defaults(x) for x in value]
        if not isinstance(value, dict):
            return value
        return {k: without_defaults(x) for k, x in value.items() if k != "defaults"}

    return without_defaults(Encoder().encode(network, ()))


def _said(place: Place) -> str:
    return f"save: {', '.join(place)}" if place else "save"


def _is_dtype(value: Any) -> bool:
    """A class that stands for a type of numbers, such as ``float``, ``np.int32``, ``jnp.bool_``."""
    if not isinstance(value, type):
        return False
    own = value in (bool, int, float, complex) or issubclass(value, np.generic)
    return own or isinstance(getattr(value, "dtype", None), np.dtype)


def _is_data(cls: type) -> bool:
    """Whether the instances of a user's class are what they are made from."""
    is_data = dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")
    return is_data or issubclass(cls, Transform | Enum)


def _parameter_free(constraint: Constraint) -> str | None:
    """The name of a constraint of which there is one instance."""
    for name, known in restorable().items():
        if isinstance(known, Constraint) and type(known) is type(constraint):
            return name if known == constraint else None
    return None
