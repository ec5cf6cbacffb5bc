"""Stand-ins for the commands that a study calls: they leave the same files, resume, and end at SIGTERM.

Called as a program: python study_commands.py COMMAND ARGUMENTS. The variables FAIL and QUIT (a part of the command's
words) and SECONDS (of a round) say how they behave. As COMMAND, study is the real one, and these do its jobs.

A stand-in starts in no time, because it imports nothing of ours.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

SECONDS = float(os.environ.get("SECONDS", "0.02"))
PHASES = {f"seconds/{phase}": 1.0 for phase in ("compile", "train", "sync", "evaluation")}
DISTANCES = """run,group,round,epoch,to_reference,to_reference_normalised,to_previous,to_previous_normalised,train_loss,test_accuracy
r,a,0,0.0,2,0.5,,,,0.1
r,b,0,0.0,2,0.7,,,,0.1
r,a,4,1.0,0,0,1,0.2,0.5,0.9
r,b,4,1.0,0,0,1,0.4,0.5,0.9
"""  # noqa: E501


class _Asked:
    stop = False


def use_stand_ins():
    """Let the jobs of studies be done by these."""
    from loft_jax.study import commands

    commands._program = lambda name: [sys.executable, __file__, name]


def main():
    if sys.argv[1] == "study":
        from loft_jax.config import run_command
        from loft_jax.study.__main__ import main as study

        use_stand_ins()
        sys.argv = sys.argv[1:]
        run_command(study)
        return
    signal.signal(signal.SIGTERM, lambda *_: setattr(_Asked, "stop", True))
    command, *arguments = sys.argv[1:]
    print(f"{command} begins", flush=True)
    if os.environ.get("QUIT", "nothing") in " ".join([command, *arguments]):
        sys.exit(0)
    if os.environ.get("FAIL", "nothing") in " ".join([command, *arguments]):
        sys.exit(f"error: {command} was told to fail")
    {"train": train, "tickets": tickets, "retrain": retrain, "report": report, "bench": bench}[command](arguments)


def parsed(arguments, positional, *options):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    if positional:
        parser.add_argument(positional, nargs="+" if positional == "runs" else None)
    for option in options:
        parser.add_argument(f"--{option}", nargs="+")
    return vars(parser.parse_args(arguments))


def write(path, text):
    """Write a file whole or not at all."""
    path.with_suffix(".tmp").write_text(text)
    os.replace(path.with_suffix(".tmp"), path)


def train(arguments):
    given = parsed(arguments, None, "config", "workdir", "seed")
    config = yaml.safe_load(Path(given["config"][0]).read_text()) | {"seed": int(given["seed"][0])}
    (Path(given["workdir"][0]) / "snapshots/0").mkdir(parents=True, exist_ok=True)
    run_to_the_end(Path(given["workdir"][0]), config, {})


def tickets(arguments):
    given = parsed(arguments, "run", "ratios", "scope", "norm")
    write(Path(given["run"]) / "distances.csv", DISTANCES)
    options = {"reference": ".", "reference_round": 4, "scope": "group", "norm": "l2"}
    write(Path(given["run"]) / "search.json", json.dumps({**given, **options, "ratios": [0.5]}))


def retrain(arguments):
    given = parsed(arguments, "run", "ticket", "mode", "seeds", "train.rounds", "optimizer.learning_rate")
    run = Path(given["run"])
    of_run = yaml.safe_load((run / "config.yaml").read_text())["train"]["rounds"]
    rounds = int((given["train.rounds"] or [of_run])[0])
    for seed in given["seeds"]:
        for ticket in given["ticket"]:
            for mode in given["mode"]:
                facts = {"ticket": ticket, "mode": mode, "rewind_to": 0, "ticket_round": 4, "rounds": rounds}
                facts |= {"ratio": float(ticket.split("-")[-1]), "scope": "group", "norm": "l2", "settings": "x"}
                for cost in ("parameters", "flops_per_image", "steps_images_per_second"):
                    facts |= {cost: 1.0, f"{cost}_unpruned": 2.0}
                config = {"train": {"rounds": rounds}, "seed": int(seed)}
                run_to_the_end(run / "retrain" / ticket / mode / f"seed{seed}", config, facts)


def run_to_the_end(path, config, facts):
    path.mkdir(parents=True, exist_ok=True)
    write(path / "config.yaml", yaml.safe_dump(config))
    rounds, metrics = config["train"]["rounds"], path / "metrics.jsonl"
    # A line that a kill has cut is not believed.
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    write(metrics, "".join(f"{line}\n" for line in lines))
    for number in range(len(lines), rounds + 1):
        with open(metrics, "a") as file:
            file.write(json.dumps({"round": number, "epoch": number / 4, "train/loss": 1.0}) + "\n")
        print(f"round {number}/{rounds}", flush=True)
        if _Asked.stop:
            print("stopped   by SIGTERM", flush=True)
            sys.exit(0)
        time.sleep(SECONDS)
    summary = {"model": "m", "data": "d", "method": "LoFT-4", "seed": config["seed"], "round": rounds}
    summary |= {"epoch": rounds / 4, "test/accuracy": 0.9 + 0.01 * config["seed"], "test/loss": 0.1}
    write(path / "summary.json", json.dumps({**summary, "images_per_second": 10.0, **PHASES, **facts}))


def report(arguments):
    given = parsed(arguments, "runs", "out")
    out = Path(given["out"][0])
    out.mkdir(exist_ok=True)
    write(out / "report.html", json.dumps(given["runs"]))
    print(f"report    {out / 'report.html'}: 1 figures")


def bench(arguments):
    given = parsed(arguments, None, "append", "pairs")
    for row in ({"what": "a over b", "ratio": 1.5}, {"what": "c", "ratio": 2.0}):
        with open(given["append"][0], "a") as file:
            file.write(json.dumps({**row, "machine": {"devices": "1 cpu"}}) + "\n")


if __name__ == "__main__":
    main()
