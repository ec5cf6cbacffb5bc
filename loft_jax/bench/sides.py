"""The two sides of a comparison with PyTorch: what each of its processes runs.

A side is a process of its own, so neither library shares its threads, its allocator or its OpenMP with the other. It is
bound to its cores before its library is loaded: XLA makes as many threads as it may use cores, and PyTorch is told the
number. While one side runs, the other waits for a message.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from loft_jax.config import Config
from loft_jax.devices import keep_freed_memory
from loft_jax.errors import RunStopped

Program = Callable[[int], object]
What = Literal["full step", "compact step", "round"]

WORKERS, LOCAL_STEPS, EXAMPLES = 4, 16, 50_000


@dataclass(frozen=True)
class Case:
    """What both sides run.

    Attributes:
      what: a step of the full network, a step of LoFT-4's compact sub-CNN, or a round of LoFT-4 on four virtual devices
        (in PyTorch a loop of as many compact steps, and no sync).
      network, width, batch: the model, and the images of a step.
      cores: number of cores.
    """

    what: What
    network: str
    width: int
    batch: int
    cores: int

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.what}, {self.network} of width {self.width}, batch {self.batch}, {cores}"

    @property
    def config(self) -> Config:
        """The settings of both sides."""
        return Config.model_validate(
            {
                "model": {"name": self.network, "width": self.width},
                "data": {"batch_size": self.batch},
                "loft": {"workers": WORKERS, "local_steps": LOCAL_STEPS},
                # Images and labels are random: a larger rate might diverge, and NaNs have their own speed.
                "optimizer": {"learning_rate": 0.01},
                "mesh": {"cpu_devices": WORKERS if self.what == "round" else 1},
            }
        )

    @property
    def images(self) -> int:
        """Images of one unit: of a step, or of a round."""
        return self.config.images_per_round if self.what == "round" else self.batch


def serve(connection: Connection, side: str, case: Case, cores: list[int]) -> None:
    """Run units of a case as often as the other end of the connection says, until it says 0.

    Answers "ready" when the program is compiled, then to each number of units (wall seconds, processor seconds).
    """
    os.sched_setaffinity(0, cores)
    _leave_accelerators_to_others()
    # Our programs do so wherever they run (`configure_jax`); PyTorch gains a little by it too.
    keep_freed_memory()
    program = {"ours": our_program, "torch": torch_program}[side](case)
    program(1)
    connection.send("ready")
    with suppress(EOFError):  # The other end is gone: the bench was stopped.
        while units := connection.recv():
            wall, processor = time.perf_counter(), time.process_time()
            program(units)
            connection.send((time.perf_counter() - wall, time.process_time() - processor))


def our_program(case: Case) -> Program:
    """Make the program of our side: it runs a number of steps or rounds, and waits for them."""
    from loft_jax.bench.material import random_images
    from loft_jax.bench.parts import WholeRound
    from loft_jax.devices import configure_jax

    configure_jax(case.config)
    dataset = random_images(EXAMPLES)
    if case.what == "round":
        whole = WholeRound(case.config, dataset)

        def rounds(units: int) -> None:
            for _ in range(units):
                whole()

        return rounds
    return DrawnSteps(case, dataset)


class DrawnSteps:
    """Local steps of one network on one device, each on a batch that is drawn from the data set, one dispatch each.

    Attributes:
      state: the state after the last step.
    """

    def __init__(self, case: Case, dataset: Any):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import PartitionSpec

        from loft_jax.bench.material import random_variables
        from loft_jax.devices import DATA, WORKER, step_options
        from loft_jax.loft import State, make_local_step
        from loft_jax.randomness import Purpose, key_for

        config, network = case.config, network_of(case)
        step = make_local_step(config, network, dataset)

        def drawn(state: Any, images: Any, labels: Any, order: Any, number: Any) -> Any:
            chosen = jax.lax.dynamic_slice_in_dim(order, number * case.batch, case.batch)
            key = key_for(config.seed, Purpose.AUGMENTATION, 0, number)
            state, _ = step(state, images[chosen], labels[chosen], key, number)
            return state

        spec = PartitionSpec()
        mesh = jax.make_mesh((1, 1), (WORKER, DATA), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        program = jax.shard_map(drawn, mesh=mesh, in_specs=spec, out_specs=spec)
        variables = jax.device_put(random_variables(network, dataset.image_shape))
        self.state = step.pack(State.from_collections(variables).with_zero_moments(step.rule.moments))
        order = np.random.default_rng(0).permutation(dataset.examples).astype(np.int32)
        self._arguments = jax.device_put((dataset.train_images, dataset.train_labels, order))
        self._program = jax.jit(program, donate_argnums=0, compiler_options=step_options(mesh))
        self._numbers = [jnp.int32(number) for number in range(min(64, dataset.examples // case.batch))]

    def __call__(self, units: int) -> None:
        import jax

        for number in range(units):
            self.state = self._program(self.state, *self._arguments, self._numbers[number % len(self._numbers)])
        jax.block_until_ready(self.state)


def torch_program(case: Case) -> Program:
    """Make the program of PyTorch's side: it runs a number of steps, or loops of as many steps as a round has."""
    import torch

    from loft_jax.bench.material import random_images, random_variables
    from loft_jax.bench.twin import TwinStep

    torch.set_num_threads(case.cores)
    torch.set_flush_denormal(True)  # as XLA does
    dataset, network = random_images(EXAMPLES), network_of(case)
    step = TwinStep(case.config, network, dataset, random_variables(network, dataset.image_shape))
    order = step.draw_order()

    def steps(units: int) -> None:
        step.run(order, units)

    def loops(units: int) -> None:
        for _ in range(units * WORKERS):
            step.run(step.draw_order(), LOCAL_STEPS)

    return loops if case.what == "round" else steps


def network_of(case: Case) -> Any:
    """Make our module that a case trains: the full network or LoFT-4's sub-CNN. Runs nothing."""
    from loft_jax.loft import split_groups, sub_cnn
    from loft_jax.models import create_model

    model = create_model(case.network, 10, width=case.width)
    return model if case.what == "full step" else sub_cnn(model, split_groups(model, case.config), case.config)


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, whose JAX, if it is needed, does not touch an accelerator. Returns its result.

    Raises:
      RunStopped: the process ended without one.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_leave_accelerators_to_others) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RunStopped(f"the process of {function.__name__} ended unexpectedly; its output is above") from None


def _leave_accelerators_to_others() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
