from .command_line import (
    ALL as ALL,
    CommandLine as CommandLine,
    Parser as Parser,
    path_name as path_name,
    run_command as run_command,
    whole_number as whole_number,
)
from .config import (
    Config as Config,
    flatten as flatten,
    largest_divisor as largest_divisor,
    nearest_multiple as nearest_multiple,
)
from .data import Data as Data
from .fields import (
    Distributed as Distributed,
    Fraction as Fraction,
    GPipe as GPipe,
    PositiveFloat as PositiveFloat,
    Section as Section,
    Train as Train,
    join_names as join_names,
)
from .loading import (
    apply_overrides as apply_overrides,
    read_config as read_config,
    read_yaml as read_yaml,
    validate_settings as validate_settings,
)
from .loft import ONE_WORKER as ONE_WORKER
from .optimizer import Optimizer as Optimizer
