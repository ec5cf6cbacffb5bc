"""Checkpoints from anywhere as states of one network, whose filters can be ranked."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from loft_jax.distances.layers import Layer, Layout, find_layers, match_layers
from loft_jax.errors import UserError
from loft_jax.filters import (
    NO_RULES,
    FilterGroup,
    Norm,
    Rules,
    Scope,
    draw_kept,
    score_filters,
)
from loft_jax.storage import RunDirectory, read_array_file
from loft_jax.tickets import Ticket, finite_scores

Scores = dict[str, np.ndarray]


class Checkpoints:
    """The layers that all checkpoints have, and the scores of their filters. One file at a time is in memory.

    Args:
      paths: of the checkpoints, in the order of training.
      norm: what gives the scores.
      out: where the results are written.
      layout: of all kernels; None to tell it for each file.
      progress: wraps the paths, to show progress while they are read.

    Attributes:
      norm: what gives the scores.
      names: short names of the checkpoints, all different.
      layouts: of each of them.
      rounds: their numbers, from 0.
      groups: a group for each layer that all of them have.
      unmatched: what not all of them have, a line each.

    Raises:
      UserError: a file cannot be read or has no kernels, a score is not finite, or no layer is in all files.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        norm: Norm,
        out: Path,
        layout: Layout | None = None,
        progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
    ):
        self.paths, self.path, self.directory = list(paths), out, RunDirectory(out, "--out")
        self.config_hash: str | None = None
        self.names, self.rounds = short_names(paths), list(range(len(paths)))
        self.layouts: list[Layout] = []
        layers: list[list[Layer]] = []
        self.norm, self._scores = norm, list[Scores]()
        for path in progress(self.paths):
            arrays = read_array_file(path, str(path))
            found_layout, found = find_layers(arrays, str(path), layout)
            self.layouts.append(found_layout)
            layers.append(found)
            kernels = {layer.path: np.asarray(arrays[layer.path], np.float32) for layer in found}
            groups = [layer.group for layer in found]
            self._scores.append(finite_scores(kernels, partial(score_filters, groups=groups, norm=norm), str(path)))
        common, self.unmatched = match_layers(list(zip(self.names, layers, strict=True)))
        self.groups: tuple[FilterGroup, ...] = tuple(layer.group for layer in layers[0] if layer.name in set(common))

    def scores(self, round_number: int, norm: Norm, batches: int = NO_RULES.score_batches) -> Scores:
        """Return the scores of every layer of a checkpoint: float32 [n]."""
        assert norm == self.norm, "the scores were computed when the files were read"
        return {group.name: self._scores[round_number][group.name] for group in self.groups}

    def ticket(
        self,
        scores: Scores,
        round_number: int,
        ratio: float,
        scope: Scope,
        norm: Norm,
        rules: Rules = NO_RULES,
    ) -> Ticket:
        """Draw a ticket from a checkpoint's scores; its run is the checkpoint's file."""
        kept = draw_kept(scores, ratio, scope, rules)
        return Ticket(kept, ratio, scope, norm, round_number, str(self.paths[round_number]), "", rules)

    def check_rules(self, rules: Rules) -> None:
        """Raise UserError unless each pattern of the rules matches one of the layers."""
        try:
            rules.check(group.name for group in self.groups)
        except ValueError as error:
            raise UserError(str(error)) from None


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of paths that distinguish them, without suffixes where these are not needed."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        short = [
            str(Path(name).with_suffix("")) if path.is_file() else name for name, path in zip(names, paths, strict=True)
        ]
        for some in (short, names):
            if len(set(some)) == len(paths):
                return some
    return [str(path) for path in paths]
