"""What a setting costs with every method and number of workers: size, compute, bytes and memory, in one row each.

Bytes are predicted from the model's declaration, and also read from the compiled programs if they are compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from loft_jax.config import ONE_WORKER, Config, validate_settings
from loft_jax.cost.compiled import RoundBill, wire_bytes
from loft_jax.cost.memory import PeakMemory
from loft_jax.cost.prediction import ParameterSplit
from loft_jax.data import Facts
from loft_jax.devices import make_mesh, nbytes
from loft_jax.gpipe import GPipe
from loft_jax.loft import (
    BYTES_OF_FLOAT,
    NormEstimator,
    RoundProgram,
    State,
    Traffic,
    make_images,
    norm_traffic,
    split_groups,
    step_traffic,
    sub_cnn,
)
from loft_jax.methods import check_method
from loft_jax.models import Network, count_flops, make_model, parameter_count, training_flops

COLLECTIVES = "this program's collectives"


@dataclass(frozen=True)
class Size:
    """Parameters of a network, and FLOPs of the loss and gradients of one image.

    Attributes:
      parameters: their number.
      flops: FLOPs that are computed.
      conventional: FLOPs as the literature counts them (`TrainingFlops`); None of a part of a network.
    """

    parameters: int
    flops: float
    conventional: int | None = None


@dataclass(frozen=True)
class Bytes:
    """Bytes that go from device to device.

    Attributes:
      counts: whose bytes they are.
      event: when they are sent: sync; step; evaluation (norm statistics are gathered on all devices, also before every
        checkpoint and snapshot); assembly (the full CNN is gathered before these).
      sent, received: bytes of one worker in one event (in GPipe, of the stage that sends most).
      events: number of these events in the whole run.
      total: bytes that all workers, and the server if there is one, send in the run.
      measured: the same total from the compiled programs; None if nothing was compiled.
    """

    counts: str
    event: str
    sent: float
    received: float
    events: int
    total: float
    measured: float | None = None

    @classmethod
    def from_traffic(cls, traffic: Traffic, event: str, events: int, measured: float | None = None) -> "Bytes":
        """Make the bytes of collectives, in which a device sends as much as it receives."""
        return cls(COLLECTIVES, event, traffic.sent, traffic.sent, events, events * traffic.wire, measured)


@dataclass(frozen=True)
class Cost:
    """The costs of one method with one number of workers (for GPipe: stages), each on its device.

    Attributes:
      momentum: `loft.momentum` if it changes the bytes; otherwise None.
      full, worker: size of the full CNN, and of what one worker trains.
      bytes: bytes that are sent; None if nothing is sent.
      memory: memory of a device; None if nothing was compiled.
    """

    method: str
    momentum: str | None
    workers: int
    full: Size
    worker: Size
    bytes: Bytes | None
    memory: PeakMemory | None = None


class Costs:
    """Computes the costs of a config's run, also with other numbers of workers, methods and syncs.

    Args:
      config: config of the run.
      facts: facts of its data set.
      compiles: whether to compile programs, to read their memory and bytes.

    Attributes:
      notes: for rows without compiled figures, why they were not compiled.
    """

    def __init__(self, config: Config, facts: Facts, *, compiles: bool):
        self._config, self._facts, self._compiles = config, facts, compiles
        self._model = make_model(config, facts.num_classes, facts.image_shape)
        self._dataset = facts.placeholder()
        self._sizes: dict[Network, Size] = {}
        self.notes: list[str] = []

    def methods(self, workers: int) -> list[tuple[str, Callable[[], list[Cost]]]]:
        """Return (name, function that makes the rows) for every method with this number of workers.

        The function raises UserError if the settings, the model or the devices do not allow the method.
        """
        if workers == 1:
            return [("plain SGD", partial(self._make_round_rows, "plain SGD", 1, loft=ONE_WORKER))]
        named: dict[str, Callable[[], list[Cost]]] = {}
        own, split = self._config.loft.momentum, self._config.splitting
        splits = self._config.loft.partition != "none"
        if splits:
            named[f"{split}-{workers}, server"] = partial(self._make_server_rows, workers)
        for sync in ("psum", "exchange") if splits else ():
            for momentum in (own, *({"carry", "reset"} - {own})):
                loft = {"workers": workers, "sync": sync, "momentum": momentum}
                # What a sync does not have.
                loft |= {"stagger": 1} if sync == "psum" else {"deal": "random"}
                make_rows = partial(self._make_round_rows, f"{split}-{workers}, {sync}", workers, loft=loft)
                named[f"{split}-{workers}, {sync}, momentum {momentum}"] = make_rows
        # Beside LoFT, local SGD is the baseline that sends everything, in float32.
        name, loft = f"local SGD-{workers}", {"workers": workers, "sync": "psum", "partition": "none"}
        loft = ONE_WORKER | loft if splits else loft | {"stagger": 1}
        named[name] = partial(self._make_round_rows, name, workers, loft=loft)
        name, loft = f"data-parallel SGD-{workers}", ONE_WORKER
        batch = {"batch_size": workers * self._config.data.batch_size}
        named[name] = partial(self._make_round_rows, name, workers, loft=loft, data=batch, mesh={"data": workers})
        return [*named.items(), (f"GPipe-{workers}", partial(self._make_gpipe_rows, workers))]

    def _measure_size(self, module: Network) -> Size:
        module, shape = module.with_norms(), self._facts.image_shape
        if module not in self._sizes:
            self._sizes[module] = Size(parameter_count(module, shape), *training_flops(module, shape))
        return self._sizes[module]

    def _make_server_rows(self, workers: int) -> list[Cost]:
        """Make the row that the paper counts: every worker sends to a server and receives from it."""
        config = self._change_config(loft={"workers": workers})
        groups = split_groups(self._model, config)
        split = ParameterSplit.from_groups(self._model, groups, self._facts.image_shape, workers)
        up = BYTES_OF_FLOAT * (split.partitioned / workers + split.shared_kernels)
        rounds = config.train.rounds
        down, total = up + BYTES_OF_FLOAT * split.rest, rounds * split.server_bytes(workers)
        moved = Bytes("the paper's server", "sync", up, down, rounds, total)
        name = f"{config.splitting}-{workers}, server"
        return [self._make_row(name, config, workers, sub_cnn(self._model, groups, config), moved)]

    def _make_round_rows(self, name: str, workers: int, **sections: dict[str, Any]) -> list[Cost]:
        """Make the rows of a method that trains in rounds: training, evaluation, and assembly if there is one."""
        config = self._change_config(**sections)
        mesh = make_mesh(config)
        bill = RoundBill.from_config(config, self._model, self._facts, self._dataset, mesh)
        compiles = self._compiles and mesh.size == workers
        if self._compiles and not compiles:
            self.notes.append(
                f"{name} is not compiled: it needs {workers} devices, but only {jax.device_count()} are available"
            )
        compiled = bill.compiled() if compiles else None
        row = partial(self._make_row, name, config, workers, bill.method.step.model)
        memory = compiled.memory if compiled else None
        if workers == 1:
            return [row(None, memory)]
        rounds, due = config.train.rounds, _count_due_rounds(config)
        measured = rounds * compiled.wire if compiled else None
        if config.mesh.data > 1:
            gradients = step_traffic(self._measure_size(self._model).parameters, workers)
            moved = Bytes.from_traffic(gradients, "step", config.total_steps, measured)
        else:
            moved = Bytes.from_traffic(bill.mean_sync, "sync", rounds, measured)
        rows = [row(moved, memory)]
        images = make_images(config, self._dataset, mesh, shapes_only=True)
        estimate = NormEstimator(config, self._model, self._dataset, mesh, images)
        gathered = RoundProgram(partial(estimate.trace, bill.full.batch_stats), 1, norm_traffic(bill.full, workers))
        for event, program in {"evaluation": gathered, **bill.method.assembly(bill.full)}.items():
            measured = due * wire_bytes({event: program}, workers) if compiles else None
            rows.append(row(Bytes.from_traffic(program.traffic, event, due, measured)))
        return rows

    def _make_gpipe_rows(self, stages: int) -> list[Cost]:
        gpipe: dict[str, Any] = {"stages": stages}
        if self._config.gpipe.cut_blocks and len(self._config.gpipe.cut_blocks) != stages - 1:
            gpipe["cuts"] = "balanced"
        config = self._change_config(loft=ONE_WORKER, gpipe=gpipe)
        mesh = make_mesh(config)
        images = make_images(config, self._dataset, mesh, shapes_only=True)
        pipeline = GPipe(config, self._model, self._dataset, mesh, images)
        bill = RoundBill.from_method(pipeline, config, self._model, self._facts, mesh)
        flops, microbatch = [0.0] * stages, pipeline.inputs[0].shape[0]
        for program in bill.programs.values():
            # An update does not depend on the number of images.
            if program.grows and program.stage is not None:
                flops[program.stage] += count_flops(program.trace()) / microbatch
        parameters = [sum(leaf.size for leaf in jax.tree.leaves(own.params)) for own in pipeline.state_shapes]
        most, steps = pipeline.microbatches * max(pipeline.sent_per_microbatch), config.total_steps
        counts = f"transfers between stages; cuts: {config.gpipe.cuts}"
        moved = Bytes(counts, "step", most, most, steps, steps * pipeline.bytes_per_step)
        memory = bill.compiled().memory if self._compiles else None
        largest = Size(max(parameters), max(flops))
        row = partial(Cost, f"GPipe-{stages}", None, stages, self._measure_size(self._model), largest)
        return [row(moved, memory), row(self._count_copies(config, pipeline.state_shapes))]

    def _count_copies(self, config: Config, states: list[State]) -> Bytes:
        """Count the bytes of copying GPipe's stages to every device, where the full CNN is evaluated and saved."""
        carried = [own if config.loft.momentum == "carry" else own.without_moments() for own in states]
        sizes = [nbytes(own) for own in carried]
        others, due = len(sizes) - 1, _count_due_rounds(config)
        sent, received = others * max(sizes), sum(sizes) - min(sizes)
        return Bytes("copies to every device", "assembly", sent, received, due, due * others * sum(sizes))

    def _make_row(
        self,
        name: str,
        config: Config,
        workers: int,
        module: Network,
        moved: Bytes | None,
        memory: PeakMemory | None = None,
    ) -> Cost:
        momentum = config.loft.momentum if moved and moved.counts == COLLECTIVES and config.loft.workers > 1 else None
        return Cost(name, momentum, workers, self._measure_size(self._model), self._measure_size(module), moved, memory)

    def _change_config(self, **sections: dict[str, Any]) -> Config:
        """Return the config with these settings, without a pipeline, and with one device for each worker."""
        settings = self._config.model_dump()
        settings["gpipe"]["stages"], settings["mesh"] = None, {"cpu_devices": self._config.mesh.cpu_devices}
        for name, changes in sections.items():
            settings[name] |= changes
        config = validate_settings(settings, source="this setting with other methods")
        check_method(self._model, config)
        return config


def _count_due_rounds(config: Config) -> int:
    """Count the rounds after which the full CNN is evaluated or saved."""
    return sum(map(config.train.anything_is_due, range(config.train.rounds + 1)))
