"""Normalized convolution: the operator and its backends. Tensors in, tensors out; nothing above torch is imported."""

from cuda_ops.normalized_conv import ACTIVATIONS, BACKENDS, Moments, normalized_conv2d

__all__ = ["ACTIVATIONS", "BACKENDS", "Moments", "normalized_conv2d"]
