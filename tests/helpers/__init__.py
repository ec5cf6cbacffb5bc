"""What several tests need."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS, PACKAGE, CONFIGS = ROOT / "tests", ROOT / "loft_jax", ROOT / "configs"
