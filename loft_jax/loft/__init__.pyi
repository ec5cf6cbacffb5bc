from .evaluate import Evaluator as Evaluator, NormEstimator as NormEstimator
from .exchange import check_exchangeable as check_exchangeable, largest_hand as largest_hand
from .feeds import (
    Resident as Resident,
    TrainingData as TrainingData,
    training_data as training_data,
    training_shapes as training_shapes,
)
from .local_step import LocalStep as LocalStep, make_local_step as make_local_step
from .optimizer import sgd_step as sgd_step
from .round import Round as Round
from .state import exchanges as exchanges, initial_state as initial_state, starting_state as starting_state
from .sub_cnn import split_groups as split_groups, sub_cnn as sub_cnn
from .traffic import (
    BYTES_OF_FLOAT as BYTES_OF_FLOAT,
    Traffic as Traffic,
    assembly_traffic as assembly_traffic,
    norm_traffic as norm_traffic,
    sent_bytes as sent_bytes,
    step_traffic as step_traffic,
    sync_traffic as sync_traffic,
)
