"""Fixed upsampling and scores by rows, compared with torch's transposed convolution and gradients."""

import pytest
import torch
import torch.nn.functional as F

from fcnlab.models import CoarseScores, FeatureMap, Grid, Upsample
from fcnlab.models import upsampling as module
from fcnlab.models.geometry import IMAGE
from fcnlab.models.upsampling import bilinear_kernel

CLASSES = 3
# The origin of the coarse cells depends on the number of taps: even taps put new cells between the old ones.
SOURCES = [(factor, odd) for factor in (1, 2, 4, 8, 32) for odd in (False, True)]


def source(factor: int, odd: bool) -> Grid:
    return Grid(factor, 0.0 if odd else (factor - 1) / 2 if factor > 1 else 0.5)


def transposed(data, factor: int, odd: bool):
    """Upsample as in the papers: each class separately with the same kernel."""
    kernel = bilinear_kernel(factor, 2 * factor - odd).to(data.dtype).expand(data.shape[1], 1, -1, -1)
    return F.conv_transpose2d(data, kernel, stride=factor, groups=data.shape[1])


def cells(rows=4, cols=5, **settings):
    generator = torch.Generator().manual_seed(rows)
    data = torch.randn(2, CLASSES, rows, cols, generator=generator, dtype=torch.float64)
    return data.to(**settings).requires_grad_()


