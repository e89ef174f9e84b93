"""Mean and deviation of a data set's images."""

import pytest
import torch

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data import channels


def test_they_are_those_of_all_pixels(folder, own_cache):
    data = wb.data.image_folder(folder)
    pixels = torch.stack([data[index][0] for index in range(len(data))]).double() / 255
    mean, std = wb.data.statistics(data)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-10)
    assert wb.data.statistics(data.in_memory()) == (mean, std)
    assert len(list(own_cache.iterdir())) == 1


def test_images_of_different_sizes_count_by_pixel(tmp_path, picture):
    (tmp_path / "a").mkdir()
    for number, size in enumerate(((4, 4), (9, 5))):
        picture(number, *size).save(tmp_path / "a" / f"{number}.png")
    data = wb.data.image_folder(tmp_path)
    pixels = torch.cat([data[index][0].flatten(1) for index in (0, 1)], dim=1).double() / 255
    assert wb.data.statistics(data)[0] == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)


def test_they_are_computed_once(folder, monkeypatch):
    found = wb.data.statistics(wb.data.image_folder(folder))
    with monkeypatch.context() as patch:
        patch.setattr(channels, "_compute", lambda dataset: pytest.fail("computed again"))
        assert wb.data.statistics(wb.data.image_folder(folder)) == found
    other = wb.data.statistics(wb.data.image_folder(folder, size=4))
    part = wb.data.statistics(wb.data.image_folder(folder, "train"))
    assert len({str(found), str(other), str(part)}) == 3


def test_of_many_images_some_are_read(monkeypatch):
    monkeypatch.setattr(channels, "MOST", 3)
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    assert wb.data.statistics(wb.data.ArrayDataset(images, torch.arange(8)))[0] == [3 / 255]  # 0, 3 and 6


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(3, 1, 2, 2), r"got torch\.float32"),
        (torch.zeros(3, 4, dtype=torch.uint8), r"got torch\.uint8 \(4,\)"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "one value everywhere"),
    ],
)
def test_no_images(images, match):
    with pytest.raises(DataError, match=match):
        wb.data.statistics(wb.data.ArrayDataset(images, torch.arange(3)))
