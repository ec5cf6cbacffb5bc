"""The table of an accelerator: images/s of local steps, their share of the peak, and the time outside them.

Time on a card is short, so every program is compiled once, in order of worth; each row is printed and written the
moment it is measured; and a row that would not end in time is left out.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from loft_jax.bench.rows import Row
from loft_jax.config import Config
from loft_jax.console import console, make_table

# One measurement takes about this long; it is repeated at least twice.
_SECONDS_A_MEASUREMENT, _LEAST = 1.5, 2
LOCAL_STEPS, EXAMPLES = 16, 50_000


@dataclass(frozen=True)
class Setting:
    """What a row measures.

    Attributes:
      network, width: the model; None for its published width.
      precision, batch: of the computation, and images of a step.
      workers: 1 for plain SGD's full step, more for LoFT.
      library: ours, or PyTorch with torch.compile (its full step only).
    """

    network: str
    width: int | None
    precision: str
    batch: int
    workers: int = 1
    library: str = "ours"

    def __str__(self) -> str:
        method = "full step" if self.workers == 1 else f"LoFT-{self.workers} step"
        width = "" if self.width is None else f" of width {self.width}"
        library = "" if self.library == "ours" else f"{self.library}, "
        return f"{library}{method}, {self.network}{width}, {self.precision}, batch {self.batch}"

    @property
    def config(self) -> Config:
        """The settings of its round: plain SGD is a round of one worker."""
        return Config.model_validate(
            {
                "precision": self.precision,
                "model": {"name": self.network, "width": self.width},
                "data": {"batch_size": self.batch},
                "loft": {"workers": self.workers, "local_steps": LOCAL_STEPS},
                "optimizer": {"learning_rate": 0.01},
            }
        )


def in_order_of_worth(
    networks: Sequence[str], width: int | None, batches: Sequence[int], workers: int, *, torch: bool
) -> list[Setting]:
    """Return all settings: bfloat16 before float32, then by network, our steps at every batch, then PyTorch's."""
    settings = []
    for precision, network in product(("bfloat16", "float32"), networks):
        make = partial(Setting, network, width, precision)
        settings += [make(batch, number) for batch in batches for number in (1, workers)]
        settings += [make(batch, library="PyTorch") for batch in batches] if torch else []
    return settings


def measure_in_time(
    settings: Iterable[Setting],
    measure: Callable[[Setting], Row | None],
    seconds: float | None,
    start: float,
) -> Iterator[Row]:
    """Measure settings; leave out those that would not end in time, if they take as long as the longest row so far.

    Args:
      measure: measures a setting, or returns None if there is nothing to measure.
      seconds: the time for all rows; None for as long as it takes.
      start: when that time began, by `time.perf_counter`.
    """
    longest, left_out = 0.0, []
    for setting in settings:
        begin = time.perf_counter()
        if seconds is not None and begin - start + longest > seconds:
            left_out.append(setting)
            continue
        row, taken = measure(setting), time.perf_counter() - begin
        longest = max(longest, taken)
        if row is not None:
            yield row | {"seconds": taken}
    if left_out:
        print(f"left out, to end within {seconds:g} s: " + "; ".join(map(str, left_out)), flush=True)


class AcceleratorBench:
    """Measures settings on the first device; every row is independent of the others.

    Args:
      repetitions: the most repetitions of a measurement.
      examples: images of the data set, which is kept on the device.
    """

    def __init__(self, repetitions: int, examples: int = EXAMPLES):
        from loft_jax.bench.material import random_images

        self._repetitions, self._dataset = repetitions, random_images(examples)
        self._images_per_second: dict[Setting, float] = {}
        self._torch_sees_no_card = False

    def measure(self, setting: Setting) -> Row | None:
        """Compile and measure one setting; None if it is PyTorch's and PyTorch does not see the card."""
        if setting.library != "ours":
            return self._measure_torch(setting)
        row = self._measure_ours(setting)
        self._images_per_second[setting] = row["images_per_second"]
        return row

    def _measure_ours(self, setting: Setting) -> Row:
        from loft_jax.bench.parts import WholeRound
        from loft_jax.models import training_flops

        config, start = setting.config, time.perf_counter()
        whole = WholeRound(config, self._dataset, fused=True)
        found = _compile_loop(whole)
        whole.local_steps()
        compiled = time.perf_counter() - start
        steps = self._time(whole.local_steps)
        flops = training_flops(whole.round.step.model, self._dataset.image_shape).computed
        row = {
            **_speed(setting, config.images_per_round, steps),
            "ms_a_step": 1e3 * statistics.median(steps) / (config.loft.workers * LOCAL_STEPS),
            "flops_per_image": flops,
            "compile_seconds": compiled,
            **_predict(found, config),
        }
        if (peak := _peak_flops(config)) is not None:
            row["share_of_peak"] = row["images_per_second"] * flops / peak
        if setting.workers > 1:
            rounds, outside = self._time(whole), self._time(whole.outside_local_steps)
            row["share_outside_local_steps"] = statistics.median(outside) / statistics.median(rounds)
        return row

    def _measure_torch(self, setting: Setting) -> Row | None:
        import jax

        from loft_jax.bench.sides import run_alone
        from loft_jax.bench.torch_card import compiled_steps

        if self._torch_sees_no_card:
            return None
        device = "cpu" if jax.devices()[0].platform == "cpu" else "cuda"
        found = run_alone(compiled_steps, setting.config, self._dataset.examples, self._repetitions, device)
        if found is None:
            self._torch_sees_no_card = True
            print("PyTorch sees no card here, so it has no rows", flush=True)
            return None
        compiled, steps = found
        row = _speed(setting, setting.config.images_per_round, steps) | {"compile_seconds": compiled}
        row["ms_a_step"] = 1e3 * statistics.median(steps) / LOCAL_STEPS
        if ours := self._images_per_second.get(replace(setting, library="ours")):
            row["ours_over_pytorch"] = ours / row["images_per_second"]
        return row

    def _time(self, run: Callable[[], None]) -> list[float]:
        return repeat(run, self._repetitions)


