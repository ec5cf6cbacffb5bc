from .hlo import Collective as Collective, collectives as collectives, counted_trips as counted_trips
from .memory import (
    PeakMemory as PeakMemory,
    data_bytes as data_bytes,
    gpipe_memory as gpipe_memory,
    nbytes as nbytes,
    round_memory as round_memory,
)
from .prediction import ParameterSplit as ParameterSplit, gpipe_bytes as gpipe_bytes
