"""Mean and deviation of a data set's images."""

import pytest
import torch

import wholebatch as wb
from wholebatch.data import statistics


def test_they_are_those_of_all_pixels(folder, own_cache):
    data = wb.data.image_folder(folder)
    pixels = torch.stack([data[index][0] for index in range(len(data))]).double() / 255
    found = wb.data.channel_statistics(data)
    mean, std = found.mean, found.std
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-10)
    assert wb.data.channel_statistics(data.in_memory()) == found
    assert len(list(own_cache.iterdir())) == 1


def test_images_of_different_sizes_count_by_pixel(tmp_path, picture):
    (tmp_path / "a").mkdir()
    for number, size in enumerate(((4, 4), (9, 5))):
        picture(number, *size).save(tmp_path / "a" / f"{number}.png")
    data = wb.data.image_folder(tmp_path)
    pixels = torch.cat([data[index][0].flatten(1) for index in (0, 1)], dim=1).double() / 255
    assert wb.data.channel_statistics(data).mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)


def test_they_are_computed_once(folder, monkeypatch):
    found = wb.data.channel_statistics(wb.data.image_folder(folder))
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "_computed", lambda *_: pytest.fail("computed again"))
        assert wb.data.channel_statistics(wb.data.image_folder(folder)) == found
    other = wb.data.channel_statistics(wb.data.image_folder(folder, size=4))
    part = wb.data.channel_statistics(wb.data.image_folder(folder, "train"))
    assert len({str(found), str(other), str(part)}) == 3


def test_of_many_images_some_are_read(monkeypatch):
    monkeypatch.setattr(statistics, "MOST", 3)
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    read_one_by_one = [(image, 0) for image in images]
    assert wb.data.channel_statistics(read_one_by_one).mean == pytest.approx((3 / 255,))  # 0, 3 and 6
