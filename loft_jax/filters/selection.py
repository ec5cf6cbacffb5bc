"""Selection of the filters that stay when a share of them is removed. Imports no JAX."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np

Scope, Norm = Literal["group", "global"], Literal["l2", "l1", "bn_scale", "fpgm", "whole_group", "taylor"]
Pruned = Literal["all", "paper"]
SCOPES, NORMS, PRUNED = get_args(Scope), get_args(Norm), get_args(Pruned)

# Of declared groups, "stage2/block1", and of traced ones, "stage2_block1/conv1".
_BLOCK = re.compile(r"(?:^|/)stage[0-9]+[/_]block([0-9]+)(?:/|$)")


@dataclass(frozen=True)
class Rules:
    """Which groups do not lose the share that all groups lose, which numbers of filters may stay, and how they score.

    Patterns are those of a shell, compared with the whole name of a group: "stage1/*", "*/block1".

    Attributes:
      ratios: (pattern, share removed) pairs. A group whose name matches loses that share of its own filters, also in
        scope "global"; of several patterns the last one counts.
      keep_whole: patterns of groups that lose no filter.
      at_least: the fewest filters that stay in a group that has so many.
      round_to: the number that stays is rounded up to a multiple of this, or to the whole group.
      score_batches: training batches on which scores that need some are measured.
      groups: "all", or "paper": the first block of every stage loses no filter, as in the code that LoFT's authors
        released.

    Raises ValueError if one of them is out of range or of another type.
    """

    ratios: tuple[tuple[str, float], ...] = ()
    keep_whole: tuple[str, ...] = ()
    at_least: int = 1
    round_to: int = 1
    score_batches: int = 8
    groups: Pruned = "all"

    def __post_init__(self) -> None:
        for pattern, ratio in self.ratios:
            if not isinstance(pattern, str):
                raise ValueError(f"rules: {pattern!r} must be the pattern of a group's name")
            if not isinstance(ratio, float | int) or not 0 <= ratio < 1:
                raise ValueError(f"rules: the ratio of {pattern!r}, {ratio!r}, must be in [0, 1)")
        if not all(isinstance(pattern, str) for pattern in self.keep_whole):
            raise ValueError(f"rules: keep_whole={self.keep_whole!r} must be patterns of groups' names")
        for name in ("at_least", "round_to", "score_batches"):
            if type(number := getattr(self, name)) is not int or number < 1:
                raise ValueError(f"rules: {name}={number!r} must be an integer of at least 1")
        if self.groups not in PRUNED:
            raise ValueError(f"rules: groups={self.groups!r} must be one of {', '.join(PRUNED)}")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Rules":
        """Return the rules that `asdict` gave, after JSON has made lists of their tuples. Raises ValueError."""
        try:
            ratios = tuple((pattern, ratio) for pattern, ratio in fields.get("ratios", ()))
            others: dict[str, Any] = {key: value for key, value in fields.items() if key != "name"}
            others |= {"ratios": ratios, "keep_whole": tuple(fields.get("keep_whole", ()))}
            return cls(**others)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"rules: {error}") from None

    @property
    def name(self) -> str:
        """What distinguishes tickets of these rules in names: "" for none, "least4-by8", "by8-1f0c9a" with patterns."""
        parts = [] if self.groups == "all" else [self.groups]
        parts += [f"least{self.at_least}"] if self.at_least > 1 else []
        parts += [f"by{self.round_to}"] if self.round_to > 1 else []
        parts += [f"on{self.score_batches}"] if self.score_batches != Rules.score_batches else []
        if self.ratios or self.keep_whole:
            text = json.dumps([self.ratios, self.keep_whole])
            parts.append(hashlib.sha256(text.encode()).hexdigest()[:6])
        return "-".join(parts)

    @property
    def description(self) -> str:
        """The rules in words: "stage1/* loses 0.3; head stays whole; at least 4 stay; multiples of 8"."""
        parts = [] if self.groups == "all" else ["the first block of each stage stays whole"]
        parts += [f"{pattern} loses {ratio:g}" for pattern, ratio in self.ratios]
        parts += [f"{pattern} stays whole" for pattern in self.keep_whole]
        parts += [f"at least {self.at_least} stay"] if self.at_least > 1 else []
        parts += [f"multiples of {self.round_to}"] if self.round_to > 1 else []
        parts += [f"scored on {self.score_batches} batches"] if self.score_batches != Rules.score_batches else []
        return "; ".join(parts)

    def check(self, groups: Iterable[str]) -> None:
        """Raise ValueError, naming the pattern, unless each pattern matches the name of a group.

        Also if `groups` is "paper", and no group is in a block, or all are in the first one of a stage.
        """
        groups = list(groups)
        if self.groups == "paper":
            later = [group for group in groups if (block := _BLOCK.search(group)) and int(block[1]) > 1]
            if not later:
                few = ", ".join(groups[:12]) + (", ..." if len(groups) > 12 else "")
                raise ValueError(
                    "--groups paper: keeps the first block of every stage whole, and no filter group is of a later "
                    f"one, as stage1/block2; there are {few}; use --keep_whole PATTERN for what is to stay whole"
                )
        for pattern in (*self.keep_whole, *(pattern for pattern, _ in self.ratios)):
            if not any(fnmatchcase(group, pattern) for group in groups):
                few = ", ".join(groups[:12]) + (", ..." if len(groups) > 12 else "")
                raise ValueError(f"pattern {pattern!r}: matches no filter group; there are {few}")

    def own_ratio(self, group: str) -> float | None:
        """Return the share that a group loses by a rule of its own; None if it has none."""
        block = _BLOCK.search(group) if self.groups == "paper" else None
        if (block and block[1] == "1") or any(fnmatchcase(group, pattern) for pattern in self.keep_whole):
            return 0.0
        return next((ratio for pattern, ratio in reversed(self.ratios) if fnmatchcase(group, pattern)), None)

    def allowed(self, count: int, n: int) -> int:
        """Return the number of a group's n filters that stay instead of `count`."""
        return min(n, -(-max(count, self.at_least) // self.round_to) * self.round_to)


NO_RULES = Rules()


def draw_kept(
    scores: Mapping[str, np.ndarray], ratio: float, scope: str, rules: Rules = NO_RULES
) -> dict[str, list[int]]:
    """Choose the filters that stay when a share of them, those with the lowest scores, is removed.

    Args:
      scores: group name -> float [n], finite.
      ratio: share removed, in [0, 1).
      scope: "group": of each group max(1, n - floor(ratio n)) filters stay. "global": so many of the filters of all
        groups together, by scores divided by their group's mean; the best filter of every group stays.
      rules: for which groups and numbers this does not hold.

    Returns:
      Group name -> ascending indices, at least one. Of filters with equal scores the lower index stays.

    Raises:
      ValueError: ratio or scope out of range, or a pattern of the rules matches no group.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}: must be in [0, 1), the share of filters removed; try 0.5")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: must be one of {', '.join(SCOPES)}")
    rules.check(scores)
    own = {name: rules.own_ratio(name) for name in scores}
    others = {name: values for name, values in scores.items() if own[name] is None}
    counts = {name: kept_count(len(scores[name]), share) for name, share in own.items() if share is not None}
    if scope == "group":
        counts |= {name: kept_count(len(values), ratio) for name, values in others.items()}
    elif others:
        counts |= {name: len(kept) for name, kept in _draw_globally(others, ratio).items()}
    return {
        name: sorted(int(i) for i in _order(values)[: rules.allowed(counts[name], len(values))])
        for name, values in scores.items()
    }


def rules_fields(rules: Rules) -> dict[str, Any]:
    """Return the rules for a file: {} for none."""
    return {} if rules == NO_RULES else {"rules": {"name": rules.name, **asdict(rules)}}


def kept_count(n: int, ratio: float) -> int:
    """Count the filters of n that stay when this share is removed: max(1, n - floor(ratio n))."""
    # As a float, 0.29 * 100 is a little less than 29.
    return max(1, n - math.floor(ratio * n + 1e-9))


def kept_overlaps(kept: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """Compute intersection over union of each pair of kept sets [T] of n filters: float32 [T, T]."""
    held = np.zeros((len(kept), n), np.float32)
    for row, indices in zip(held, kept, strict=True):
        row[list(indices)] = 1
    shared, sizes = held @ held.T, held.sum(axis=1)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def _draw_globally(scores: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    names = list(scores)
    # In a group whose filters are all zero the mean is zero: its scores stay zero.
    relative = [values / (values.mean() or 1) for values in scores.values()]
    best = [_order(values)[0] for values in scores.values()]
    owner = np.repeat(np.arange(len(names)), [len(values) for values in relative])
    index = np.concatenate([np.arange(len(values)) for values in relative])
    reserved = index == np.array(best)[owner]
    order = np.lexsort((-np.concatenate(relative), ~reserved))
    order = order[: max(len(names), kept_count(len(order), ratio))]
    return {name: index[order[owner[order] == number]] for number, name in enumerate(names)}


def _order(values: Any) -> np.ndarray:
    return np.argsort(-np.asarray(values), kind="stable")
