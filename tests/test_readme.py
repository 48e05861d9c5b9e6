# SPDX-License-Identifier: Apache-2.0
"""The code of the README runs as it stands there, trained for less."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_there_is_an_example():
    assert BLOCKS and all("epochs=20" in block for block in BLOCKS if ".fit(" in block)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_block(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = block.replace("epochs=20", "epochs=1")
    exec(compile(source, README.name, "exec"), {"__name__": "readme"})
    assert "theta[7]" in capsys.readouterr().out
