"Cohorts: a digital phantom, photographs, datasets, cards"
from .cleft import Cleft, Side
from .cohorts import Recipe, cohort
from .datasets import ImageFolderDataset, InfiniteSampler, convert, manifest, verify, write_dataset
from .measures import measures
from .portrait import phantom
