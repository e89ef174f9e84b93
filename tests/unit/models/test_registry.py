import pytest
import torch

from wholebatch.core.errors import ConfigError
from wholebatch.models import MODELS, LeNet, build


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", list(MODELS))
def test_weights_are_a_function_of_the_seed(name):
    torch.manual_seed(5)
    first = weights(build(name, seed=1))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    assert torch.equal(first, weights(build(name, seed=1)))
    assert not torch.equal(first, weights(build(name, seed=2)))
    assert torch.equal(before, torch.get_rng_state())


def test_options_reach_the_model():
    model = build("lenet", num_classes=7, in_channels=1)
    assert isinstance(model, LeNet)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_unknown_names():
    with pytest.raises(ConfigError, match="no model 'small_cn'; did you mean 'small_cnn'"):
        build("small_cn")
    with pytest.raises(ConfigError, match="no option 'num_class'; did you mean 'num_classes'"):
        build("mlp", num_class=3)


def test_impossible_options_leave_the_generator_alone():
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="small_cnn cannot be made with"):
        build("small_cnn", width=3)
    assert torch.equal(before, torch.get_rng_state())
