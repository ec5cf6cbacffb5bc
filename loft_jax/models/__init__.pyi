from .explanation import (
    Explanation as Explanation,
    explain as explain,
    explain_filter_groups as explain_filter_groups,
    find_filter_groups as find_filter_groups,
)
from .flops import count_flops as count_flops
from .loading import give_network as give_network
from .network import Network as Network, SegmentedNetwork as SegmentedNetwork
from .registry import (
    create_model as create_model,
    make_model as make_model,
    needs_images as needs_images,
    published_width as published_width,
)
from .sizes import (
    TrainingFlops as TrainingFlops,
    counted_flops as counted_flops,
    parameter_count as parameter_count,
    training_flops as training_flops,
    variable_shapes as variable_shapes,
)
