"""One retraining of a campaign: what it trains, in which directory, and whether that directory agrees with it.

Imports no JAX: a finished campaign is reported at once.
"""

import json
import sys
from dataclasses import dataclass

from loft_jax.config import Config
from loft_jax.errors import UserError
from loft_jax.retrain.summary import mode_name, read_retraining
from loft_jax.storage import METRICS, TICKET, RunDirectory, seed_of
from loft_jax.tickets import Ticket, read_ticket

MODES = ("rewind", "finetune", "lr_rewind", "reinit", "random", "init")
# Those that start from the weights of the snapshot that the ticket was drawn from.
TRAINED = ("finetune", "lr_rewind")
REWINDING = ("rewind", "random", "init")
LABEL = "retraining"


@dataclass(frozen=True)
class Job:
    """One retraining.

    Attributes:
      ticket: ticket to retrain.
      mode: one of `MODES`.
      rewind_to: round whose weights it starts from, in a mode of `REWINDING`; in lr_rewind the completed rounds with
        which it starts, and so the learning rate.
      config: config of the retraining, with its seed.
      directory: RUN/retrain/TICKET/MODE/seedK, MODE with the round where it is not 0.
    """

    ticket: Ticket
    mode: str
    rewind_to: int
    config: Config
    directory: RunDirectory

    @classmethod
    def of(cls, run: RunDirectory, ticket: Ticket, mode: str, rewind_to: int, config: Config) -> "Job":
        """Make a job, with its directory."""
        path = run.retrain / ticket.name / mode_name(mode, rewind_to) / f"seed{config.seed}"
        return cls(ticket, mode, rewind_to, config, RunDirectory(path, LABEL))

    @property
    def what(self) -> str:
        """What tells the rows and states of this retraining from those of others with the same settings."""
        return json.dumps([self.ticket.name, self.ticket.config_hash, self.mode, self.rewind_to, self.ticket.kept])

    def is_finished(self) -> bool:
        """Whether the directory holds the summary of this retraining; says so if it holds another."""
        summary, problem = read_retraining(self.directory, self.ticket.config_hash)
        if problem:
            print(f"warning: {problem}; it is retrained again, from its last checkpoint", file=sys.stderr, flush=True)
        return summary is not None

    @property
    def first_round(self) -> int:
        """Completed rounds with which it starts."""
        return self.rewind_to if self.mode == "lr_rewind" else 0

    def check(self) -> None:
        """Raise UserError if this job, or another seed of it, was trained with other settings or filters before."""
        for metrics in self.directory.path.parent.glob(f"*/{METRICS}"):
            if seed_of(metrics.parent.name) is None:
                continue  # A copy.
            there = RunDirectory(metrics.parent, LABEL)
            same_seed = self.config.model_copy(update={"seed": there.read_config().seed})
            there.check_same(same_seed)
        if not (self.directory.path / TICKET).exists():
            return
        there = read_ticket(self.directory.path, "delete that directory to retrain it")
        same = there.widths == self.ticket.widths if self.mode == "random" else there.kept == self.ticket.kept
        if there.config_hash != self.ticket.config_hash or not (same or self.mode == "init"):
            raise UserError(
                f"{LABEL} {self.directory.path}: was trained with other filters than {self.ticket.name} keeps now; "
                "delete that directory to retrain it"
            )
