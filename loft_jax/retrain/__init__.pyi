from .results import collect_results as collect_results
from .settings import retrain_config as retrain_config
from .summary import mode_name as mode_name
