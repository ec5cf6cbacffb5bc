"""Command-line options that choose tickets, shared by the commands that draw and retrain them."""

import argparse
from collections.abc import Sequence

from loft_jax.config import Parser, whole_number
from loft_jax.errors import UserError, format_value
from loft_jax.filters import NO_RULES, NORMS, PRUNED, SCOPES, Rules
from loft_jax.storage import saved_instead


def add_ticket_options(parser: Parser) -> None:
    """Add --scope, --norm and the options of `rules_of`. One that is not given is None: the first of its choices."""
    add = parser.add_argument
    add(
        "--scope",
        choices=SCOPES,
        help="group: remove the same ratio in each filter group; global: remove one ratio over all groups, where\n"
        f"scores are divided by the mean of their group (default: {SCOPES[0]})",
    )
    add(
        "--norm",
        choices=NORMS,
        help="score of a filter. l2, l1: norm of its kernel; bn_scale: absolute scale of its batch norm; fpgm:\n"
        "distance of its kernel from those of its group; whole_group: l2 norm of all its parameters, in every layer\n"
        "that it touches; taylor: what the loss would lose with it, to first order, on training batches\n"
        f"(default: {NORMS[0]})",
    )
    add = parser.add_section("rules", "rules for tickets: groups, numbers of filters").add_argument
    add(
        "--score_batches",
        metavar="N",
        type=whole_number(1),
        help=f"with --norm taylor: on how many training batches it is measured (default: {NO_RULES.score_batches})",
    )
    add(
        "--groups",
        choices=PRUNED,
        help="groups that lose filters. all: every one; paper: all but the first block of each stage, as in the code\n"
        "that LoFT's authors released; for networks whose groups are of blocks, stage1/block1 (default: all)",
    )
    add(
        "--group_ratios",
        metavar="PATTERN=RATIO",
        type=_group_ratio,
        nargs="+",
        help="share removed from groups whose names match, as stage1/*=0.3; of several patterns the last counts",
    )
    add("--keep_whole", metavar="PATTERN", nargs="+", help="groups that lose no filter, as stage1/*")
    add("--at_least", metavar="N", type=whole_number(1), help="filters that stay in every group, if it has so many")
    add(
        "--round_to",
        metavar="N",
        type=whole_number(1),
        help="round the number of filters that stay in a group up to a multiple of N, as accelerators like it: 8",
    )


def rules_of(options: argparse.Namespace) -> Rules:
    """Return the rules that the options of `add_ticket_options` ask for. Raises UserError."""
    if options.score_batches and options.norm != "taylor":
        raise UserError(f"--score_batches {options.score_batches}: goes with --norm taylor; leave it out")
    ratios, whole = tuple(options.group_ratios or ()), tuple(options.keep_whole or ())
    batches = options.score_batches or NO_RULES.score_batches
    return Rules(ratios, whole, options.at_least or 1, options.round_to or 1, batches, options.groups or PRUNED[0])


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


def _group_ratio(text: str) -> tuple[str, float]:
    """Parse PATTERN=RATIO; an argparse type."""
    pattern, equals, share = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"{format_value(text)}: must be PATTERN=RATIO; try stage1/*=0.3")
    return pattern, ratio(share)
