"""README's map of the modules is true: every module is on it, and imports point down."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "loft_jax"


def layers() -> dict[str, int]:
    """Module or subpackage name -> its line on README's map."""
    (table,) = re.findall(r"```\n(train\.py.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return {
        name: line
        for line, text in enumerate(table.splitlines())
        for name in re.findall(r"(\w+)(?:\.py|/)(?=\s)", text)
    }


def imported_modules(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[1] for name in names if name.startswith("loft_jax.")}


def test_every_module_is_on_the_map():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert set(layers()) == modules - {"__init__"}


def test_imports_point_down_the_map():
    line = layers()
    upward = []
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module != "__init__":
            upward += [(module, name) for name in imported_modules(path) if line[name] < line[module]]
    assert upward == []
