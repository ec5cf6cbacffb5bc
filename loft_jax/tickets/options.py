"""Command-line options that say which tickets are meant, shared by the commands that draw and retrain them."""

import argparse
from collections.abc import Sequence

from loft_jax.errors import UserError, format_value
from loft_jax.filters import NORMS, SCOPES
from loft_jax.storage import saved_instead


def add_ticket_options(parser: argparse.ArgumentParser) -> None:
    """--scope and --norm; None where they are not given, which stands for the first of their choices."""
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        help="the same ratio in each filter group, or one over all groups, by scores divided by their group's mean\n"
        f"(default: {SCOPES[0]})",
    )
    parser.add_argument("--norm", choices=NORMS, help=f"of a filter's kernel, its score (default: {NORMS[0]})")


def check_saved(option: str, rounds: Sequence[int], saved: Sequence[int]) -> None:
    """Raise UserError unless all rounds are among the saved ones."""
    for round_number in rounds:
        if round_number not in saved:
            raise UserError(f"{option} {round_number}: no such snapshot; {saved_instead(saved, round_number)}")


def ratio(text: str) -> float:
    """An argparse type: the share of filters removed, in [0, 1)."""
    try:
        if text.isascii() and 0 <= float(text) < 1:
            return abs(float(text))  # -0 is 0
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{format_value(text)}: must be in [0, 1), the share of filters removed; try 0.5")
