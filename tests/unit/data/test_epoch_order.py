import torch

from wholebatch.data import epoch_order


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    order = epoch_order(100, seed=0, epoch=0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(order, epoch_order(100, seed=0, epoch=0))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(order, epoch_order(100, seed=0, epoch=1))
    assert not torch.equal(order, epoch_order(100, seed=1, epoch=0))


def test_first_places_are_spread_evenly():
    firsts = torch.stack([epoch_order(10, seed=5, epoch=epoch)[0] for epoch in range(2000)]).bincount(minlength=10)
    assert ((firsts - 200).abs() < 60).all()  # 4.5 standard deviations
