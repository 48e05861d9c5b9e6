# SPDX-License-Identifier: Apache-2.0
"""The measured claims of the README, each one command; run as ``python -m benchmarks.<name>``."""
