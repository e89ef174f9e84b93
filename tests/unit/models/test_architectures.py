import pytest
import torch
from torch import nn

from wholebatch.models import MLP, MODELS, LeNet, ResNet, SmallCNN, build, cost
from wholebatch.models.attention import Attention
from wholebatch.models.norm import NORMS, norm_layer
from wholebatch.models.resnet import Block

SMALL = {"small_cnn": (1, 8, 8), "mlp": (1, 8, 8), "contrastive": (1, 8, 8)}  # the others take 3 x 32 x 32
RESNETS = ["resnet9", "resnet18", "resnet20", "resnet56"]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def made(name, **options):
    return build(name, seed=1, **options)


def test_shapes():
    assert SmallCNN()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert SmallCNN(5, in_channels=3, image_size=12, width=8)(torch.zeros(2, 3, 12, 12)).shape == (2, 5)
    assert LeNet()(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    assert LeNet(7, in_channels=1, image_size=28)(torch.zeros(3, 1, 28, 28)).shape == (3, 7)
    assert MLP()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert MLP(4, in_channels=6, image_size=1, hidden=())(torch.zeros(3, 6)).shape == (3, 4)


@pytest.mark.parametrize("name", [*RESNETS, "vit"])
def test_classes_channels_and_sizes(name):
    options = {"image_size": 16} if name == "vit" else {}
    assert made(name, num_classes=7, in_channels=1, **options)(torch.randn(2, 1, 16, 16)).shape == (2, 7)


PUBLISHED = {
    "lenet": (62_006, 651_720),  # PyTorch's CIFAR-10 tutorial
    "resnet20": (269_722, 40_551_040),  # 0.27 million in the paper, 41 million multiply-adds
    "resnet56": (853_018, 125_485_696),  # 0.85 million in the paper
    "resnet18": (11_173_962, 555_422_720),  # 11.17 million, 0.56 billion
    "resnet9": (6_573_120, 379_261_952),  # 6.57 million
    "small_cnn": (28_390, 709_120),
    "mlp": (64 * 128 + 128 + 128 * 10 + 10, 64 * 128 + 128 * 10),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_sizes(name):
    with torch.device("meta"):
        found = cost(build(name), SMALL.get(name, (3, 32, 32)))
    assert (found.parameters, found.multiply_adds) == PUBLISHED[name]


def test_the_vit_costs_what_its_parts_do():
    tokens, width, depth = 64, 192, 6
    with torch.device("meta"):
        found = cost(build("vit"), (3, 32, 32))
    layer = 12 * width * width * tokens + 2 * tokens * tokens * width
    assert found.multiply_adds == depth * layer + tokens * 48 * width + width * 10
    per_layer = 12 * width * width + 13 * width
    assert found.parameters == depth * per_layer + 49 * width + tokens * width + 2 * width + 10 * width + 10


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms(name, norm):
    with torch.device("meta"):
        layers = [type(layer) for layer in build(name, norm=norm).modules()]
        one = build(name)
    kinds = {"group": nn.GroupNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}
    assert kinds[norm] in layers
    assert not {kinds[other] for other in ("group", "batch") if other != norm} & set(layers)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in one.modules())


def test_group_and_batch_norm_have_the_same_weights():
    with torch.device("meta"):
        for name in RESNETS:
            assert parameters(build(name, norm="batch")) == parameters(build(name))


def test_groups():
    assert [norm_layer("group", channels).num_groups for channels in (16, 64, 128, 512)] == [4, 16, 32, 32]
    with pytest.raises(ValueError, match="expected group, batch or none"):
        norm_layer("layer", 16)


@pytest.mark.parametrize("norm", NORMS)
def test_residual_blocks_begin_as_their_shortcuts(norm):
    model = made("resnet20", norm=norm).eval()
    x = torch.rand(2, 16, 8, 8)
    plain = [block for block in model.modules() if isinstance(block, Block) and not block.added]
    assert len(plain) == 7
    for block in plain:
        assert torch.equal(
            block(x if block.conv1.in_channels == 16 else x.repeat(1, block.conv1.in_channels // 16, 1, 1)),
            x if block.conv1.in_channels == 16 else x.repeat(1, block.conv1.in_channels // 16, 1, 1),
        )


def test_the_shortcut_without_weights_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = Block(4, 8, 2, "group", projects=False)
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 4, 6, 6)
    new = block(x)
    assert torch.equal(new[:, 2:6], x[:, :, ::2, ::2])
    assert not new[:, :2].any()
    assert not new[:, 6:].any()


def test_hes_weights():
    model = made("resnet18")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert isinstance(model, ResNet)


def test_dropout_where_asked_for():
    assert sum(isinstance(part, nn.Dropout) for part in MLP(hidden=(8, 8), dropout=0.5).modules()) == 2
    assert not any(isinstance(part, nn.Dropout) for part in MLP().modules())


@pytest.mark.parametrize("name", list(MODELS))
def test_samples_do_not_touch_each_other(name):
    """In training mode, without dropout, each sample's output is the one it has alone."""
    options = {"dropout": 0.0} if name in SMALL else {}
    model = made(name, **options).double().train()
    for parameter in model.parameters():  # a layer that begins at 0 would hide what is before it
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    batch = torch.randn(3, *SMALL.get(name, (3, 32, 32)), dtype=torch.float64)
    if name == "transformer_lm":
        batch = torch.randint(256, (3, 11))
    with torch.no_grad():
        alone = torch.cat([model(sample.unsqueeze(0)) for sample in batch])
        torch.testing.assert_close(model(batch), alone, atol=1e-11, rtol=1e-11)
    assert alone.std() > 1e-3


def test_the_vits_dropout_is_keyed_in_a_step():
    """Any micro-batch gives the same gradient, with dropout in the attention and behind it."""
    import wholebatch as wb

    images, labels = torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.arange(7)
    gradients = []
    for micro_batch in (7, 3, 1):
        model = made("vit", in_channels=1, image_size=8, width=24, depth=2, dropout=0.3).double()
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
        step = wb.Step(
            model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=micro_batch
        )
        step((images, labels))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-12 * gradients[0].norm()
    still = made("vit", in_channels=1, image_size=8, width=24, depth=2).double()
    nn.init.normal_(still.head.weight, generator=torch.Generator().manual_seed(1))
    wb.Step(still, torch.optim.SGD(still.parameters(), lr=0.1), nn.CrossEntropyLoss())((images, labels))
    plain = torch.cat([parameter.grad.flatten() for parameter in still.parameters()])
    assert (plain - gradients[0]).norm() > 0.01 * plain.norm()


def test_cost_gives_the_modes_back_and_counts_frozen_weights():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    found = cost(model, (1, 5, 5))
    assert (found.parameters, found.multiply_adds) == (2 * 9 + 2 + 4, 2 * 9 * 9)
    assert [layer.training for layer in model] == [True, False]
    assert model.training


def test_attention_weights_drop_out_in_training_alone():
    layer, tokens = Attention(8, 2, dropout=0.5), torch.randn(2, 5, 8)
    whole = layer.eval()(tokens)
    assert torch.equal(layer(tokens), whole)
    assert not torch.equal(layer.train()(tokens), whole)
