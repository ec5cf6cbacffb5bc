"""Decides whether the ticket has appeared: how far the ranking of filters moves from one snapshot to the next."""

import statistics
from collections.abc import Sequence
from typing import Any

import jax

from loft_jax.config import Train
from loft_jax.filters import FilterGroup, filter_scores, normalised_footrule, rank_filters

DISTANCES = ("distance/worst", "distance/mean")

Row = dict[str, Any]


class TicketWatch:
    """Watches for `train.stop_when`: the normalised footrule from each snapshot's ranking to that of the one before.

    Give it only the snapshots for which `Config.stop_check_is_due`.
    """

    def __init__(self, settings: Train, groups: Sequence[FilterGroup]):
        assert settings.stop_when is not None, "there is nothing to watch for"
        self._settings, self._groups, self._stop_when = settings, tuple(groups), settings.stop_when
        self._figure = f"distance/{settings.stop_groups}"
        self._previous: dict[str, jax.Array] | None = None
        self._figures: list[float] = []

    def resume(self, newest: Any, rows: Sequence[Row]) -> None:
        """Continue after a stop, given the variables of the newest snapshot observed and the rows of the run."""
        self._previous = self._rank(newest)
        self._figures = [row[self._figure] for row in rows if self._figure in row]

    def lacking(self, rows: Sequence[Row], judged: Sequence[int]) -> list[int]:
        """Return those of the judged rounds whose figure decides now, and is in no row."""
        known = {row["round"] for row in rows if self._figure in row}
        return [number for number in judged[-self._settings.stop_snapshots :] if number not in known]

    def observe(self, variables: Any) -> Row:
        """Return the distances of a snapshot from the one before, worst group and mean; {} for the first snapshot."""
        before, self._previous = self._previous, self._rank(variables)
        if before is None:
            return {}
        distances = jax.device_get({name: normalised_footrule(before[name], self._previous[name]) for name in before})
        values = [float(distance) for distance in distances.values()]
        row = dict(zip(DISTANCES, (max(values), statistics.fmean(values)), strict=True))
        self._figures.append(row[self._figure])
        return row

    @property
    def reason(self) -> str | None:
        """Why the run ends here, with the figures; None while it continues."""
        settings = self._settings
        last = self._figures[-settings.stop_snapshots :]
        if len(last) < settings.stop_snapshots or max(last) >= self._stop_when:
            return None
        which = "the group that moved most" if settings.stop_groups == "worst" else "the mean over groups"
        return (
            f"the ticket has appeared: over {settings.snapshot_every} rounds the filter distance ({which}, 1 is "
            f"chance) was {', '.join(f'{figure:.4f}' for figure in last)}, below train.stop_when={self._stop_when:g}"
        )

    def _rank(self, variables: Any) -> dict[str, jax.Array]:
        scores = filter_scores({"params": variables["params"]}, self._groups)
        return {name: rank_filters(values) for name, values in scores.items()}
