"The networks of StyleGAN3 and StyleGAN2, and their discriminator"
from .build import ARCHITECTURES, build, from_config, plan, to_config, with_labels
from .discriminator import Discriminator
from .stylegan2 import StyleGAN2Generator
from .stylegan3 import StyleGAN3Generator

__all__ = ['StyleGAN3Generator', 'StyleGAN2Generator', 'Discriminator', 'build', 'plan', 'from_config', 'to_config',
           'with_labels', 'ARCHITECTURES']
