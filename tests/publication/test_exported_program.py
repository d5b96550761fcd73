"""Test exported networks against the network itself, at sizes that the export has not seen."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fcnlab.errors import UserError
from fcnlab.models import FCN, VGG16, GoogLeNet, ResNet, TimmBackbone, Tiny
from fcnlab.publication.exported_program import export_program, open_program, save_program
from fcnlab.publication.onnx_file import open_onnx, save_onnx

pytestmark = pytest.mark.unchecked  # torch.export cannot trace the checks of annotations


def randomized(backbone: nn.Module, levels=(32, 16, 8), **settings) -> FCN:
    """Return a network whose scores depend on each level."""
    torch.manual_seed(0)
    net = FCN(backbone, 5, levels, **settings).eval()
    for head in net.heads.values():
        nn.init.normal_(head.weight, std=0.05)
    return net


def random_images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8) for batch, *size in sizes]


@torch.no_grad()
def expected(net, image):
    """What the network computes, with numpy's argmax."""
    scores = net(image.float() / 255)
    return torch.from_numpy(scores.numpy().argmax(1)), scores


def check(net, run, images):
    for image in images:
        (classes, scores), (own_classes, own_scores) = expected(net, image), run(image)
        assert own_classes.dtype == torch.uint8 and own_scores.shape == scores.shape
        torch.testing.assert_close(own_scores, scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))
        differing = own_classes.long() != classes
        first, second = scores.topk(2, dim=1).values.unbind(1)
        assert ((first - second)[differing] < 2e-5 * scores.abs().max()).all() and differing.float().mean() < 1e-3


def test_a_program_takes_images_of_sizes_it_has_not_seen(tmp_path):
    """And a file that returns the class map alone has the scores inside."""
    net = randomized(Tiny(width=2), (32,))
    program = export_program(net, 1, None, with_scores=False)
    assert program.smallest == 33  # two cells of stride 32
    save_program(program, tmp_path / "net.pt2", {"classes": ["a", "b"]})
    check(net, open_program(tmp_path / "net.pt2"), random_images((1, 33, 33), (3, 64, 128), (2, 75, 131)))
    module = torch.export.load(tmp_path / "net.pt2", extra_files=(extra := {"fcnlab.json": ""})).module()
    assert module(torch.zeros(1, 3, 40, 50, dtype=torch.uint8)).shape == (1, 40, 50)
    assert extra["fcnlab.json"] == '{"classes": ["a", "b"]}'
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))


def test_a_static_program_takes_one_size_of_any_number_of_cells(tmp_path):
    net = randomized(Tiny(width=2), (32,))
    program = export_program(net, 1, (20, 70), with_scores=True)
    assert program.smallest == 20
    save_program(program, tmp_path / "net.pt2", {})
    check(net, run := open_program(tmp_path / "net.pt2"), random_images((1, 20, 70)))
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.zeros(2, 3, 20, 70, dtype=torch.uint8))


def test_a_network_that_decides_by_pixels_is_refused():
    class Undecided(nn.Module):
        def forward(self, image):
            return image if image.mean() > 0.5 else image.flip(1)

    with pytest.raises(
        UserError, match=r"torch\.export cannot export Undecided, because its code depends on the image"
    ):
        export_program(Undecided(), 1, None, with_scores=True)


NETWORKS = {  # and the smallest sizes of their programs
    "tiny, padding=paper, learned": (lambda: randomized(Tiny("paper", width=2), upsampling="learned_all"), 1),
    "vgg16": (lambda: randomized(VGG16()), 33),
    "googlenet": (lambda: randomized(GoogLeNet()), 63),
    "resnet50": (lambda: randomized(ResNet()), 33),
    "efficientnet_lite2": (lambda: randomized(TimmBackbone("tf_efficientnet_lite2"), frozen_norm=True), 2),
}


class SizeDependent(nn.Module):
    """A network whose code asks for the size of the image."""

    def __init__(self, condition):
        super().__init__()
        self.conv, self.condition = nn.Conv2d(3, 3, 1), condition

    def forward(self, x):
        return self.conv(x) * (2 if self.condition(*x.shape[2:]) else 1)


@pytest.mark.parametrize(
    "condition",
    [
        lambda rows, cols: rows > 400,
        lambda rows, cols: rows > cols,
        lambda rows, cols: rows * cols > 1e6,
        lambda rows, cols: rows % 16 == 0,
        lambda rows, cols: cols % 64 == 0,
        lambda rows, cols: rows % 6 == 0 and cols % 2 == 1,
    ],
)
def test_a_program_with_conditions_on_larger_sizes_is_refused(condition):
    """A file of ONNX would compute something else there."""
    with pytest.raises(
        UserError, match=r"accepts no image of \d+x\d+ pixels, because its code depends on the size: Guard"
    ):
        export_program(SizeDependent(condition), 1, None, with_scores=True)
    assert export_program(SizeDependent(condition), 1, (30, 40), with_scores=True).smallest == 30


CAMPAIGNS = {"efficientnet_lite2"}  # a minute for its ONNX file


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.campaign if name in CAMPAIGNS else ()) for name in NETWORKS]
)
def test_programs_and_onnx_files_compute_what_the_network_does(tmp_path, name):
    make, smallest = NETWORKS[name]
    net = make()
    program = export_program(net, net.backbone.min_size, None, with_scores=True)
    assert program.smallest == smallest
    images = random_images((1, smallest, smallest), (2, 65, 99), (1, 128, 200), (1, 96, 64))
    save_program(program, tmp_path / "net.pt2", {})
    save_onnx(program, tmp_path / "net.onnx", {}, with_scores=False)
    for run in (open_program(tmp_path / "net.pt2"), open_onnx(tmp_path / "net.onnx")):
        check(net, run, images)


@pytest.mark.slow  # a new process
def test_a_program_runs_without_fcnlab(tmp_path):
    net = randomized(GoogLeNet(), (32,))  # whose normalisation and upsampling have gradients of their own
    save_program(export_program(net, 31, (70, 80), with_scores=True), tmp_path / "net.pt2", {})
    (image,) = random_images((1, 70, 80))
    torch.save({"image": image, "scores": expected(net, image)[1]}, tmp_path / "data.pt")
    code = (
        "import sys; sys.modules['fcnlab'] = None\nimport torch\ndata = torch.load('data.pt')\n"
        "class_map, scores = torch.export.load('net.pt2').module()(data['image'])\n"
        "torch.testing.assert_close(scores, data['scores'])\nprint(class_map.dtype, tuple(class_map.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "torch.uint8 (1, 70, 80)\n"
