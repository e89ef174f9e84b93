import pytest
import torch

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import Compose, Normalize
from wholebatch.data.transform import change_field, finisher

PLACE = {"seed": 0, "epoch": 0, "indices": torch.arange(2)}


def test_normalize_by_channel():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got, labels = Normalize(mean, std)((images, "labels"), **PLACE)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert got.dtype == torch.float32
    assert labels == "labels"
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_leaves_its_input_alone(dtype):
    images = torch.ones(2, 1, dtype=dtype)
    got = Normalize(scale=0.5)(images, **PLACE)
    assert got.dtype == dtype
    assert got.tolist() == [[0.5], [0.5]]
    assert images.tolist() == [[1.0], [1.0]]


def test_normalize_refuses():
    with pytest.raises(DataError, match="positive"):
        Normalize(std=(1.0, 0.0))
    with pytest.raises(DataError, match=r"2 channels, the images are of shape \(2, 3, 4\)"):
        Normalize(mean=(0.0, 0.0))(torch.zeros(2, 3, 4), **PLACE)


def test_compose_in_order():
    add = lambda batch, **_: batch + 1  # noqa: E731
    double = lambda batch, **_: batch * 2  # noqa: E731
    assert Compose(add, double)(torch.tensor(3), **PLACE) == 8
    assert Compose()("as it is", **PLACE) == "as it is"
    with pytest.raises(InputTypeError, match="callables"):
        Compose([add, double])


def test_fields():
    one, two = torch.ones(1), torch.zeros(1)
    assert change_field({"x": one, "y": two}, "x", torch.neg) == {"x": -one, "y": two}
    assert change_field([one, two], 1, lambda part: part + 5) == [one, two + 5]
    with pytest.raises(DataError, match=r"the batch has \['x'\]; say field"):
        change_field({"x": one}, 0, torch.neg)
    with pytest.raises(DataError, match="does not have"):
        change_field((one,), 3, torch.neg)


def test_nothing_to_finish():
    assert finisher(None, 0, 0, None) is None
