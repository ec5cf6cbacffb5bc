"""What a setting costs by every method and number of workers: size, compute, bytes and memory, a row each.

Bytes are predicted from the model's declaration, and read from the compiled programs where they are compiled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from loft_jax.config import Config, validated
from loft_jax.cost.hlo import wire_bytes
from loft_jax.cost.memory import PeakMemory, data_bytes, gpipe_memory, nbytes, round_memory
from loft_jax.cost.prediction import ParameterSplit
from loft_jax.data import Facts
from loft_jax.devices import make_mesh
from loft_jax.gpipe import GPipe
from loft_jax.loft import (
    BYTES_OF_FLOAT,
    NormEstimator,
    Round,
    Traffic,
    assembly_traffic,
    exchanges,
    initial_state,
    norm_traffic,
    split_groups,
    step_traffic,
    sub_cnn,
    sync_traffic,
    training_shapes,
)
from loft_jax.methods import check_model
from loft_jax.models import model_of, parameter_count, training_flops

COLLECTIVES = "this program's collectives"


@dataclass(frozen=True)
class Size:
    """Parameters of a network, and FLOPs of the loss and gradients of one image."""

    parameters: int
    flops: float


@dataclass(frozen=True)
class Bytes:
    """What goes from device to device.

    Attributes:
      counts: whose bytes they are.
      event: at what they are sent: a sync; a step; an evaluation, whose norm statistics are gathered on all devices,
        as before every checkpoint and snapshot; an assembly of the full CNN before it.
      sent, received: by a worker in one event (for GPipe by the stage that sends most).
      events: their number over the whole run.
      total: that all workers, and the server if there is one, send over the run.
      measured: the same from the compiled programs; None where nothing was compiled.
    """

    counts: str
    event: str
    sent: float
    received: float
    events: int
    total: float
    measured: float | None = None

    @classmethod
    def of(cls, traffic: Traffic, event: str, events: int, measured: float | None = None) -> "Bytes":
        """Of collectives; a device sends as much as it receives."""
        return cls(COLLECTIVES, event, traffic.sent, traffic.sent, events, events * traffic.wire, measured)


@dataclass(frozen=True)
class Cost:
    """One method with one number of workers (devices; for GPipe stages).

    Attributes:
      momentum: whether it is carried over a sync, where that changes the bytes; else None.
      full, worker: of the full CNN, and of what one worker trains.
      bytes: None where nothing is sent.
      memory: of a device; None where nothing was compiled.
    """

    method: str
    momentum: str | None
    workers: int
    full: Size
    worker: Size
    bytes: Bytes | None
    memory: PeakMemory | None = None


class Costs:
    """The costs of a setting: of a config's run, with other numbers of workers, methods and syncs.

    Args:
      config: of the run.
      facts: of its data set.
      compiles: whether to compile programs, for memory and for the bytes in them.

    Attributes:
      notes: why there is nothing compiled in rows that have been made.
    """

    def __init__(self, config: Config, facts: Facts, *, compiles: bool):
        self._config, self._facts, self._compiles = config, facts, compiles
        self._model = model_of(config, facts.num_classes)
        self._dataset = facts.stand_in()
        self._sizes: dict[nn.Module, Size] = {}
        self.notes: list[str] = []

    def methods(self, workers: int) -> list[tuple[str, Callable[[], list[Cost]]]]:
        """(name, what makes its rows) of every method that there is for so many workers.

        The second raises UserError where the settings, the model or the devices do not allow the method.
        """
        if workers == 1:
            return [("plain SGD", partial(self._of_round, "plain SGD", 1, loft={"workers": 1, "sync": "psum"}))]
        named, own = {}, self._config.loft.momentum
        splits = self._config.loft.partition != "none"
        if splits:
            named[f"LoFT-{workers}, server"] = partial(self._of_server, workers)
        for sync in ("psum", "exchange") if splits else ():
            for momentum in (own, *({"carry", "reset"} - {own})):
                loft = {"workers": workers, "sync": sync, "momentum": momentum}
                of_round = partial(self._of_round, f"LoFT-{workers}, {sync}", workers, loft=loft)
                named[f"LoFT-{workers}, {sync}, momentum {momentum}"] = of_round
        name, loft = f"local SGD-{workers}", {"workers": workers, "sync": "psum", "partition": "none"}
        named[name] = partial(self._of_round, name, workers, loft=loft)
        name, loft = f"data-parallel SGD-{workers}", {"workers": 1, "sync": "psum"}
        batch = {"batch_size": workers * self._config.data.batch_size}
        named[name] = partial(self._of_round, name, workers, loft=loft, data=batch, mesh={"data": workers})
        return [*named.items(), (f"GPipe-{workers}", partial(self._of_gpipe, workers))]

    def _size(self, module: nn.Module) -> Size:
        module, shape = module.clone(norm_axis=None), self._facts.image_shape
        if module not in self._sizes:
            self._sizes[module] = Size(parameter_count(module, shape), training_flops(module, shape))
        return self._sizes[module]

    def _of_server(self, workers: int) -> list[Cost]:
        """What the paper counts: a server that every worker sends to and receives from."""
        config = self._with(loft={"workers": workers})
        groups = split_groups(self._model, config)
        split = ParameterSplit.of(self._model, groups, self._facts.image_shape)
        up = BYTES_OF_FLOAT * (split.partitioned / workers + split.shared_kernels)
        rounds = config.train.rounds
        down, total = up + BYTES_OF_FLOAT * split.rest, rounds * split.server_bytes(workers)
        moved = Bytes("the paper's server", "sync", up, down, rounds, total)
        return [self._cost(f"LoFT-{workers}, server", config, workers, sub_cnn(self._model, groups, config), moved)]

    def _of_round(self, name: str, workers: int, **sections: dict[str, Any]) -> list[Cost]:
        """Of what trains in rounds on a mesh: training rounds, evaluations, and where there are any assemblies."""
        config = self._with(**sections)
        mesh = make_mesh(config)
        round_ = Round(config, self._model, self._dataset, mesh)
        full = jax.eval_shape(lambda: initial_state(self._model, config, self._facts.image_shape))
        state = jax.eval_shape(round_.place, full)
        compiles = self._compiles and mesh.size == workers
        if self._compiles and not compiles:
            self.notes.append(
                f"{name} is not compiled: {workers} devices are needed, and {jax.device_count()} are there"
            )
        programs = _compiled(round_.lowered(state, training_shapes(config, self._dataset, mesh))) if compiles else {}
        data = data_bytes(self._facts, config, mesh.size)
        memory = round_memory(programs, round_, state, mesh, data) if compiles else None
        row = partial(self._cost, name, config, workers, round_.step.model)
        if workers == 1:
            return [row(None, memory)]
        rounds, due = config.train.rounds, _due(config)
        wire = rounds * wire_bytes(programs, round_.runs, workers) if compiles else None
        if config.mesh.data > 1:
            gradients = step_traffic(self._size(self._model).parameters, workers)
            moved = Bytes.of(gradients, "step", config.total_steps, wire)
        else:
            moved = Bytes.of(sync_traffic(full, round_.groups, config, workers), "sync", rounds, wire)
        estimate = NormEstimator(config, self._model, self._dataset, mesh)
        between = [("evaluation", norm_traffic(full, workers), lambda: estimate.lowered(full["batch_stats"]))]
        if exchanges(config, round_.groups):
            assembled = assembly_traffic(full, round_.groups, config, workers)
            between.append(("assembly", assembled, lambda: round_.meeting.lowered(state)))
        rows = [row(moved, memory)]
        for event, traffic, lowered in between:
            wire = due * wire_bytes({event: lowered().compile()}, {event: 1}, workers) if compiles else None
            rows.append(row(Bytes.of(traffic, event, due, wire)))
        return rows

    def _of_gpipe(self, stages: int) -> list[Cost]:
        gpipe = {"stages": stages}
        if self._config.gpipe.cut_blocks and len(self._config.gpipe.cut_blocks) != stages - 1:
            gpipe["cuts"] = "balanced"
        config = self._with(loft={"workers": 1, "sync": "psum"}, gpipe=gpipe)
        pipeline = GPipe(config, self._model, self._dataset, make_mesh(config))
        lowered = pipeline.lowered()
        flops, microbatch = [0.0] * stages, pipeline.inputs[0].shape[0]
        for (stage, role), program in lowered.items():
            if role != "update":
                flops[stage] += program.cost_analysis()["flops"] / microbatch
        parameters = [sum(leaf.size for leaf in jax.tree.leaves(own["params"])) for own in pipeline.variable_shapes]
        most, steps = pipeline.microbatches * max(pipeline.sent_per_microbatch), config.total_steps
        counts = f"transfers between stages; cuts: {config.gpipe.cuts}"
        moved = Bytes(counts, "step", most, most, steps, steps * pipeline.bytes_per_step)
        programs = _compiled(lowered) if self._compiles else {}
        memory = gpipe_memory(programs, pipeline, data_bytes(self._facts, config, stages)) if programs else None
        largest = Size(max(parameters), max(flops))
        row = partial(Cost, f"GPipe-{stages}", None, stages, self._size(self._model), largest)
        return [row(moved, memory), row(self._copies(config, pipeline.variable_shapes))]

    def _copies(self, config: Config, variables: list[Any]) -> Bytes:
        """Of GPipe's stages to every device, where the full CNN is evaluated and saved."""
        kinds = ("params", "batch_stats", *(["momentum"] if config.loft.momentum == "carry" else []))
        sizes = [sum(nbytes(own[kind]) for kind in kinds) for own in variables]
        others, due = len(sizes) - 1, _due(config)
        sent, received = others * max(sizes), sum(sizes) - min(sizes)
        return Bytes("copies to every device", "assembly", sent, received, due, due * others * sum(sizes))

    def _cost(
        self,
        name: str,
        config: Config,
        workers: int,
        module: nn.Module,
        moved: Bytes | None,
        memory: PeakMemory | None = None,
    ) -> Cost:
        momentum = config.loft.momentum if moved and moved.counts == COLLECTIVES and config.loft.workers > 1 else None
        return Cost(name, momentum, workers, self._size(self._model), self._size(module), moved, memory)

    def _with(self, **sections: dict[str, Any]) -> Config:
        """The config with these settings, without a pipeline, and a worker on one device."""
        settings = self._config.model_dump()
        settings["gpipe"]["stages"], settings["mesh"] = None, {"cpu_devices": self._config.mesh.cpu_devices}
        for name, changes in sections.items():
            settings[name] |= changes
        config = validated(settings, source="this setting with other methods")
        check_model(self._model, config)
        return config


def _due(config: Config) -> int:
    """Rounds at which the full CNN is evaluated or saved."""
    return sum(map(config.train.anything_is_due, range(config.train.rounds + 1)))


def _compiled(lowered: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled]:
    return {name: program.compile() for name, program in lowered.items()}
