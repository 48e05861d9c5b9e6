# SPDX-License-Identifier: Apache-2.0
"""What a transform of an adapter is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from jax import Array

Data = Mapping[str, Array]
Draws = Mapping[str, Array | np.ndarray]  # a leading axis of simulations; on device or host


class Transform(ABC):
    """One step of an adapter: a pure map of one simulation's values.

    A step passes on the entries that are not its own, and does nothing where its own are absent:
    the same adapter serves for pairs of latents and observations, and for observations alone.
    """

    @abstractmethod
    def forward(self, data: Data) -> dict[str, Array]:
        """Map the values of one simulation."""

    @abstractmethod
    def describe(self) -> list[str]:
        """What the step does, a line for each decision."""


class Bijection(Transform):
    """A step that can be undone: the only kind allowed on inference variables."""

    @abstractmethod
    def inverse(self, data: Data) -> dict[str, Array]:
        """Undo :meth:`forward`."""

    @abstractmethod
    def log_det_jac(self, data: Data) -> Array:
        """Log absolute determinant of the Jacobian of :meth:`forward` at ``data``, a scalar."""
