"""Tickets: which filters of each group are kept. Drawn from scores, named, written and read back.

Imports no JAX: reading or refusing a ticket does not need it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from loft_jax.config import Fraction
from loft_jax.errors import UserError, did_you_mean, format_value, offer, path_problem
from loft_jax.files import stop_on_write_error, write_atomically
from loft_jax.filters import NO_RULES, NORMS, SCOPES, Norm, Rules, Scope, draw_kept, rules_fields
from loft_jax.storage import TICKET, parse_object

if TYPE_CHECKING:
    from loft_jax.filters import FilterGroup


class Pruning(NamedTuple):
    """Which filters tickets remove: the share with the lowest scores by a norm, in each group or over all groups.

    `rules` is the name of what else was asked of them (`Rules.name`).
    """

    ratio: float
    scope: str = SCOPES[0]
    norm: str = NORMS[0]
    rules: str = ""

    @property
    def share(self) -> str:
        """Human-readable share: "50%", or "50% (global, l1)" if filters are not chosen as in the paper."""
        return f"{100 * self.ratio:.12g}%{self._choice}"

    @property
    def removed(self) -> str:
        """Human-readable text: "50% removed", or "50% removed (global, l1)"."""
        return f"{100 * self.ratio:.12g}% removed{self._choice}"

    @property
    def _choice(self) -> str:
        papers = ((self.scope, SCOPES[0]), (self.norm, NORMS[0]), (self.rules, ""))
        choice = [mine for mine, of_paper in papers if mine != of_paper]
        return f" ({', '.join(choice)})" if choice else ""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Ticket:
    """The kept filters of every group, and how they were chosen.

    Attributes:
      kept: group name -> ascending filter indices.
      ratio: share of the filters removed, in [0, 1).
      scope: "group" (the same ratio in every group, the paper's) or "global" (over all groups together).
      norm: what gave the scores, one of `NORMS`.
      round: round of the snapshot from which it was drawn.
      run: directory of the run.
      config_hash: hash of the run's config.
      rules: what was asked of single groups and of their numbers of filters.
    """

    kept: dict[str, list[int]]
    ratio: Fraction
    scope: Scope
    norm: Norm
    round: int
    run: str
    config_hash: str
    rules: Rules = NO_RULES

    @property
    def name(self) -> str:
        """The name of its directory."""
        return ticket_name(self.round, self.scope, self.norm, self.ratio, self.rules.name)

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of kept filters."""
        return {group: len(kept) for group, kept in self.kept.items()}

    def problem(self) -> str | None:
        """Say why these cannot be the filters that a ticket keeps; None if they can."""
        for name, kept in self.kept.items():
            if not kept or sorted(set(kept)) != kept:
                return f"filter group {name!r} must keep ascending filter indices, at least one"
            if not 0 <= kept[0] <= kept[-1] < 2**31:
                return f"filter group {name!r} keeps filter {kept[0] if kept[0] < 0 else kept[-1]}"
        return None if self.round >= 0 else f"round: {self.round}: must not be negative"

    def redraw(self, scores: Mapping[str, np.ndarray], round_number: int) -> "Ticket":
        """Draw a ticket from the scores of another round, at the same ratio, scope and rules."""
        return replace(self, kept=draw_kept(scores, self.ratio, self.scope, self.rules), round=round_number)

    def write(self, directory: Path) -> None:
        """Write ticket.json, whole or not at all, and make its directory if needed. Raises RunStopped on failure."""
        with stop_on_write_error(directory):
            directory.mkdir(parents=True, exist_ok=True)
        fields = asdict(self)
        del fields["rules"]
        write_atomically(directory / TICKET, json.dumps(fields | rules_fields(self.rules)) + "\n")


def ticket_name(round_number: int, scope: str, norm: str, ratio: float, rules: str = "") -> str:
    """Return r{round}-{scope}-{norm}-{ratio}, for example r40-group-l2-0.5; the name of rules follows, if any."""
    return f"r{round_number}-{scope}-{norm}-{ratio_text(ratio)}" + (f"-{rules}" if rules else "")


def ratio_text(ratio: float) -> str:
    """Format a ratio for names: 0.5, and 0 for 0.0."""
    return f"{ratio:.12g}"


def load_ticket(directory: Path, name: str) -> Ticket:
    """Read tickets/NAME of a run's directory of tickets.

    Raises:
      UserError: there is no such ticket, or its file does not hold a ticket of that name.
    """
    if "/" in name or path_problem(name) or not os.path.lexists(directory / name / TICKET):
        there = sorted(p.parent.name for p in directory.glob(f"*/{TICKET}"))
        otherwise = (
            f"there are {', '.join(there[:20])}" if there else f"draw some: {offer('tickets', directory.parent)}"
        )
        hint = did_you_mean(name, there, otherwise)
        raise UserError(f"--ticket {format_value(name)}: no such ticket in {directory}{hint}")
    ticket = read_ticket(directory / name)
    if ticket.name != name:
        raise UserError(
            f"--ticket {name}: holds the ticket {ticket.name}, and a directory must have the name of its ticket; "
            f"rename the directory to {ticket.name}, and give that name"
        )
    return ticket


def read_ticket(directory: Path, advice: str | None = None) -> Ticket:
    """Read a directory's ticket.json, as RUN/tickets/NAME.

    Raises:
      UserError: it does not hold a ticket; the message ends with the advice, which is to draw it again if None.
    """
    path = directory / TICKET
    advice = advice or f"draw it again: {offer('tickets', directory.parent.parent)}"
    try:
        fields: dict[str, Any] = parse_object(path.read_bytes())
        if "rules" in fields:
            fields = {**fields, "rules": Rules.from_json(fields["rules"])}
        ticket = Ticket(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: holds no ticket ({key}: {first['msg'].lower()}); {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: holds no ticket ({error}); {advice}") from None
    if problem := ticket.problem():
        raise UserError(f"{path}: holds no ticket ({problem}); {advice}")
    return ticket


def check_fits(ticket: Ticket, groups: Sequence["FilterGroup"], run_hash: str) -> None:
    """Raise UserError, naming the group, unless the ticket is of this run and keeps filters that its model has."""
    label = f"ticket {ticket.name}"
    if ticket.config_hash != run_hash:
        raise UserError(
            f"{label}: was drawn from a run of config {ticket.config_hash}, and this run's is {run_hash}; "
            "draw it again with python -m loft_jax.tickets RUN"
        )
    declared = {group.name: group.width for group in groups}
    if differing := sorted(declared.keys() ^ ticket.kept.keys()):
        raise UserError(f"{label}: filter group {differing[0]!r} is not in both the ticket and the model")
    for name, kept in ticket.kept.items():
        if not kept or sorted(set(kept)) != kept:
            raise UserError(f"{label}: filter group {name!r} must keep ascending filter indices, at least one")
        if outside := [i for i in kept if not 0 <= i < declared[name]]:
            raise UserError(
                f"{label}: filter group {name!r} keeps filter {outside[0]}, and the model has {declared[name]}; "
                "draw it again with python -m loft_jax.tickets RUN"
            )
