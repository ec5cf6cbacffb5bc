from .compiled import (
    CompiledRound as CompiledRound,
    Program as Program,
    Progress as Progress,
    RoundBill as RoundBill,
    nbytes as nbytes,
)
from .hlo import Collective as Collective, collectives as collectives, count_trips as count_trips
from .memory import PeakMemory as PeakMemory, data_bytes as data_bytes
from .prediction import ParameterSplit as ParameterSplit, gpipe_bytes as gpipe_bytes
