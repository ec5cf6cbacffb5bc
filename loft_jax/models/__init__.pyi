from .flops import count_flops as count_flops
from .network import Network as Network, SegmentedNetwork as SegmentedNetwork
from .registry import create_model as create_model, make_model as make_model, published_width as published_width
from .sizes import (
    counted_flops as counted_flops,
    parameter_count as parameter_count,
    training_flops as training_flops,
)
