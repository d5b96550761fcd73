"""Networks as plain PyTorch: ``FCN(GoogLeNet(weights="bvlc_googlenet.safetensors"), num_classes=21)``."""

from fcnlab.models.fcn import FCN
from fcnlab.models.geometry import FeatureMap, Grid, Upsample, overlap
from fcnlab.models.googlenet import GoogLeNet
from fcnlab.models.tiny import Tiny
from fcnlab.models.vgg import VGG16

__all__ = ["FCN", "VGG16", "FeatureMap", "GoogLeNet", "Grid", "Tiny", "Upsample", "overlap"]
