"""A round against its parts, a ticket against the full network, the distance matrix against a loop: as ratios."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from loft_jax.bench.material import random_images, random_variables
from loft_jax.bench.rows import Row, ratio_row
from loft_jax.config import Config
from loft_jax.data import Dataset

CONFIG = Config.model_validate(
    {
        "model": {"name": "preresnet18", "width": 16},
        "data": {"batch_size": 32},
        "loft": {"workers": 4, "local_steps": 16},
        "mesh": {"cpu_devices": 4},
    }
)
# The perceptron of 3 layers, on Fashion-MNIST, of docs/results/ist.md.
IST = Config.model_validate(
    {
        "model": {"name": "mlp", "width": 1024, "options": {"hidden_layers": 2, "norm": "batch", "head_norm": True}},
        "data": {"batch_size": 128, "augment": False},
        "loft": {"workers": 4, "local_steps": 30, "momentum": "reset", "sync": "exchange"},
        "optimizer": {"learning_rate": 0.01, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"},
        "mesh": {"cpu_devices": 4},
    }
)


# As in configs/lottery_lenet300_fashion.yaml.
LENET = Config.model_validate(
    {
        "model": {"name": "lenet300"},
        "data": {"batch_size": 60, "augment": False},
        "loft": {"workers": 1},
        "optimizer": {"name": "adam", "learning_rate": 0.0012, "weight_decay": 0.0, "schedule": "constant"},
    }
)


def all_rows(pairs: int) -> Iterator[Row]:
    """Measure all rows, each with this number of pairs."""
    measures = (pruned_rows, ticket_rows, footrule_rows)
    paired: list[Callable[[], list[Row]]] = [partial(measure, pairs) for measure in measures]
    for measure in [partial(round_rows, pairs), partial(ist_rows, pairs), flops_of_deep_sub_cnn, *paired]:
        yield from measure()


class WholeRound:
    """A LoFT round of a config, on all devices: calling it does one round and waits for it.

    Args:
      fused: whether the local steps of a worker are one program; None for what the backend decides.

    Attributes:
      model, round: the full network, and the programs of the round.
      full_shapes: shapes of the full state.
    """

    def __init__(self, config: Config, dataset: Dataset, *, fused: bool | None = None):
        import jax

        from loft_jax.devices import make_mesh, replicate
        from loft_jax.loft import Round, make_images, starting_state
        from loft_jax.models import make_model

        mesh = make_mesh(config)
        self.model = make_model(config, dataset.num_classes, dataset.image_shape)
        self.round = Round(config, self.model, dataset, mesh, make_images(config, dataset, mesh), fused=fused)
        variables = random_variables(self.model, dataset.image_shape)
        full = starting_state(variables, config, self.round.groups)
        self.full_shapes = jax.eval_shape(lambda: full)
        self._state, self._wait = self.round.place(replicate(full, mesh)), jax.block_until_ready

    def __call__(self) -> None:
        self._finish(*self.round.train_locally(self._state))

    def outside_local_steps(self) -> None:
        """Do a round without its local steps: partition, extract and sync."""
        self._finish(*self.round.partition_and_extract(self._state))

    def local_steps(self) -> None:
        """Do a round without its sync: partition, extract and local steps."""
        self._wait(self.round.train_locally(self._state)[1])

    def _finish(self, masks: Any, workers: Any) -> None:
        self._state, loss = self.round.finish(self._state, masks, workers)
        self._wait((self._state, loss))


def round_rows(pairs: int) -> list[Row]:
    """Compare a LoFT-4 round (preresnet18 of width 16, 32x32 images, batch 32, 16 local steps) with its parts."""
    from loft_jax.models import training_flops
    from loft_jax.train import StepLoop, interleaved

    dataset = random_images(50_000)
    whole = WholeRound(CONFIG, dataset)
    step, batch_size = whole.round.step, CONFIG.data.batch_size
    compact, full = (StepLoop(step, model, dataset, batch_size) for model in (step.model, whole.model))
    steps = CONFIG.loft.workers * CONFIG.loft.local_steps

    round_seconds, loop_seconds = interleaved(whole, lambda: compact(steps), pairs)
    parts_seconds, whole_seconds = interleaved(whole.outside_local_steps, whole, pairs)
    compact_seconds, full_seconds = interleaved(lambda: compact(8), lambda: full(8), pairs)
    work, whole_work = (training_flops(model, dataset.image_shape).computed for model in (step.model, whole.model))
    return [
        ratio_row(
            "images/s of a LoFT-4 round over its compact steps called back to back",
            [CONFIG.images_per_round / s for s in round_seconds],
            [CONFIG.images_per_round / s for s in loop_seconds],
            "images/s",
        ),
        ratio_row("partition, extract and sync over the round", parts_seconds, whole_seconds, "s"),
        ratio_row(
            f"time of the compact over the full step, over their FLOP ratio {work / whole_work:.3f}",
            [s * whole_work / work for s in compact_seconds],
            full_seconds,
            "s",
        ),
    ]


def ist_rows(pairs: int) -> list[Row]:
    """Compare a round of IST-4 (3 layers of 1,024 neurons, batch 128, 30 local steps) with its compact steps."""
    from loft_jax.train import StepLoop, interleaved

    dataset = random_images(60_000, (28, 28, 1))
    whole = WholeRound(IST, dataset)
    compact = StepLoop(whole.round.step, whole.round.step.model, dataset, IST.data.batch_size)
    steps = IST.loft.workers * IST.loft.local_steps
    seconds = interleaved(whole, lambda: compact(steps), pairs)
    whole_speeds, loop_speeds = ([IST.images_per_round / s for s in each] for each in seconds)
    what = "images/s of an IST-4 round over its compact steps called back to back"
    return [ratio_row(what, whole_speeds, loop_speeds, "images/s")]


def pruned_rows(pairs: int) -> list[Row]:
    """Compare a step of LeNet-300-100 with masks of its weights (Adam, batch 60) with one without."""
    from loft_jax.loft import make_local_step
    from loft_jax.models import make_model
    from loft_jax.train import StepLoop, interleaved

    dataset = random_images(1_000, (28, 28, 1))
    network = make_model(LENET, dataset.num_classes, dataset.image_shape)
    step = make_local_step(LENET, network, dataset)
    masked, plain = (StepLoop(step, network, dataset, LENET.data.batch_size, pruned=pruned) for pruned in (True, False))
    seconds = interleaved(lambda: masked(500), lambda: plain(500), pairs)
    return [ratio_row("time of a step with masks over one without, LeNet-300-100", *seconds, "s")]


def ticket_rows(pairs: int) -> list[Row]:
    """Compare an 80 % ticket with the full preresnet18 of width 64: FLOPs and time of a training step."""
    from loft_jax.filters import kept_count
    from loft_jax.loft import make_local_step
    from loft_jax.models import create_model, training_flops
    from loft_jax.train import StepLoop, interleaved

    dataset = random_images(1_000)
    model = create_model(CONFIG.model.name, dataset.num_classes)
    compact = model.with_widths({group.name: kept_count(group.width, 0.8) for group in model.filter_groups()})
    step = make_local_step(CONFIG, model, dataset)
    ticket, full = (StepLoop(step, network, dataset, CONFIG.data.batch_size) for network in (compact, model))
    seconds = interleaved(lambda: ticket(1), lambda: full(1), pairs)
    what = "of an 80 % ticket over the full training step, preresnet18 of width 64"
    work, whole_work = (training_flops(network, dataset.image_shape).computed for network in (compact, model))
    flops = ratio_row(f"FLOPs {what}", [work], [whole_work], "FLOPs/image")
    return [flops, ratio_row(f"time {what}", *seconds, "s")]


def footrule_rows(pairs: int) -> list[Row]:
    """Compare footrule_matrix with a NumPy loop over rows: 16 groups of 512 filters, 200 snapshots."""
    import jax
    import numpy as np

    from loft_jax.filters import footrule_matrix
    from loft_jax.train import interleaved

    rng = np.random.default_rng(0)
    rankings = [np.stack([rng.permutation(512) + 1 for _ in range(200)]).astype(np.int32) for _ in range(16)]

    def in_numpy(ranks: Any) -> Any:
        return np.stack([(np.abs(np.log(row) - np.log(ranks)) / row).sum(axis=1) for row in ranks])

    seconds = interleaved(
        lambda: jax.block_until_ready([footrule_matrix(ranks) for ranks in rankings]),
        lambda: [in_numpy(ranks) for ranks in rankings],
        pairs,
    )
    return [ratio_row("footrule_matrix, 200 snapshots of 16 groups of 512 filters, over a NumPy loop", *seconds, "s")]


def flops_of_deep_sub_cnn() -> list[Row]:
    """Compare FLOPs of a LoFT-4 training step with the full network's: preresnet34, width 64, 32x32 images."""
    from loft_jax.loft import split_groups, sub_cnn
    from loft_jax.models import create_model, training_flops

    model = create_model("preresnet34", 10)
    networks = sub_cnn(model, split_groups(model, CONFIG), CONFIG), model
    compact, full = (training_flops(network, (32, 32, 3)).computed for network in networks)
    return [ratio_row("FLOPs of the LoFT-4 over the full training step, preresnet34", [compact], [full], "FLOPs/image")]
