"""The package as a whole: its commands by name, its doors, and what loading it costs."""

import ast
import importlib
import pkgutil
import subprocess
import sys

import pytest
from helpers import PACKAGE, ROOT

import loft_jax
from loft_jax.__main__ import COMMANDS

PACKAGES = sorted(module.name for module in pkgutil.iter_modules(loft_jax.__path__) if module.ispkg)
# What may be imported from the package: a contract with tools outside.
NAMES = """Config FilterGroup Place UserError __version__ create_model deal_partition draw_partition
expected_footrule explain_filter_groups extract filter_scores find_filter_groups footrule footrule_matrix
image_data load_checkpoint load_dataset merge normalised_footrule pretrain prune
rank_filters retrain_tickets search_tickets write_report"""


def said(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "loft_jax", *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def test_every_command_is_listed_with_a_line_and_runs_by_its_name():
    assert set(COMMANDS) == {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    listed = said().split("commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(len(line.split()) > 1 for line in listed)
    assert said("train", "--help").startswith("usage: python -m loft_jax.train ")
    assert said("--version") == f"loft_jax {loft_jax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: command trian: no such command; did you mean train?\n"),
        (["#"], "error: command '#': no such command; there are train, tickets, retrain, "),
        (["--verison"], "error: unknown option --verison; did you mean --version?; see --help\n"),
        (["train", "--loft.workers", "0"], "error: command line: loft.workers='0': must be greater than or equal to 1"),
    ],
)
def test_what_is_no_command_is_refused_with_the_nearest_one(arguments, message):
    assert said(*arguments, code=2).startswith(message.split("'#'")[0])


def test_the_public_names_are_there_and_typed():
    assert loft_jax.__all__ == sorted(NAMES.split(), key=loft_jax.__all__.index)
    assert set(loft_jax.__all__) == set(NAMES.split())
    for name in loft_jax.__all__:
        assert getattr(loft_jax, name) is not None
    with pytest.raises(AttributeError):
        loft_jax.no_such_name  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_door_names_is_behind_it(package):
    module = importlib.import_module(f"loft_jax.{package}")
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_of_a_door_is_that_of_a_module_behind_it(package):
    """Whoever imports the module first would put it in the place of the name."""
    names = set(getattr(importlib.import_module(f"loft_jax.{package}"), "__all__", ()))
    assert not names & {path.stem for path in (PACKAGE / package).iterdir()}


def imports_of(path):
    """(line, module, names) of every import from this package in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loft_jax."):
            yield node.lineno, node.module.split(".")[1:], [alias.name for alias in node.names]


@pytest.mark.parametrize("package", PACKAGES)
def test_other_packages_come_in_by_the_door(package):
    for path in (PACKAGE / package).rglob("*.py"):
        for line, (other, *inside), names in imports_of(path):
            if other != package and other in PACKAGES:
                where = f"{path.relative_to(ROOT)}:{line}"
                assert not inside, f"{where}: imports from inside {other}; let its __init__.pyi name {names}"
                assert set(names) <= set(importlib.import_module(f"loft_jax.{other}").__all__), where


def test_looking_at_the_package_loads_neither_jax_nor_numpy():
    code = "import loft_jax, sys; loft_jax.Config; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
