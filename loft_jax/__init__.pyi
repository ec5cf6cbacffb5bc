from .calls import (
    pretrain as pretrain,
    retrain_tickets as retrain_tickets,
    search_tickets as search_tickets,
    write_report as write_report,
)
from .config import Config as Config
from .data import image_data as image_data, load_dataset as load_dataset
from .errors import UserError as UserError
from .filters import (
    FilterGroup as FilterGroup,
    Place as Place,
    deal_partition as deal_partition,
    draw_partition as draw_partition,
    expected_footrule as expected_footrule,
    extract as extract,
    filter_scores as filter_scores,
    footrule as footrule,
    footrule_matrix as footrule_matrix,
    merge as merge,
    normalised_footrule as normalised_footrule,
    prune as prune,
    rank_filters as rank_filters,
)
from .models import (
    create_model as create_model,
    explain_filter_groups as explain_filter_groups,
    find_filter_groups as find_filter_groups,
)
from .storage import load_checkpoint as load_checkpoint

__version__: str
