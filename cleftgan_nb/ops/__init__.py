"The operators of StyleGAN2 and StyleGAN3"
from .activation import bias_act
from .dispatch import default_impl, tracing, use_impl
from .filters import design_lowpass_filter, setup_filter
from .fused import filtered_lrelu
from .resample import downsample2d, filter2d, upfirdn2d, upsample2d

__all__ = ['bias_act', 'upfirdn2d', 'upsample2d', 'downsample2d', 'filter2d', 'setup_filter', 'filtered_lrelu',
           'design_lowpass_filter', 'use_impl', 'default_impl', 'tracing']
