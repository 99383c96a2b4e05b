"Training: augmentation, losses, state"
from .ada import AdaptiveAugment
from .augment import PRESETS, AugmentPipe, augment, preset
from .config import Config, check, load_config, save_config
from .losses import Dmain, Dreg, Gmain, Greg, Latents
from .steps import ema_beta, make_ema, update_ema
