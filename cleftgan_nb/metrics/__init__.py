"Metrics of generated images: distances, path length, severity, equivariance, memorization and composition"
from .adaptation import load_adaptation
from .composition import fairness
from .copies import memorization
from .distances import density_coverage, frechet_distance, frechet_infinity, kernel_distance, precision_recall
from .divergence import dish
from .features import efficientnet_lite0, faceres, inception_2015, load_judges, opennsfw
from .gap import load_segmenter
from .motion import equivariance
from .path_length import ppl, slerp
from .perceptual import lpips_vgg16, stlpips
from .score import Score
from .severity import load_regression
from .table import measure
