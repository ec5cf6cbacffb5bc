from .arrays import flatten_paths as flatten_paths, unflatten_paths as unflatten_paths
from .cuts import Cut as Cut, filter_cuts as filter_cuts
from .groups import (
    MOMENTS as MOMENTS,
    FilterGroup as FilterGroup,
    Place as Place,
    with_moments as with_moments,
)
from .partition import (
    ascending_indices as ascending_indices,
    deal_partition as deal_partition,
    draw_partition as draw_partition,
    draw_ranked_partition as draw_ranked_partition,
    extract as extract,
    merge as merge,
    owned_indices as owned_indices,
    prune as prune,
)
from .ranking import (
    check_ranks as check_ranks,
    check_scores as check_scores,
    divide_by_chance as divide_by_chance,
    expected_footrule as expected_footrule,
    filter_scores as filter_scores,
    footrule as footrule,
    footrule_matrix as footrule_matrix,
    normalised_footrule as normalised_footrule,
    rank_filters as rank_filters,
)
from .scores import gate_derivatives as gate_derivatives, score_filters as score_filters
from .selection import (
    NO_RULES as NO_RULES,
    NORMS as NORMS,
    PRUNED as PRUNED,
    SCOPES as SCOPES,
    Norm as Norm,
    Rules as Rules,
    Scope as Scope,
    draw_kept as draw_kept,
    kept_count as kept_count,
    kept_overlaps as kept_overlaps,
    rules_fields as rules_fields,
)
