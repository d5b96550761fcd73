"""torchvision's ResNets without average pool and classifier, plain or dilated."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from fcnlab.models.backbone import Chain, imagenet_convention, named_chain
from fcnlab.models.weights import load_backbone, with_batch_counters, without_layers

BLOCKS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}  # He et al., CVPR 2016, table 1


class ResNet(Chain):
    """Levels 8 (layer2), 16 (layer3) and 32 (layer4) of ResNet-50 or -101, with the stride in the 3x3 convolutions.

    ``output_stride=8`` dilates layer3 and layer4 in place of their strides, as torchvision's and most of today's "FCN"s
    do: all three levels then have stride 8. ``16`` dilates layer4 only.
    ``weights`` is ``"none"``, ``"imagenet"`` (torchvision's first, from which its own segmentation nets start) or the
    path of a file with torchvision's layer names.
    """

    channels_last_on_cpu = True

    def __init__(self, depth: Literal[50, 101] = 50, output_stride: Literal[8, 16, 32] = 32, weights: str = "none"):
        if depth not in BLOCKS:
            raise ValueError(f"depth={depth}: choose one of {list(BLOCKS)}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={output_stride}: choose 8, 16 or 32")
        from torchvision.models import resnet  # here: other backbones do without

        dilate = [False, output_stride < 16, output_stride < 32]
        net = resnet.ResNet(resnet.Bottleneck, BLOCKS[depth], replace_stride_with_dilation=dilate)
        super().__init__(
            imagenet_convention(),
            named_chain(
                conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool, layer1=net.layer1, layer2=net.layer2
            ),
            named_chain(layer3=net.layer3),
            named_chain(layer4=net.layer4),
            channels=(512, 1024, 2048),
        )
        imagenet = f"ResNet{depth}_Weights.IMAGENET1K_V1"
        self.pretrained = load_backbone(self, weights, self._from_torchvision, imagenet)

    def path(self, part: nn.Module) -> list[nn.Module]:
        from torchvision.models.resnet import Bottleneck

        return [part.conv1, part.conv2, part.conv3] if isinstance(part, Bottleneck) else super().path(part)

    def _from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.placed(with_batch_counters(without_layers(state, "fc")))
