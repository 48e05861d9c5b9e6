# SPDX-License-Identifier: Apache-2.0
"""These tests compile much and run little."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def unoptimized_everywhere(unoptimized_module):
    """See ``unoptimized_module``."""
