"The training of a generator: augmentation, losses, steps, state and cards"
from .ada import AdaptiveAugment
from .augment import AugmentPipe
from .config import Config, load_config, save_config
from .guards import Stopped
from .loop import train
from .losses import Dmain, Dreg, Gmain, Greg, Latents
from .optimizer import ema_beta, make_ema, update_ema
