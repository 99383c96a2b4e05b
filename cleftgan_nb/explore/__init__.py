"Latents, sliders and inversion, in JupyterLab or as pictures"
from .latents import Directions, check_directions, draw, find_directions, latent_of, mix, motion
from .inversion import Inverter, load_latents, save_latents
from .spectra import plot_layer, plot_spectra
from .state import State
from .explorer import Explorer