def repeat(run: Callable[[], object], most: int) -> list[float]:
    """Return the seconds of repetitions, after one that does not count: as many as take a moment, at most `most`."""
    run()
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < _LEAST or sum(seconds) < _SECONDS_A_MEASUREMENT):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _speed(setting: Setting, images: int, seconds: Sequence[float]) -> Row:
    return {
        "what": str(setting),
        "images_per_second": images / statistics.median(seconds),
        "least": images / max(seconds),
        "largest": images / min(seconds),
        "repetitions": len(seconds),
    }


def _compile_loop(whole: Any) -> Any:
    """Compile the local steps of a worker. Returns what the compiler says of them, their FLOPs as they are traced."""
    from loft_jax.cost import Program
    from loft_jax.models import count_flops

    program = whole.round.programs(whole.full_shapes)["loop"]
    traced = program.trace()
    found = Program.from_compiled("loop", program, traced.lower().compile(), kernels=True)
    return replace(found, flops=count_flops(traced))


def _predict(found: Any, config: Config) -> Row:
    """Return kernels and bytes of a step of the compiled loop, and its time at the chip's peaks if they are known."""
    from loft_jax.cost import kernels_of_steps, program_seconds, sum_kernels

    kernels, moved = sum_kernels(kernels_of_steps(found.kernels))
    row: Row = {"kernels_a_step": kernels / LOCAL_STEPS, "bytes_a_step": moved / LOCAL_STEPS}
    chip = _chip()
    seconds = program_seconds(found, chip, config.precision) if chip else None
    if seconds is not None:
        row |= {"predicted_ms_a_step": 1e3 * seconds.total / LOCAL_STEPS, "predicted_bound": seconds.bound}
    return row


def _chip() -> Any:
    import jax

    from loft_jax.devices import find_chip

    return find_chip(jax.devices()[0].device_kind)


def _peak_flops(config: Config) -> float | None:
    peak = _chip().peak_tflops(config.precision) if _chip() else None
    return None if peak is None else peak * 1e12


def print_accelerator_row(row: Row) -> None:
    """Print a row on one line, the moment it is measured."""
    extras = [
        f"{row[key]:.1%} {text}"
        for key, text in (("share_of_peak", "of peak"), ("share_outside_local_steps", "of a round outside local steps"))
        if key in row
    ]
    if "ours_over_pytorch" in row:
        extras.append(f"ours {row['ours_over_pytorch']:.2f} of it")
    print(", ".join([f"{row['images_per_second']:>9,.0f} images/s  {row['what']}", *extras]), flush=True)


_COLUMNS = {
    "images/s": ("images_per_second", "{:,.0f}"),
    "ms/step": ("ms_a_step", "{:.3f}"),
    "computed": ("predicted_ms_a_step", "{:.3f}"),
    "of peak": ("share_of_peak", "{:.1%}"),
    "outside": ("share_outside_local_steps", "{:.1%}"),
    "/torch": ("ours_over_pytorch", "{:.2f}"),
}


def print_accelerator_table(machine: Row, rows: Sequence[Row]) -> None:
    """Print all rows as a table, titled by the machine."""
    shown = {heading: column for heading, column in _COLUMNS.items() if any(column[0] in row for row in rows)}
    table = make_table(", ".join(f"{key} {value}" for key, value in machine.items()), "what", *shown)
    for row in rows:
        table.add_row(row["what"], *(text.format(row[key]) if key in row else "" for key, text in shown.values()))
    console().print(table)
