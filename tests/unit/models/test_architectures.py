import pytest
import torch
from torch import nn

from wholebatch.models import MLP, MODELS, LeNet, SmallCNN


def test_shapes():
    assert SmallCNN()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert SmallCNN(5, in_channels=3, image_size=12, width=8)(torch.zeros(2, 3, 12, 12)).shape == (2, 5)
    assert LeNet()(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    assert MLP()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert MLP(4, in_channels=6, image_size=1, hidden=())(torch.zeros(3, 6)).shape == (3, 4)


def test_sizes():
    sizes = {name: sum(p.numel() for p in model().parameters()) for name, model in MODELS.items()}
    assert sizes["lenet"] == 62006  # the tutorial's
    assert 20_000 < sizes["small_cnn"] < 60_000
    assert sizes["mlp"] == 64 * 128 + 128 + 128 * 10 + 10


def test_dropout_where_asked_for():
    assert sum(isinstance(part, nn.Dropout) for part in MLP(hidden=(8, 8), dropout=0.5).modules()) == 2
    assert not any(isinstance(part, nn.Dropout) for part in MLP().modules())


@pytest.mark.parametrize("name", list(MODELS))
def test_samples_do_not_touch_each_other(name):
    """In training mode, without dropout, each sample's output is the one it has alone."""
    torch.manual_seed(0)
    options = {} if name == "lenet" else {"dropout": 0.0}
    model = MODELS[name](**options).double().train()
    shape = (3, 32, 32) if name == "lenet" else (1, 8, 8)
    batch = torch.randn(5, *shape, dtype=torch.float64)
    alone = torch.cat([model(sample.unsqueeze(0)) for sample in batch])
    torch.testing.assert_close(model(batch), alone, atol=1e-12, rtol=1e-12)