def coarse_scores(data, factor=8, size=(30, 37), odd=False) -> CoarseScores:
    grid = Grid(factor, 0.0 if odd else (factor - 1) / 2)
    return CoarseScores(
        FeatureMap(data, *grid), Upsample(CLASSES, grid, IMAGE), FeatureMap(torch.empty(2, 3, *size), *IMAGE)
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of one row of cells."""
    monkeypatch.setattr(module, "BLOCK_ON_CPU", 1)


@pytest.mark.parametrize(("factor", "odd"), SOURCES)
def test_fixed_upsampling_equals_the_transposed_convolution(factor, odd):
    data = cells()
    actual = Upsample(CLASSES, source(factor, odd), IMAGE)(FeatureMap(data, *source(factor, odd))).data
    reference = transposed(data, factor, odd)
    torch.testing.assert_close(actual, reference)  # double precision: to 1e-7
    weights = torch.rand_like(reference)
    slopes = [torch.autograd.grad((scores * weights).sum(), data)[0] for scores in (actual, reference)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(("kind", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_upsampling_in_other_precisions_and_memory_formats(kind, rounding):
    data = cells(dtype=kind).contiguous(memory_format=torch.channels_last)
    actual = Upsample(CLASSES, source(8, False), IMAGE)(FeatureMap(data, *source(8, False))).data
    assert actual.dtype == kind and actual.is_contiguous()
    expected = transposed(data.double(), 8, False)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=rounding * data.abs().max().item())


def test_one_cell_is_upsampled_to_the_kernel():
    data = torch.ones(1, CLASSES, 1, 1)
    actual = Upsample(CLASSES, Grid(8, 3.5), IMAGE)(FeatureMap(data, 8, 3.5)).data
    torch.testing.assert_close(actual[0, 0], bilinear_kernel(8, 16))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("size", [(30, 37), (24, 33), (25, 1), (1, 9)])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_rows_together_equal_the_image(odd, size):
    coarse = coarse_scores(cells(5, 6), size=size, odd=odd)
    blocks = list(coarse.by_rows())
    assert len(blocks) >= size[0] // 8
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(size[0]))
    together = torch.cat([scores for _, scores in blocks], 2)
    assert together.shape == (2, CLASSES, *size)
    torch.testing.assert_close(together, coarse.full())


def test_block_size_follows_the_memory_limit(monkeypatch):
    coarse = coarse_scores(cells(9, 6), size=(64, 40))
    monkeypatch.setattr(module, "BLOCK_ON_CPU", 2 * CLASSES * 40 * 8 * 3)  # three rows of cells
    assert [scores.shape[2] for _, scores in coarse.by_rows()] == [
        20,
        24,
        20,
    ]  # the first starts 4 pixels above the image


def squares(scores, target):
    """Return an artificial sum over pixels, whose gradient is 2 * (score - target)."""
    return (scores - target[:, None]).square().sum()


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_a_sum_over_rows_and_its_gradient_equal_those_of_the_image(odd):
    data, target = cells(5, 6), torch.randint(CLASSES, (2, 30, 37), dtype=torch.uint8)
    results = []
    for total in (
        coarse_scores(data, odd=odd).sum_over_rows(squares, target),
        squares(transposed(data, 8, odd)[:, :, 4 + 3 * odd :][:, :, :30, 4 + 3 * odd :][..., :37], target.long()),
    ):
        results.append((total.detach(), *torch.autograd.grad(3 * total, data)))
    torch.testing.assert_close(*results)


def test_a_sum_over_rows_propagates_its_gradient_to_earlier_layers():
    weight = torch.tensor(2.0, requires_grad=True, dtype=torch.float64)
    data, target = cells(5, 6).detach(), torch.zeros(2, 30, 37, dtype=torch.uint8)
    coarse_scores(weight * data).sum_over_rows(squares, target).backward()
    (expected,) = torch.autograd.grad(squares(coarse_scores(weight * data).full(), target), weight)
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_rounds_neither_the_sum_nor_its_gradient(half):
    """Both are computed in the forward pass, where autocast is enabled."""
    data, target = cells(5, 6, dtype=torch.float32), torch.randint(CLASSES, (2, 30, 37), dtype=torch.uint8)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", half, enabled=enabled):
            total = coarse_scores(data).sum_over_rows(squares, target)
        results.append((total.detach(), *torch.autograd.grad(total, data)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_learned_upsampling_keeps_single_precision_under_autocast():
    grid = Grid(8, 3.5)
    upsample = Upsample(CLASSES, grid, IMAGE, learned=True)
    coarse = CoarseScores(
        FeatureMap(cells(5, 6), *grid), upsample, FeatureMap(torch.empty(2, 3, 30, 37), *IMAGE)
    ).float()
    with torch.autocast("cpu", torch.bfloat16):
        scores = coarse.full()
    assert scores.dtype == torch.float32 and torch.equal(scores, coarse.full())


def test_no_gradients_are_computed_in_inference_mode():
    data, target = cells(5, 6).detach(), torch.zeros(2, 30, 37, dtype=torch.uint8)
    enabled = []

    def total(scores, target):
        enabled.append(torch.is_grad_enabled() or scores.requires_grad)
        return scores.sum()

    with torch.inference_mode():
        coarse_scores(data).sum_over_rows(total, target)
    coarse_scores(data).sum_over_rows(total, target)
    assert enabled and not any(enabled)


@pytest.mark.parametrize("learned", [False, True])
def test_scores_without_interpolation_are_one_block(learned):
    grid = Grid(8, 3.5) if learned else IMAGE
    data = cells(5, 6) if learned else cells(30, 37)
    upsample = Upsample(CLASSES, grid, IMAGE, learned)
    coarse = CoarseScores(FeatureMap(data, *grid), upsample, FeatureMap(torch.empty(2, 3, 30, 37), *IMAGE))
    ((rows, scores),) = coarse.by_rows()
    assert rows == slice(None) and torch.equal(scores, coarse.full()) and scores.shape[2:] == (30, 37)
    target = torch.zeros(2, 30, 37, dtype=torch.uint8)
    assert torch.equal(coarse.sum_over_rows(squares, target), squares(scores, target))


def test_cells_that_do_not_cover_the_image_are_an_error():
    small = coarse_scores(cells(3, 6), size=(40, 37))
    for use in (small.full, lambda: list(small.by_rows())):
        with pytest.raises(AssertionError, match="do not cover"):
            use()
