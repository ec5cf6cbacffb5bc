"""Speed, as ratios in one run: python -m loft_jax.bench [--json FILE]

Each timed row runs two programs in turn, A B A B ..., and gives the median of the ratios A/B of the pairs. Absolute
times depend on the machine and on its other work, ratios much less. FLOPs are those that XLA counts.
"""

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from loft_jax.config import Config, Parser, run_command, whole_number
from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import write_atomically

CONFIG = Config.model_validate(
    {
        "model": {"name": "preresnet18", "width": 16},
        "data": {"batch_size": 32},
        "loft": {"workers": 4, "local_steps": 16},
        "mesh": {"cpu_devices": 4},
    }
)

Row = dict[str, Any]


def main() -> None:
    parser = Parser("python -m loft_jax.bench", __doc__)
    parser.add_argument("--pairs", type=whole_number(1), default=7, help="pairs A B of each row (default: 7)")
    parser.add_argument("--json", metavar="FILE", help="also write the table into this file")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_writable(arguments.json)
    from loft_jax.devices import configure_jax

    configure_jax(CONFIG)
    rows = []
    paired = (partial(measure, arguments.pairs) for measure in (ticket_rows, footrule_rows))
    for measure in (RoundBench(arguments.pairs).rows, flops_of_deep_sub_cnn, *paired):
        for row in measure():
            rows.append(row)
            print(f"{row['ratio']:.3f}  {row['what']}", flush=True)
    report = {"setting": CONFIG.model_dump(), "machine": machine(), "rows": rows}
    print_table(report)
    if arguments.json is not None:
        write_atomically(Path(arguments.json), json.dumps(report, indent=2) + "\n")


def check_writable(file: str) -> None:
    """Raise UserError if the table cannot be written into a file. Called first, because measuring takes minutes."""
    if problem := path_problem(file):
        raise UserError(f"--json {format_value(file)}: {problem}; use the name of a file")
    if not Path(file).absolute().parent.is_dir():
        raise UserError(f"--json {file}: its directory does not exist; make it first")
    if Path(file).is_dir():
        raise UserError(f"--json {file}: is a directory; use the name of a file")


class RoundBench:
    """Compares a LoFT-4 round (preresnet18 of width 16, 32x32 images, batch 32, 16 local steps) with its parts."""

    def __init__(self, pairs: int):
        import jax

        from loft_jax.devices import make_mesh, replicate
        from loft_jax.loft import Round, initial_state, make_images
        from loft_jax.models import create_model

        self._pairs, dataset, mesh = pairs, random_images(50_000), make_mesh(CONFIG)
        self._dataset = dataset
        self._model = create_model(CONFIG.model.name, dataset.num_classes, width=CONFIG.model.width)
        self._round = Round(CONFIG, self._model, dataset, mesh, make_images(CONFIG, dataset, mesh))
        shape = dataset.image_shape
        self._state = replicate(jax.jit(lambda: initial_state(self._model, CONFIG, shape))(), mesh)

    def rows(self) -> list[Row]:
        """Measure all rows."""
        from loft_jax.train import StepLoop, interleaved

        step, batch_size = self._round.step, CONFIG.data.batch_size
        compact, full = (StepLoop(step, model, self._dataset, batch_size) for model in (step.model, self._model))
        steps = CONFIG.loft.workers * CONFIG.loft.local_steps

        round_seconds, loop_seconds = interleaved(self._whole_round, lambda: compact(steps), self._pairs)
        parts_seconds, whole_seconds = interleaved(self._outside_local_steps, self._whole_round, self._pairs)
        compact_seconds, full_seconds = interleaved(lambda: compact(8), lambda: full(8), self._pairs)
        return [
            ratio_row(
                "images/s of a LoFT-4 round over its compact steps called back to back",
                [CONFIG.images_per_round / s for s in round_seconds],
                [CONFIG.images_per_round / s for s in loop_seconds],
                "images/s",
            ),
            ratio_row("partition, extract and sync over the round", parts_seconds, whole_seconds, "s"),
            ratio_row(
                f"time of the compact over the full step, over their FLOP ratio {compact.flops / full.flops:.3f}",
                [s * full.flops / compact.flops for s in compact_seconds],
                full_seconds,
                "s",
            ),
        ]

    def _whole_round(self) -> None:
        masks, workers = self._round.train_locally(self._state)
        self._state, loss = self._round.finish(self._state, masks, workers)
        loss.block_until_ready()

    def _outside_local_steps(self) -> None:
        masks, workers = self._round.partition_and_extract(self._state)
        self._state, loss = self._round.finish(self._state, masks, workers)
        loss.block_until_ready()


def ticket_rows(pairs: int) -> list[Row]:
    """Compare an 80 % ticket with the full preresnet18 of width 64: FLOPs and time of a training step."""
    from loft_jax.filters import kept_count
    from loft_jax.loft import make_local_step
    from loft_jax.models import create_model
    from loft_jax.train import StepLoop, interleaved

    dataset = random_images(1_000)
    model = create_model(CONFIG.model.name, dataset.num_classes)
    compact = model.with_widths({group.name: kept_count(group.width, 0.8) for group in model.filter_groups()})
    step = make_local_step(CONFIG, model, dataset)
    ticket, full = (StepLoop(step, network, dataset, CONFIG.data.batch_size) for network in (compact, model))
    seconds = interleaved(lambda: ticket(1), lambda: full(1), pairs)
    what = "of an 80 % ticket over the full training step, preresnet18 of width 64"
    flops = ratio_row(f"FLOPs {what}", [ticket.flops], [full.flops], "FLOPs")
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
    compact, full = (training_flops(network, (32, 32, 3)) for network in networks)
    return [ratio_row("FLOPs of the LoFT-4 over the full training step, preresnet34", [compact], [full], "FLOPs/image")]


def random_images(examples: int) -> Any:
    """Make a data set of random 32x32 images in 10 classes."""
    import numpy as np

    from loft_jax.data import Dataset

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(examples, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, size=examples).astype(np.int32)
    return Dataset("random", images, labels, images[:10], labels[:10], num_classes=10, crop_padding=4, flip=True)


def ratio_row(what: str, a: list[float], b: list[float], unit: str) -> Row:
    """Make a row: the median, least and largest of the ratios a/b of the pairs, and the medians of a and b."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {
        "what": what,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "pairs": len(ratios),
        "a": statistics.median(a),
        "b": statistics.median(b),
        "unit": unit,
    }


def machine() -> Row:
    """Describe the machine that the figures were measured on."""
    import os

    import jax

    return {
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def print_table(report: Row) -> None:
    """Print the rows as a table."""
    from rich.table import Table

    from loft_jax.console import console

    table = Table(title=", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    for heading in ("A over B", "ratio (median)", "least", "largest", "A", "B"):
        table.add_column(heading)
    for row in report["rows"]:
        spread = [f"{row[key]:.3f}" for key in ("ratio", "least", "largest")]
        table.add_row(row["what"], *spread, *(f"{row[key]:,.4g} {row['unit']}" for key in ("a", "b")))
    console().print(table)


if __name__ == "__main__":
    run_command(main)
