"""Command-line options that choose tickets, shared by the commands that draw and retrain them."""

import argparse
from collections.abc import Sequence

from loft_jax.errors import UserError, format_value
from loft_jax.filters import NORMS, SCOPES
from loft_jax.storage import saved_instead


def add_ticket_options(parser: argparse.ArgumentParser) -> None:
    """Add --scope and --norm. An option that is not given is None, which means the first of its choices."""
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        help="group: remove the same ratio in each filter group; global: remove one ratio over all groups, where\n"
        f"scores are divided by the mean of their group (default: {SCOPES[0]})",
    )
    parser.add_argument("--norm", choices=NORMS, help=f"norm of a filter's kernel: its score (default: {NORMS[0]})")


def check_saved(option: str, rounds: Sequence[int], saved: Sequence[int]) -> None:
    """Raise UserError unless all `rounds` were saved."""
    for round_number in rounds:
        if round_number not in saved:
            raise UserError(f"{option} {round_number}: no such snapshot; {saved_instead(saved, round_number)}")


def ratio(text: str) -> float:
    """Parse the share of filters removed, in [0, 1); an argparse type."""
    try:
        if text.isascii() and 0 <= float(text) < 1:
            return abs(float(text))  # -0 is 0
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{format_value(text)}: must be in [0, 1), the share of filters removed; try 0.5")
