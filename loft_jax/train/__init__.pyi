from .experiment import Experiment as Experiment
from .speed import StepLoop as StepLoop, images_per_second as images_per_second, interleaved as interleaved
from .trainer import train_to_the_end as train_to_the_end
