"""The summary of a finished run, for people. Imports neither JAX nor NumPy, so a finished run says so at once."""

from typing import Any

PHASES = ("compile", "train", "sync", "evaluation")
# What is read of every summary, of a run and of a retraining.
NEEDED = {
    *("model", "data", "method", "seed", "round", "epoch", "test/accuracy", "test/loss", "images_per_second"),
    *(f"seconds/{phase}" for phase in PHASES),
}


def print_summary(summary: dict[str, Any]) -> None:
    """Print summary.json as a few lines."""
    seconds = {phase: summary[f"seconds/{phase}"] for phase in PHASES}
    split = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())
    extent = f"{summary['round']} rounds, {summary['epoch']:.1f} epochs"
    print(f"finished  {summary['model']} on {summary['data']}, {summary['method']}: {extent}")
    if "stopped" in summary:
        print(f"stopped   {summary['stopped']}")
    print(f"accuracy  {summary['test/accuracy']:.2%} on the test set (last round), loss {summary['test/loss']:.4f}")
    print(f"measured  {duration(sum(seconds.values()))}: {split}")
    print(f"speed     {summary['images_per_second']:,.0f} images/s in training rounds, all workers", flush=True)


def megabytes(size: float) -> str:
    """Bytes as people say them: "1,234.50 MB", of 1e6 bytes."""
    return f"{size / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them: "48 s", "3 min 20 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
