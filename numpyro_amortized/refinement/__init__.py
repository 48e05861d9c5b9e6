# SPDX-License-Identifier: Apache-2.0
"""The steps from an amortized posterior to the exact one."""
