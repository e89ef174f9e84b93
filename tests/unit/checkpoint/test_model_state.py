"""Weights under the plain model's names, whatever it is wrapped in."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from wholebatch.checkpoint import load_plain_state, plain_state


class Net(nn.Module):
    """Has a layer called module, which is nobody's wrapper."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 1)


def compiled(model):
    return torch.compile(model, backend="eager")


def inner():
    net = Net()
    net.module[0] = compiled(net.module[0])
    net.head = DataParallel(compiled(net.head))
    return net


WRAPPED = {
    "plain": Net,
    "data parallel": lambda: DataParallel(Net()),
    "compiled": lambda: compiled(Net()),
    "both": lambda: compiled(DataParallel(Net())),
    "both, the other way": lambda: DataParallel(compiled(Net())),
    "inside": inner,
    "inside and outside": lambda: DataParallel(compiled(inner())),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_are_those_of_the_plain_model(name):
    model = WRAPPED[name]()
    state = plain_state(model)
    plain = Net()
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    assert not any(value.requires_grad for value in state.values())
    assert sorted(v.data_ptr() for v in state.values()) == sorted(v.data_ptr() for v in model.state_dict().values())


@pytest.mark.parametrize("name", WRAPPED)
def test_what_one_wrapping_saved_another_loads(name):
    saved = plain_state(WRAPPED["both"]())
    model = WRAPPED[name]()
    load_plain_state(model, saved)
    assert all(torch.equal(value, saved[key]) for key, value in plain_state(model).items())


def test_another_model_is_refused():
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        load_plain_state(DataParallel(Net()), {k: v for k, v in plain_state(Net()).items() if k != "head.weight"})


def test_the_distributed_wrapper(tmp_path):
    from torch import distributed

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Net())
        assert list(plain_state(model)) == list(Net().state_dict())
        del model
    finally:
        distributed.destroy_process_group()
