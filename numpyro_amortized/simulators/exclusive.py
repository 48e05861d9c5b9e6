# SPDX-License-Identifier: Apache-2.0
"""NumPyro has one stack of handlers and one set of samplers for all threads: models run in turn."""

import threading

__all__ = ["ONE_AT_A_TIME"]

ONE_AT_A_TIME = threading.RLock()  # one lock for both: two could be taken in either order
