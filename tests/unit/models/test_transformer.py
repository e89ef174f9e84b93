"""The small language model."""

import pytest
import torch
import torch.nn.functional as F

from wholebatch.core.errors import ConfigError
from wholebatch.models import build, cost


def made(**options):
    return build("transformer_lm", seed=1, **{"vocabulary": 11, "length": 9, "width": 12, "depth": 2, **options})


def test_classes_are_axis_1_as_torchs_loss_has_it():
    tokens = torch.randint(11, (3, 7))
    output = made()(tokens)
    assert output.shape == (3, 11, 7)
    assert F.cross_entropy(output, tokens).ndim == 0


def test_no_place_sees_a_later_one_and_every_place_sees_all_before():
    model = made().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(3))
    tokens = torch.arange(9).unsqueeze(0)
    with torch.no_grad():
        before = model(tokens)
        for place in range(9):
            other = tokens.clone()
            other[0, place] = 10
            changed = (model(other) - before).abs().amax(1)[0] > 1e-9
            assert changed.tolist() == [False] * place + [True] * (9 - place)


def test_places_matter():
    model = made().eval()
    with torch.no_grad():
        first, second = model(torch.tensor([[4, 4, 4]]))[0].T[:2]
    assert not torch.allclose(first, second, atol=1e-4)


def test_the_last_layer_is_the_table_of_tokens():
    with torch.device("meta"):
        model = made(vocabulary=256, length=128, width=96, depth=2, heads=3)
    width, depth = 96, 2
    per_layer = 12 * width * width + 13 * width
    parameters = depth * per_layer + (256 + 128) * width + 2 * width
    found = cost(model, (128,), torch.int64)
    assert found.parameters == parameters
    assert found.multiply_adds == depth * (12 * width * width * 128 + 2 * 128 * 128 * width) + 256 * width * 128
    assert [name for name, weight in model.named_parameters() if len(weight) == 256] == ["tokens.weight"]


def test_first_weights_and_the_first_loss():
    model = made(vocabulary=256, length=64, width=96, depth=8)
    assert model.layers[3].mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.layers[3].mlp[2].weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert model.layers[3].attention.out.weight.std().item() == pytest.approx(0.005, rel=0.05)
    tokens = torch.randint(256, (4, 64))
    assert F.cross_entropy(model(tokens), tokens.roll(-1, 1)).item() == pytest.approx(5.545, abs=0.15)  # ln 256


def test_dropout_where_asked_for():
    tokens = torch.randint(11, (2, 9))
    still, dropping = made().train(), made(dropout=0.5).train()
    assert torch.equal(still(tokens), still(tokens))
    assert not torch.equal(dropping(tokens), dropping(tokens))


def test_a_width_that_heads_do_not_share():
    with pytest.raises(ConfigError, match="width 12 is no multiple of heads=5"):
        made(heads=5)
