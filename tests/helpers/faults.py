"""A finished campaign in files, faults that are put into them one at a time, and what each command says to each."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from helpers.fake_runs import complete_run, fake_summary
from helpers.refused import AcceptedError
from loft_jax.config.command_line import run_command
from loft_jax.report.comparison import group_comparable_runs
from loft_jax.report.run_files import RunFiles
from loft_jax.report.tables import messages, overview_table, own_table
from loft_jax.retrain.settings import retrain_config
from loft_jax.storage.config_file import owner_of, write_config_file
from loft_jax.storage.data_file import write_data
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.study.records import warn
from loft_jax.study.rows import result_rows
from loft_jax.tickets.ticket import read_ticket

TICKET = "r12-group-l2-0.8"
RETRAINING = f"retrain/{TICKET}/rewind/seed1"
DATA = {"name": "digits", "image_shape": [8, 8, 1], "classes": 10, "training_images": 1437, "test_images": 360}


def campaign(path: Path, seed: int) -> RunDirectory:
    """A run with all that train, tickets, retrain and cost leave; its figures depend on the seed."""
    directory = complete_run(path / "run", seed=seed)
    config = directory.read_config()
    write_config_file(directory.path / "config.yaml", config, owner_of(config))
    write_data(directory.path / "data.json", DATA)
    summary = fake_summary() | {"seed": seed, "config_hash": config.hash()}
    last = directory.rows()[-1]
    directory.write_summary(summary | {key: last[key] for key in ("test/accuracy", "test/loss", "round")})
    settings = retrain_config(config, {})
    for saved in (0, 12):
        (directory.snapshots / str(saved)).mkdir(parents=True)
    for file in directory.retrain.glob("*/*/*/summary.json"):
        there = RunDirectory(file.parent)
        facts = json.loads(file.read_text())
        own = settings.model_copy(update={"seed": facts["seed"]})
        write_config_file(file.parent / "config.yaml", own, owner_of(own, f"{facts['ticket']} of {seed}"))
        facts["test/accuracy"] -= seed / 100
        facts |= {"settings": settings.model_copy(update={"seed": 0}).hash(), "config_hash": own.hash()}
        facts["run_config_hash"] = config.hash()
        there.write_summary(facts)
        for number in range(13):
            there.append({"round": number, "step": 16 * number, "epoch": number / 2, "seconds/train": 0.5})
        ticket = directory.tickets / facts["ticket"]
        if ticket.exists():
            read_ticket(ticket).write(file.parent)
    return directory


def train(run: Path) -> None:
    from loft_jax.train.__main__ import is_complete

    directory = RunDirectory(run, "--workdir")
    with contextlib.closing(directory):
        if not is_complete(directory, RunDirectory(run.parent / "sound").read_config()):
            raise AcceptedError


def tickets(run: Path) -> None:
    from loft_jax.tickets.__main__ import main

    main([str(run)])


def retrain(run: Path) -> None:
    from loft_jax.retrain.__main__ import main

    main([str(run), "--ticket", TICKET, "--mode", "rewind", "random", "--seeds", "0", "1"])


def report(run: Path) -> None:
    """All of a report but its figures."""
    directory = RunDirectory(run)
    files = RunFiles.read(directory, directory.config_with({}))
    kept = {group: mask.tolist() for group, mask in files.kept(0.8).items()}
    (comparison,) = group_comparable_runs([files])
    tables = [own_table(comparison), overview_table(comparison), files.retrained, files.costs]
    search = files.search and [files.search.epochs.tolist(), {k: v.tolist() for k, v in files.search.distances.items()}]
    print(json.dumps([*tables, messages(comparison), comparison.title, search, kept]))
    for line in [*files.missing, *([] if kept or not search else ["a ticket.json of the search is not sound"])]:
        print(line)


def study(run: Path) -> None:
    """The rows that a study takes from a run, and whether it takes it for done."""
    place = mock.Mock(run=lambda job: RunDirectory(run))
    for kind in ("train", "tickets"):
        job = mock.Mock(kind=kind, setting="one", seed=0)
        job.name = kind
        print(json.dumps(result_rows(job, place)))


COMMANDS: dict[str, Callable[[Path], None]] = {each.__name__: each for each in (train, tickets, retrain, report, study)}


def outcome(command: str, run: Path) -> tuple[str, str]:
    """What a command does: "done", "refused", "stopped" or "goes on"; and all that it says. Raises what is a bug."""
    said = io.StringIO()
    warn.cache_clear()
    with (
        mock.patch("loft_jax.devices.configure_jax", side_effect=AcceptedError),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            run_command(lambda: COMMANDS[command](run))
        except SystemExit as stop:
            return {2: "refused", 1: "stopped"}[stop.code], said.getvalue()
        except AcceptedError:
            return "goes on", said.getvalue()
    return "done", said.getvalue()


def _flipped(content: bytes, moments: random.Random) -> bytes:
    at = moments.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << moments.randrange(7))]) + content[at + 1 :]


def files_of(run: Path) -> list[str]:
    """Every file of one kind in a run."""
    of_retraining = [f"{RETRAINING}/{name}" for name in ("config.yaml", "metrics.jsonl", "summary.json", "ticket.json")]
    of_run = [path.name for path in run.iterdir() if path.is_file()]
    return sorted([*of_run, f"tickets/{TICKET}/ticket.json", *of_retraining, "retrain/results.csv"])


def whole_faults(file: Path, other: Path, flips: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Faults of a whole file, by name; `other` is the file of that name in another run."""
    content, moments = file.read_bytes(), random.Random(str(file.name))
    yield "missing", file.unlink
    for name, text in {"empty": b"", "null": b"null", "list": b"[1, 2]", "deep": b"[" * 20_000}.items():
        yield name, lambda text=text: file.write_bytes(text)
    yield "cut", lambda: file.write_bytes(content[: len(content) // 2])
    yield "of another run", lambda: file.write_bytes(other.read_bytes())
    for number in range(flips):
        yield f"byte flipped {number}", lambda: file.write_bytes(_flipped(content, moments))

    def directory() -> None:
        file.unlink()
        file.mkdir()

    def loop() -> None:
        file.unlink()
        file.symlink_to(file)

    yield "directory", directory
    yield "link to itself", loop


VALUES = {"null": None, "text": "x", "list": [1], "NaN": float("nan"), "huge": 1e300, "negative": -5}


def field_faults(file: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each field of an object, or of the third row of a table of them, changed to each of `VALUES`."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    at = 2 if file.suffix == ".jsonl" else 0
    fields = json.loads(lines[at])
    for key in fields:
        for name, value in VALUES.items():

            def change(key=key, value=value) -> None:
                changed = [*lines[:at], json.dumps({**fields, key: value}), *lines[at + 1 :]]
                file.write_text("\n".join(changed) + "\n")

            yield f"{key} {name}", change


def restore(sound: Path, run: Path, file: str) -> None:
    """Make a file as it was, and what is kept beside it go."""
    target = run / file
    for path in (target, target.with_name(f"{target.name}.damaged")):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    shutil.copyfile(sound / file, target)
