from .compiled import (
    CompiledRound as CompiledRound,
    Program as Program,
    Progress as Progress,
    RoundBill as RoundBill,
)
from .hlo import Collective as Collective
from .kernels import Kernel as Kernel, kernels_of_steps as kernels_of_steps, sum_kernels as sum_kernels
from .memory import PeakMemory as PeakMemory, data_bytes as data_bytes
from .timing import (
    Seconds as Seconds,
    cards_together as cards_together,
    link_seconds as link_seconds,
    program_seconds as program_seconds,
)
