from .chips import CHIPS as CHIPS, GB as GB, Chip as Chip, Platform as Platform, find_chip as find_chip
from .loop import STEPS_AHEAD as STEPS_AHEAD, DeviceLoop as DeviceLoop, unstack as unstack, vary as vary
from .memory import keep_freed_memory as keep_freed_memory
from .mesh import (
    DATA as DATA,
    PER_DEVICE as PER_DEVICE,
    PER_WORKER as PER_WORKER,
    REPLICATED as REPLICATED,
    WORKER as WORKER,
    bytes_on_device as bytes_on_device,
    distribute as distribute,
    make_mesh as make_mesh,
    nbytes as nbytes,
    replicate as replicate,
    shapes_with_sharding as shapes_with_sharding,
    shapes_with_specs as shapes_with_specs,
    wait_for_collective as wait_for_collective,
)
from .processes import (
    check_visible as check_visible,
    connect_processes as connect_processes,
    reduce_over_processes as reduce_over_processes,
    run_on_first as run_on_first,
)
from .setup import (
    configure_jax as configure_jax,
    jit_once as jit_once,
    keep_compiled_programs as keep_compiled_programs,
    step_options as step_options,
)
