"""Normalized convolution: the operator and its backends. Tensors in, tensors out; nothing above torch is imported."""

from cuda_ops.direct import Activation, activate
from cuda_ops.normalized_conv import ACTIVATIONS, BACKENDS, Backend, Moments, normalized_conv2d

__all__ = ["ACTIVATIONS", "BACKENDS", "Activation", "Backend", "Moments", "activate", "normalized_conv2d"]
