import pytest
import torch
from torch import nn

from wholebatch.core.errors import ConfigError
from wholebatch.models import MODELS, LeNet, build, foreign, is_foreign, options_of, with_head


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet18", "resnet9"}))
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
    with pytest.raises(ConfigError, match="norm='layer'; expected group, batch or none"):
        build("resnet20", norm="layer")
    assert options_of("lenet") == {"num_classes", "in_channels", "image_size"}
    with pytest.raises(ConfigError, match="did you mean 'resnet20'"):
        options_of("resnet-20")


def test_impossible_options_leave_the_generator_alone():
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="small_cnn cannot be made with"):
        build("small_cnn", width=3)
    with pytest.raises(ConfigError, match=r"is not installed|fails|has no model"):
        build("timm:nothing_like_it")
    assert torch.equal(before, torch.get_rng_state())


HERE = """
import torch
from torch import nn

def takes_classes(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))

def takes_all(**options):
    model = nn.Linear(2, 2)
    model.options = options
    return model

def takes_pretrained(num_classes, pretrained=False):
    if pretrained:
        raise ConnectionError("no network")
    return nn.Linear(3, num_classes)

class Net(nn.Linear):
    def __init__(self, num_classes=3, in_channels=1, image_size=2):
        super().__init__(in_channels * image_size**2, num_classes)

def no_model():
    return 3

number = 5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(HERE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "somebodys", raising=False)


KNOWN = {"num_classes": 6, "in_channels": 2, "image_size": 4}


@pytest.mark.usefixtures("here")
def test_by_import_path_what_is_taken_is_given():
    assert is_foreign("somebodys:Net")
    assert options_of("somebodys:Net") is None
    assert build("somebodys:takes_classes", **KNOWN, width=9)[2].weight.shape == (6, 9)
    assert build("somebodys:takes_all", **KNOWN, other=1).options == {**KNOWN, "other": 1}
    assert build("somebodys:Net", **KNOWN).weight.shape == (6, 32)
    first, again, other = (weights(build("somebodys:Net", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "options", "answer"),
    [
        ("somebodys:Nett", {}, "somebodys has no 'Nett'; did you mean 'Net'"),
        ("somebodys:Net", {"widht": 1}, "somebodys:Net does not take widht"),
        ("somebodys:takes_classes", {"num_classes": 3, "widht": 1}, "does not take widht; did you mean 'width'"),
        ("somebodys:no_model", {}, "gave a int; a model is a torch.nn.Module"),
        ("somebodys:number", {}, "is a int; a model is made by a class or a function"),
        ("somebodys:Net", {"pretrained": True}, "somebodys:Net does not take pretrained"),
        ("somebodys:Net", {"pretrained": "yes"}, "pretrained='yes'; expected true or false"),
        ("somebodys:Net", {"num_classes": -1}, "somebodys:Net cannot be made with"),
        (
            "somebodys:takes_pretrained",
            {"num_classes": 3, "pretrained": True},
            "could not be fetched (Conn",
        ),
        ("nothing_like_it:f", {}, "nothing_like_it is not installed"),
        ("x:y:z", {}, "no import path"),
    ],
)
@pytest.mark.usefixtures("here")
def test_by_import_path_what_goes_wrong(name, options, answer):
    with pytest.raises(ConfigError) as caught:
        build(name, **options)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads():
    model = nn.ModuleDict({"body": nn.Linear(4, 8, bias=False), "head": nn.Linear(8, 1000, bias=False)})
    assert with_head(model, 3)["head"].weight.shape == (3, 8)
    assert model["head"].bias is None
    same = model["head"]
    assert with_head(model, 3)["head"] is same
    for other in (nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)), nn.Linear(2, 2), nn.ReLU()):
        with pytest.raises(ConfigError, match="head cannot be replaced"):
            with_head(other, 3)


class Library:
    """What the two libraries offer, as far as they are asked."""

    def __init__(self):
        self.asked = []

    def list_models(self, module=None):
        return ["resnet18", "resnet50"]

    def create_model(self, name, **options):
        self.asked.append((name, options))
        return nn.Linear(2, options.get("num_classes", 1000))

    def get_model(self, name, **options):
        self.asked.append((name, options))
        return nn.Sequential(nn.ReLU(), nn.Linear(2, options.get("num_classes", 1000)))


@pytest.fixture
def library(monkeypatch):
    made = Library()
    monkeypatch.setattr(foreign.imports, "module", lambda name: made)
    return made


def test_timm_is_told_what_it_takes(library):
    build("timm:resnet50.a1_in1k", **KNOWN, pretrained=True, drop_rate=0.1)
    build("timm:resnet18", num_classes=3)
    assert library.asked == [
        ("resnet50.a1_in1k", {"pretrained": True, "num_classes": 6, "in_chans": 2, "drop_rate": 0.1}),
        ("resnet18", {"pretrained": False, "num_classes": 3}),
    ]
    with pytest.raises(ConfigError, match="timm has no model 'resnet5'; did you mean 'resnet50'"):
        build("timm:resnet5")


def test_torchvision_is_told_what_it_takes_and_a_pretrained_head_is_replaced(library):
    assert build("torchvision:resnet18", num_classes=6, in_channels=3, image_size=32)[1].out_features == 6
    assert build("torchvision:resnet18", num_classes=6, pretrained=True)[1].out_features == 6
    assert build("torchvision:resnet18", pretrained=True)[1].out_features == 1000
    assert [options for _, options in library.asked] == [
        {"weights": None, "num_classes": 6},
        {"weights": "DEFAULT"},
        {"weights": "DEFAULT"},
    ]
    with pytest.raises(ConfigError, match="takes images of 3 channels, and these have 1"):
        build("torchvision:resnet18", in_channels=1)


def test_resnet9_may_be_narrower():
    small = build("resnet9", width=16)
    assert sum(p.numel() for p in small.parameters()) == 412_944
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ConfigError, match="cannot be made with"):
        build("resnet9", width=7)
