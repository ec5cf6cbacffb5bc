from .results import (
    LEVELS as LEVELS,
    SETTINGS as SETTINGS,
    Curve as Curve,
    Point as Point,
    Spread as Spread,
    claims as claims,
    collect_levels as collect_levels,
    curves as curves,
    is_lottery as is_lottery,
)
from .settings import LotteryConfig as LotteryConfig
from .training import TICKET as TICKET
