from .compiled import (
    CompiledRound as CompiledRound,
    Program as Program,
    Progress as Progress,
    RoundBill as RoundBill,
)
from .memory import PeakMemory as PeakMemory, data_bytes as data_bytes
