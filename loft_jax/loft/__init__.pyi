from .evaluate import Evaluator as Evaluator, NormEstimator as NormEstimator
from .images import Batches as Batches, Images as Images, make_images as make_images
from .local_step import LocalStep as LocalStep, make_local_step as make_local_step
from .method import Method as Method
from .optimizer import LearningRate as LearningRate
from .orders import training_order as training_order
from .program import RoundProgram as RoundProgram
from .round import Round as Round
from .split import split_groups as split_groups, sub_cnn as sub_cnn
from .state import (
    State as State,
    exchanges as exchanges,
    initial_state as initial_state,
    put_state as put_state,
    starting_state as starting_state,
)
from .sync import Sync as Sync
from .taylor import TaylorScorer as TaylorScorer
from .traffic import (
    COLLECTIVE_KINDS as COLLECTIVE_KINDS,
    NO_TRAFFIC as NO_TRAFFIC,
    Traffic as Traffic,
    norm_traffic as norm_traffic,
    sent_bytes as sent_bytes,
    step_traffic as step_traffic,
)
from .wire import BYTES_OF_FLOAT as BYTES_OF_FLOAT
