from .array_files import read_array_file as read_array_file
from .checkpoints import (
    Store as Store,
    load_checkpoint as load_checkpoint,
    newest_sound as newest_sound,
    read_state as read_state,
)
from .run_directory import (
    CONFIG as CONFIG,
    COSTS as COSTS,
    METRICS as METRICS,
    PHASES as PHASES,
    RESULTS as RESULTS,
    SUMMARY as SUMMARY,
    TICKET as TICKET,
    RunDirectory as RunDirectory,
    saved_instead as saved_instead,
    saved_rounds as saved_rounds,
)
from .trackers import Tracker as Tracker, check_installed as check_installed
from .weights import load_weights as load_weights
