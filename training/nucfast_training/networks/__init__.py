"""Networks. Each maps (N, 3, H, W) float in 0..1 to a dict of logits by head name."""

from nucfast_training.networks.fast_unet import FastUNet

NETWORKS = {"fast_unet": FastUNet}
