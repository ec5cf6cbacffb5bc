"""What the documentation shows runs."""

import re
import sys

import numpy as np
import pytest
from helpers import ROOT

from loft_jax.tickets import __main__ as tickets

EXAMPLES = [
    (page, code)
    for page in ("README.md", "docs/guides/tickets.md")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
]
# The tests' run in place of README's: narrower and shorter.
AS_HERE = {"num_classes=10)": "num_classes=10, width=4)", "r40-": "r6-"}


@pytest.fixture
def readmes_run(run, monkeypatch):
    """`runs/digits` in the current directory, with its tickets exported."""
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs/digits")
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("loft_jax.devices.setup.configure_jax", lambda config: None)
    monkeypatch.setattr(sys, "argv", ["tickets", "runs/digits", "--ratios", "0.5", "--export"])
    tickets.main()


@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_an_example_runs(page, code, readmes_run):
    for shown, here in AS_HERE.items():
        code = code.replace(shown, here)
    names = {}
    exec(compile(code, page, "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (360, 10)
    if "variables" in names:
        logits = names["model"].apply(names["variables"], np.zeros((1, 8, 8, 1), np.float32))
        assert logits.shape == (1, 10)


def test_the_pages_have_the_examples_that_users_need():
    text = "".join(code for _, code in EXAMPLES)
    for needed in ("state_dict", "load_checkpoint", "load_dataset", "load_file"):
        assert needed in text, needed
