from .array_files import read_array_file as read_array_file
from .checkpoints import (
    Store as Store,
    load_checkpoint as load_checkpoint,
    newest_sound as newest_sound,
    read_state as read_state,
)
from .metrics import describe_rounds as describe_rounds, missing_rounds as missing_rounds
from .records import (
    CHECKSUM as CHECKSUM,
    Count as Count,
    Hash as Hash,
    NonNegative as NonNegative,
    Schema as Schema,
    Share as Share,
    Text as Text,
    UnsoundError as UnsoundError,
    line_of as line_of,
    parse_object as parse_object,
    read_lines as read_lines,
    read_object as read_object,
    write_object as write_object,
)
from .run_directory import (
    CONFIG as CONFIG,
    COSTS as COSTS,
    METRICS as METRICS,
    RESULTS as RESULTS,
    SUMMARY as SUMMARY,
    TICKET as TICKET,
    RunDirectory as RunDirectory,
)
from .saved import saved_instead as saved_instead, saved_rounds as saved_rounds, seed_of as seed_of
from .summary import PHASES as PHASES
from .trackers import Tracker as Tracker, check_installed as check_installed
from .weights import load_weights as load_weights
