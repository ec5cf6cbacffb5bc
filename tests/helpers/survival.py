"""A train command that is disturbed: started as one process or many, killed or preempted, and started again."""

import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers.runs import SETTINGS
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_rounds

# Processes whose peer is gone must have stopped by then.
SECONDS_TO_STOP = 60


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass
class Start:
    """One start of a run, as so many processes, when `after` was the last round done."""

    processes: list[subprocess.Popen]
    after: int

    def wait(self, seconds=600):
        """[(exit code, stdout, stderr)] of the processes."""
        deadline = time.monotonic() + seconds
        ends = [p.communicate(timeout=max(1.0, deadline - time.monotonic())) for p in self.processes]
        return [(p.returncode, *texts) for p, texts in zip(self.processes, ends, strict=True)]


@dataclass
class DisturbedRun:
    """A run of `runs.SETTINGS` over four devices in all.

    Attributes:
      path: the run directory.
      count: number of processes.
      options: of the command, beside these.
      heartbeat: seconds of silence after which a process counts as dead. A machine that others share may stall for
        longer than the least that is practical.
    """

    path: Path
    count: int
    options: tuple
    heartbeat: int = 10

    def start(self, only=None):
        """Start all processes, or only these of them."""
        config = self.path.parent / "settings.yaml"
        config.write_text(yaml.safe_dump(SETTINGS))
        command = [sys.executable, "-m", "loft_jax.train", "--config", config, "--workdir", self.path]
        command += ["--mesh.cpu_devices", 4 // self.count]
        coordinator = f"127.0.0.1:{free_port()}"
        processes = []
        for index in range(self.count) if only is None else only:
            place = ("--distributed.coordinator", coordinator, "--distributed.processes", self.count)
            place += ("--distributed.process_id", index, "--distributed.heartbeat_seconds", self.heartbeat)
            place += ("--distributed.start_seconds", 30)
            processes.append(
                subprocess.Popen(
                    [str(part) for part in (*command, *(place if self.count > 1 else ()), *self.options)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return Start(processes, self.last_round)

    def finish(self):
        """Start it, and see that it ends well. Returns what the first process has printed."""
        ends = self.start().wait()
        assert [code for code, _, _ in ends] == [0] * self.count, ends
        return ends[0][1]

    @property
    def last_round(self):
        rows = RunDirectory(self.path).rows()
        return rows[-1]["round"] if rows else -1

    def wait_for(self, start, round_number, seconds=300):
        """Return when this start has done a round, and that one is done."""
        deadline, after = time.monotonic() + seconds, max(round_number, start.after + 1)
        while self.last_round < after:
            assert all(p.poll() is None for p in start.processes), [p.communicate() for p in start.processes]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def disturb(self, signal_number, round_number, moments, hit=None):
        """Start it, and send a signal once a round is done (-1: at any time of the start), to the processes `hit`.

        By default it hits one of them or all. Returns [(exit code, stdout, stderr)].

        Sees that all processes stop in time, as they should, and that no round is lost by SIGTERM.
        """
        start = self.start()
        if round_number >= 0:
            self.wait_for(start, round_number)
        time.sleep(moments.uniform(0, 6 if round_number < 0 else 0.1))
        everyone = range(self.count)
        hit = hit or (everyone if moments.random() < 0.3 else [moments.choice(everyone)])
        for process in [start.processes[index] for index in hit]:
            assert process.poll() is None, "the run must still be going on when it is disturbed"
            process.send_signal(signal_number)
        ends = start.wait(SECONDS_TO_STOP)
        codes, said = [code for code, _, _ in ends], ends[0][1]
        if signal_number == signal.SIGKILL:
            assert 0 not in codes, ends
        elif round_number >= 0 or codes == [0] * self.count:
            assert codes == [0] * self.count, ends
            assert f"stopped   by SIGTERM after round {self.last_round} of " in said
            assert saved_rounds(self.path / "checkpoints")[-1] == self.last_round
        else:
            # Before it looks for SIGTERM a process dies of it, having done nothing; the others notice.
            assert -signal.SIGTERM in codes, ends
            assert self.last_round == start.after
        return ends


def damage(directory, kind, moments):
    """Harm a saved state: "truncate" or "flip" one file of it that is not empty, or "halve": delete half of them."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)
    if kind == "halve":
        for path in moments.sample(files, len(files) // 2):
            path.unlink()
        return
    path = moments.choice(files)
    content = path.read_bytes()
    position = moments.randrange(len(content))
    if kind == "truncate":
        path.write_bytes(content[:position])
    else:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])


def campaign(kills, terminations, rounds, seed=0):
    """Signals and the rounds after which they come, in order; some come before the first round of a start."""
    moments = random.Random(seed)
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terminations
    moments.shuffle(signals)
    after = sorted(moments.sample(range(1, rounds - 10), len(signals)))
    return [(s, -1 if moments.random() < 0.2 else r) for s, r in zip(signals, after, strict=True)], moments
