"""Networks in plain PyTorch: ``FCN(GoogLeNet(weights="bvlc_googlenet.safetensors"), num_classes=21)``."""

from fcnlab.models.alexnet import AlexNet, CaffeNet
from fcnlab.models.architecture import Architecture
from fcnlab.models.fcn import FCN
from fcnlab.models.geometry import FeatureMap, Grid, overlap, receptive_field
from fcnlab.models.googlenet import GoogLeNet, GoogLeNetBN
from fcnlab.models.network import Network, unused_parameters
from fcnlab.models.resnet import ResNet
from fcnlab.models.timm_backbone import TimmBackbone
from fcnlab.models.tiny import Tiny
from fcnlab.models.torchvision_backbone import TorchvisionBackbone
from fcnlab.models.upsampling import CoarseScores, Upsample
from fcnlab.models.vgg import VGG16

__all__ = [
    "FCN",
    "VGG16",
    "AlexNet",
    "Architecture",
    "CaffeNet",
    "CoarseScores",
    "FeatureMap",
    "GoogLeNet",
    "GoogLeNetBN",
    "Grid",
    "Network",
    "ResNet",
    "TimmBackbone",
    "Tiny",
    "TorchvisionBackbone",
    "Upsample",
    "overlap",
    "receptive_field",
    "unused_parameters",
]
