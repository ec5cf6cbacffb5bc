from .arrays import load_arrays as load_arrays, save_arrays as save_arrays
from .batches import worker_order as worker_order
from .dataset import Dataset as Dataset
from .digits import read_digits as read_digits
from .facts import (
    Facts as Facts,
    data_identity as data_identity,
    dataset_facts as dataset_facts,
    facts_to_compile_for as facts_to_compile_for,
)
from .load import load_dataset as load_dataset, prepare_dataset as prepare_dataset
from .memory import image_data as image_data
from .preparation import Preparation as Preparation
from .streaming.dataset import AnyDataset as AnyDataset, StreamedDataset as StreamedDataset
from .streaming.schedule import FixedSchedule as FixedSchedule, TrainingSchedule as TrainingSchedule
from .streaming.stream import Stream as Stream, chunk_size as chunk_size
