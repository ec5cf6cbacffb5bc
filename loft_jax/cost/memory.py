"""Peak memory of a device in training: what stays on it, and the largest of a round's compiled programs.

As the compiler plans it: its own measure of temporary space, which backends fill differently. Left out is what takes
little: drawing GPipe's batches, and the moment between a program's end and the release of what it read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from loft_jax.config import Config
from loft_jax.data import Facts
from loft_jax.devices import PER_WORKER, STEPS_AHEAD, WORKER
from loft_jax.gpipe import GPipe, StageProgram
from loft_jax.loft import Round

Programs = Mapping[str, jax.stages.Compiled]


@dataclass(frozen=True)
class PeakMemory:
    """Bytes on the device that holds most, at the worst moment of a round.

    Attributes:
      resident: state, training data, and what workers or micro-batches have left there.
      program: temporary space and new results of the program that runs then.
      name: of that program.
    """

    resident: int
    program: int
    name: str

    @property
    def total(self) -> int:
        """Of both."""
        return self.resident + self.program


def nbytes(tree: Any) -> int:
    """Of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes(tree: Any, specs: PartitionSpec | Mapping[str, PartitionSpec], mesh: Mesh) -> int:
    """Bytes that one device holds of a tree, given how it lies on the mesh."""
    if isinstance(specs, Mapping):
        return sum(device_bytes(tree[name], spec, mesh) for name, spec in specs.items())
    return nbytes(tree) // (mesh.shape[WORKER] if specs == PER_WORKER else 1)


def program_bytes(program: jax.stages.Compiled) -> int:
    """What a program needs beside its arguments: temporary space, and results that take no argument's place."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def data_bytes(facts: Facts, config: Config, devices: int) -> int:
    """Of images and labels on each device; streamed ones: the batch in work, and those on their way."""
    batches = (1 + STEPS_AHEAD) * config.data.batch_size // config.mesh.data
    return facts.device_bytes(devices, batches)


def round_memory(programs: Programs, round_: Round, state: Any, mesh: Mesh, data_bytes: int) -> PeakMemory:
    """Of a LoFT round.

    Args:
      programs: those of `round_.lowered`, compiled.
      state: between rounds, or its shapes.
      data_bytes: of the images on each device.
    """
    meeting, slots = round_.meeting, round_.slots
    masks = jax.eval_shape(meeting.partition, state)
    at_rest = device_bytes(state, meeting.state_spec, mesh) + device_bytes(masks, meeting.masks_spec, mesh)
    # A worker's compact state is what a step's program gives back in place of what it was given.
    worker = programs["step" if "step" in programs else "loop"].memory_analysis().output_size_in_bytes
    peaks = []
    for name, program in programs.items():
        # Those that make a worker's state run beside the workers of the other slots; the others beside all.
        workers = slots - 1 if name in ("begin", "loop") else slots
        peaks.append(PeakMemory(at_rest + data_bytes + workers * worker, program_bytes(program), name))
    return max(peaks, key=lambda peak: peak.total)


def gpipe_memory(programs: Mapping[StageProgram, jax.stages.Compiled], gpipe: GPipe, data_bytes: int) -> PeakMemory:
    """Of GPipe's stages, each on its device; arguments as of `round_memory`."""
    peaks = []
    for name, program in programs.items():
        stage = name.stage
        held = nbytes(gpipe.variable_shapes[stage]) + nbytes(gpipe.sum_shapes[stage])
        # While the pipeline is full, every micro-batch's input waits for its way back, which a gradient begins.
        held += gpipe.microbatches * nbytes(gpipe.inputs[stage]) + nbytes(gpipe.inputs[stage + 1 : stage + 2])
        peaks.append(PeakMemory(held + data_bytes, program_bytes(program), str(name)))
    return max(peaks, key=lambda peak: peak.total)
