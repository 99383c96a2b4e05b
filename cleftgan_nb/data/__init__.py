"Cohorts: a digital phantom, photographs, datasets, cards"
from .cards import card
from .cleft import Cleft, Side
from .cohorts import Recipe, cohort
from .datasets import ImageFolderDataset, InfiniteSampler, convert, manifest, verify, write_dataset
from .photographs import prepare
from .portrait import phantom
