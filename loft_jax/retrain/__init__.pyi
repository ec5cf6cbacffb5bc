from .results import collect_results as collect_results
