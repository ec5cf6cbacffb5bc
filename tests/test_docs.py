"""What the documentation shows runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tickets.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code):
    exec(compile(code, "docs/tickets.md", "exec"), {})


def test_there_is_an_example_on_kernels_from_elsewhere():
    assert any("state_dict" in code for code in EXAMPLES)
