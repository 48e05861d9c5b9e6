# SPDX-License-Identifier: Apache-2.0
"""What files may name: the package's own classes, and functions and distributions by allow-lists.

Looking up a name runs nothing and imports nothing that a file could choose.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

import jax
import jax.scipy.special
import numpyro.distributions as dist
from flax import nnx
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint

from numpyro_amortized import networks
from numpyro_amortized.adapters.base import Transform
from numpyro_amortized.adapters.standardize import given_moments
from numpyro_amortized.networks.mlp import sigmoid, swish
from numpyro_amortized.simulators.varying_size import VaryingSize

__all__ = ["arguments", "constraint_name", "defaults", "names", "restorable"]

_PACKAGE = "numpyro_amortized"
# simulations and simulators are no part of a file; of the latter, only the size that varies
_NOT_SAVED = ("bank", "disk", "loads", "simulators")
_FUNCTIONS: dict[str, tuple[ModuleType, str]] = {
    "jax.numpy": (
        jax.numpy,
        "abs arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh cumprod cumsum "
        "deg2rad degrees diff exp exp2 expm1 fabs flip floor identity log log10 log1p log2 max "
        "mean median min negative ones_like prod rad2deg radians ravel reciprocal rint round sign "
        "sin sinc sinh sort sqrt square squeeze std sum tan tanh transpose trunc var zeros_like",
    ),
    "jax.nn": (
        jax.nn,
        "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu "
        "log_sigmoid log_softmax logsumexp mish normalize one_hot relu relu6 selu sigmoid silu "
        "soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus standardize swish tanh",
    ),
    "jax.scipy.special": (
        jax.scipy.special,
        "bessel_jn digamma entr erf erfc erfinv exp1 expi expit gammaln i0 i0e i1 i1e log_ndtr "
        "log_softmax logit logsumexp ndtr ndtri softmax",
    ),
}


@cache
def restorable() -> Mapping[str, Any]:
    """:return: name to class or function, for all that files may name."""
    found: dict[str, Any] = {}
    for module in _modules():
        public = {n: x for n, x in vars(module).items() if not n.startswith("_")}
        own = {n: x for n, x in public.items() if getattr(x, "__module__", "") == module.__name__}
        classes = {n: x for n, x in own.items() if _is_value_class(x)}
        if ambiguous := classes.keys() & found.keys():
            raise RuntimeError(f"Two classes of one name could not be told apart: {ambiguous}.")
        found |= classes
    found |= {n: getattr(networks, n) for n in networks.__all__}
    found |= {VaryingSize.__name__: VaryingSize}
    found |= {function.__name__: function for function in (given_moments, sigmoid, swish)}
    for prefix, (source, functions) in _FUNCTIONS.items():
        known = (n for n in functions.split() if hasattr(source, n))
        found |= {f"{prefix}.{name}": getattr(source, name) for name in known}
    named = ((n, getattr(dist, n)) for n in dist.__all__)
    found |= {f"numpyro.distributions.{n}": c for n, c in named if inspect.isclass(c)}
    found |= {f"numpyro.distributions.constraints.{n}": c for n, c in _constraints()}
    return MappingProxyType(found)


@cache
def names() -> Mapping[int, str]:
    """:return: identity of each class or function to its first name."""
    return MappingProxyType({id(x): name for name, x in reversed(list(restorable().items()))})


def constraint_name(support: Constraint | type[Constraint] | None) -> str | None:
    """:return: the kind of a support by its public name, whatever its bounds."""
    kind = support if support is None or isinstance(support, type) else type(support)
    for name, known in _constraints():
        if kind is known or kind is type(known):
            return name
    return None if kind is None else kind.__name__


def arguments(cls: Callable[..., Any]) -> tuple[str, ...]:
    """:return: names of what a class is made from."""
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(cls).parameters.values()
    return tuple(p.name for p in signature if p.kind not in fixed and p.name != "validate_args")


def defaults(network: type[nnx.Module]) -> Mapping[str, Any]:
    """:return: name to default of the arguments of a network's constructor that have one."""
    parameters = inspect.signature(network.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _modules() -> Iterator[ModuleType]:
    package = importlib.import_module(_PACKAGE)
    for info in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
        if info.name.split(".")[1] not in _NOT_SAVED:
            yield importlib.import_module(info.name)


def _is_value_class(value: Any) -> bool:
    """A concrete class whose instances are what they are made from: steps, networks, options."""
    if not inspect.isclass(value) or inspect.isabstract(value):
        return False
    is_data = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
    return is_data or issubclass(value, Transform | nnx.Module | Enum)


@cache
def _constraints() -> tuple[tuple[str, Any], ...]:
    """Public names of NumPyro's constraints, which are classes or single instances."""
    public = ((n, x) for n, x in vars(constraints).items() if not n.startswith("_"))
    kinds = (
        (n, x)
        for n, x in public
        if isinstance(x, Constraint) or (inspect.isclass(x) and issubclass(x, Constraint))
    )
    return tuple((n, x) for n, x in kinds if x is not Constraint)
