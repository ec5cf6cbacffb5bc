"""The figure that decides between settings: accuracy at the end of training against all bytes that were sent."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from loft_jax.errors import format_value
from loft_jax.report.chart import COLOURS, FAINT, INK, Chart, run_style, show_with_run
from loft_jax.report.comparison import Comparison
from loft_jax.report.curves import moved_bytes
from loft_jax.report.run_files import RunFiles


@dataclass(frozen=True)
class Setting:
    """The finished runs of one setting, which differ in their seeds.

    Attributes:
      first: number of its first run in its comparison.
      name: for tables and figures.
      sent: bytes that all devices sent in one run.
      accuracies: test accuracies of the last round, fractions.
    """

    first: int
    name: str
    sent: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean test accuracy."""
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Sample deviation of the accuracy; None of one run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def settings_of(comparison: Comparison) -> list[Setting]:
    """Return the settings that have a finished run whose bytes are known, in the order of runs. A seed counts once."""
    # On other meshes the same setting sends other bytes.
    found: dict[tuple[str, float], dict[int, tuple[int, RunFiles]]] = {}
    for number, run in enumerate(comparison.runs):
        if run.summary and (sent := moved_bytes(run)) is not None:
            setting = run.config.model_copy(update={"seed": 0}).hash(), sent
            found.setdefault(setting, {}).setdefault(run.config.seed, (number, run))
    methods = [next(iter(some.values()))[1].config.method for some in found.values()]
    settings = []
    for method, (_, sent), some in zip(methods, found, found.values(), strict=True):
        (first, run), *_ = some.values()
        name = method if methods.count(method) == 1 else f"{method} ({_setting_name(run)})"
        accuracies = tuple(each.summary["test/accuracy"] for _, each in some.values() if each.summary)
        settings.append(Setting(first, name, sent, accuracies))
    return settings


def front(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that no other one beats, by fewer bytes and at least the accuracy; fewest bytes first."""
    best: list[Setting] = []
    for setting in sorted(settings, key=lambda setting: (setting.sent, -setting.accuracy)):
        if not best or setting.accuracy > best[-1].accuracy:
            best.append(setting)
    return best


def accuracy_by_setting(name: str, comparison: Comparison) -> Chart | None:
    """A point for each setting, with its deviation over seeds, and the front; None with fewer than three that send."""
    settings = settings_of(comparison)
    sending, silent = [s for s in settings if s.sent], [s for s in settings if not s.sent]
    if len(sending) < 3:
        return None
    caption = (
        "Test accuracy in the last round against the bytes that all devices sent in training, in one run. Bars: sample "
        "deviation over seeds. Higher and further left is better; no setting is both than one on the line."
    )
    caption += " Dotted: trains on one device and sends nothing." if silent else ""
    chart = Chart(name, "What each setting sends, and its accuracy", caption, size=(9, 4), wide=True)
    ax, axis = chart.figure.subplots(), EngFormatter(unit="B")
    best = front(sending)
    ax.step([s.sent for s in best], [100 * s.accuracy for s in best], where="post", color=FAINT, zorder=1)
    for number, setting in enumerate(sending):
        look = run_style(number) | {"linestyle": "none", "capsize": 2}
        # Colours and markers begin again, hollow.
        look |= {"markerfacecolor": "none"} if number // len(COLOURS) % 2 else {}
        error = None if setting.deviation is None else [100 * setting.deviation]
        bars = ax.errorbar([setting.sent], [100 * setting.accuracy], error, label=setting.name, **look)
        show_with_run(setting.first, *(artist for artist in bars.get_children() if artist))
        sent = f"{_percent(setting)}, {axis.format_data(setting.sent)}"
        chart.note_points(ax, [setting.sent], [100 * setting.accuracy], [f"{setting.name}: {sent}"], setting.first)
    for setting in silent:
        value = 100 * setting.accuracy
        line = ax.axhline(value, color=INK, linestyle=":", linewidth=0.8, label=f"{setting.name}: {_percent(setting)}")
        show_with_run(setting.first, line)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(axis)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("bytes sent in training")
    ax.set_ylabel("test accuracy, %")
    chart.name_lines()
    return chart


def _percent(setting: Setting) -> str:
    spread = "" if setting.deviation is None else f" ± {100 * setting.deviation:.2f}"
    seeds = len(setting.accuracies)
    return f"{100 * setting.accuracy:.2f}{spread} % ({seeds} {'seed' if seeds == 1 else 'seeds'})"


def _setting_name(run: RunFiles) -> str:
    """Return the directory that tells two settings of one method apart: a run's own, or above `seedK`."""
    path = run.directory.path.resolve()
    return format_value(path.parent.name if path.name.startswith("seed") else path.name)
