"""Augmentation against a loop over single pictures, whose draws are their own and follow from the seed."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize

from dartslight.data.augmentation import augment, cut_out, normalise
from dartslight.data.pictures import channel_statistics


def pictures(count: int = 40, height: int = 9, width: int = 12) -> Tensor:
    """Random pictures without a black byte, so that padding can be told from them."""
    return torch.randint(1, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def crops(image: Tensor, padding: int) -> dict[tuple[int, int], Tensor]:
    """Every crop of one padded picture, by a loop over its pixels' rows."""
    _, height, width = image.shape
    padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    padded[:, padding : padding + height, padding : padding + width] = image
    shifts = range(2 * padding + 1)
    return {(y, x): padded[:, y : y + height, x : x + width] for y in shifts for x in shifts}


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (3, False), (0, True)])
def test_every_picture_is_one_of_its_own_crops(padding: int, flip: bool) -> None:
    images = pictures()
    results = augment(images, 5, padding, flip)
    seen = set()
    for image, result in zip(images, results, strict=True):
        found = [
            (corner, mirrored)
            for corner, crop in crops(image, padding).items()
            for mirrored in ((False, True) if flip else (False,))
            if torch.equal(result, crop.flip(2) if mirrored else crop)
        ]
        assert len(found) == 1
        seen.add(found[0])
    if flip:
        assert {mirrored for _, mirrored in seen} == {False, True}
    if padding:
        assert len({corner for corner, _ in seen}) > padding * 3  # 40 pictures have draws of their own
    assert results.dtype == torch.uint8


def test_crops_and_flips_are_uniform() -> None:
    image = torch.arange(1, 1 + 3 * 4 * 4).to(torch.uint8).view(1, 3, 4, 4)
    count, padding = 9000, 1
    results = augment(image.expand(count, -1, -1, -1), 3, padding, True)
    for crop in crops(image[0], padding).values():
        for wanted in (crop, crop.flip(2)):
            share = (results == wanted).flatten(1).all(dim=1).double().mean()
            assert abs(share - 1 / 18) < 0.011  # 4.5 standard deviations


def test_draws_follow_from_the_seed_alone() -> None:
    images = pictures()
    torch.manual_seed(1)
    first = augment(images, 7, 2, True)
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, 7, 2, True))
    assert not torch.equal(first, augment(images, 8, 2, True))


def test_memory_order_does_not_change_pictures() -> None:
    images = pictures()
    by_channel = augment(images.contiguous(), 7, 2, True)
    by_pixel = augment(images.contiguous(memory_format=torch.channels_last), 7, 2, True)
    assert torch.equal(by_channel, by_pixel)
    for result in (by_channel, by_pixel):
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_nothing_to_do_changes_nothing() -> None:
    assert torch.equal(augment(pictures(), 7, 0, False), pictures())


def test_normalise_agrees_with_torchvision() -> None:
    images, mean, std = pictures(), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    result = normalise(images, mean, std)
    torch.testing.assert_close(result, normalize(images / 255, mean, std), atol=2e-6, rtol=0)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [4, 5, 40])
def test_cutout_is_a_clipped_square_of_zeros(size: int) -> None:
    images = torch.ones(60, 3, 9, 12)
    results = cut_out(images, 3, size)
    corners = set()
    for result in results:
        assert set(result.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(result[0], result[1])
        assert torch.equal(result[0], result[2])
        rows, columns = (result[0] == 0).nonzero(as_tuple=True)
        hole = result[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert hole.sum() == 0  # one rectangle
        assert (result == 0).sum() == hole.numel()
        assert all(size // 2 <= side <= size or size > 9 for side in hole.shape[1:])
        corners.add((int(rows.min()), int(columns.min()), *hole.shape[1:]))
    assert len(corners) > 20 or size > 9
    assert torch.equal(images, torch.ones(60, 3, 9, 12))


def test_a_picture_loses_a_square_with_its_probability() -> None:
    images = torch.ones(4000, 3, 5, 5)
    whole, some, none = (cut_out(images, 3, 2, probability) for probability in (1.0, 0.3, 0.0))
    assert torch.equal(none, images)
    cut = (some == 0).flatten(1).any(dim=1)
    assert float(cut.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(some[cut], whole[cut])


def test_cutout_centres_are_every_pixel() -> None:
    results = cut_out(torch.ones(400, 3, 5, 6), 3, 1)
    assert ((results == 0).sum(dim=(1, 2, 3)) == 3).all()
    assert ((results[:, 0] == 0).sum(dim=0) > 0).all()


def test_cutout_is_independent_of_the_crop_of_the_same_seed() -> None:
    """Were both drawn from one stream, the hole's row would tell the crop's."""
    count, padding = 4000, 2
    image = torch.arange(5, dtype=torch.uint8)[:, None].expand(count, 3, 5, 5)  # each byte is the number of its row
    tops = augment(image, 9, padding, False)[:, 0, 2, 2]
    rows = (cut_out(torch.ones(count, 3, 5, 5), 9, 1)[:, 0] == 0).any(dim=2).float().argmax(dim=1)
    correlation = torch.corrcoef(torch.stack([tops.double(), rows.double()]))[0, 1]
    assert abs(correlation) < 0.08


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_makes_the_same_pictures() -> None:
    images = pictures()
    cropped = augment(images, 7, 2, True)
    assert torch.equal(cropped, augment(images.cuda(), 7, 2, True).cpu())
    there = cut_out(normalise(images.cuda(), (0.5,) * 3, (0.25,) * 3), 7, 4).cpu()
    torch.testing.assert_close(there, cut_out(normalise(images, (0.5,) * 3, (0.25,) * 3), 7, 4))


def test_statistics_are_those_of_the_chosen_pictures() -> None:
    images = pictures(2500, 4, 5)
    chosen = torch.arange(0, 2500, 2)
    mean, std = channel_statistics(images, chosen)
    values = images[chosen].double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), values.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std).double(), values.std(dim=(0, 2, 3), correction=0))


def test_a_constant_channel_is_divided_by_one() -> None:
    images = pictures(4)
    images[:, 1] = 51
    mean, std = channel_statistics(images, torch.arange(4))
    assert (mean[1], std[1]) == (pytest.approx(0.2), 1.0)
    assert normalise(images, mean, std)[:, 1].abs().max() < 1e-6
