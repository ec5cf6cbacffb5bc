from .loop import STEPS_AHEAD as STEPS_AHEAD, DeviceLoop as DeviceLoop, unstack as unstack, vary as vary
from .mesh import (
    DATA as DATA,
    PER_DEVICE as PER_DEVICE,
    PER_WORKER as PER_WORKER,
    REPLICATED as REPLICATED,
    WORKER as WORKER,
    bytes_on_device as bytes_on_device,
    distribute as distribute,
    make_mesh as make_mesh,
    replicate as replicate,
    settle as settle,
    shapes_on as shapes_on,
    shapes_with_specs as shapes_with_specs,
)
from .processes import (
    Preemption as Preemption,
    agreed as agreed,
    check_sees as check_sees,
    connected as connected,
    on_first as on_first,
)
from .setup import (
    configure_jax as configure_jax,
    jit_once as jit_once,
    keep_compiled_programs as keep_compiled_programs,
)
