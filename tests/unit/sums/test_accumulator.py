import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from wholebatch import Accumulator, InputError, InputTypeError

TENTH = float(np.float32(0.1))


def test_ten_million_additions_of_a_float32_tenth() -> None:
    acc, tenth = Accumulator(1), torch.tensor(0.1)
    for _ in range(10_000):
        acc.add(tenth)
    for _ in range(10):
        acc.add(tenth.expand(999_000))
    assert acc[0] == pytest.approx(1000000.0149, rel=1e-10)
    assert acc[0] == pytest.approx(1e7 * TENTH, rel=1e-12)


def test_a_deferred_value_is_a_copy() -> None:
    acc, loss, hits = Accumulator(2), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for i in range(100):
        loss.fill_(i)
        hits.fill_(i)
        acc.add(loss, hits)
    assert list(acc) == [4950.0, 4950]


@pytest.mark.parametrize("start", [2**24, 2**53, 2**62])
def test_integers_stay_exact(start: int) -> None:
    acc = Accumulator(3)
    acc.add(torch.tensor(start), torch.tensor([start, 0]), start)
    for _ in range(100):
        acc.add(torch.tensor(1), torch.tensor([True, False]), 1)
    assert list(acc) == [start + 100] * 3
    assert all(type(entry) is int for entry in acc)


def test_python_ints_have_no_limit() -> None:
    acc = Accumulator(1)
    acc.add(2**70)
    acc.add(-1)
    acc.add(torch.tensor(2))
    assert acc[0] == acc.all_reduce()[0] == 2**70 + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_widened_before_reduction(dtype: torch.dtype) -> None:
    acc = Accumulator(1)
    acc.add(torch.full((4096,), 60.0, dtype=dtype))
    assert acc[0] == 245_760


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool, torch.uint16])
def test_integer_tensors_sum_in_int64(dtype: torch.dtype) -> None:
    acc = Accumulator(1)
    acc.add(torch.ones(70_000, dtype=dtype))
    acc.add(torch.ones((), dtype=dtype))
    assert acc[0] == 70_001
    assert type(acc[0]) is int


def test_kinds_of_values() -> None:
    acc = Accumulator(7)
    acc.add(1, 0.5, True, np.float32(0.25), np.int32(2), np.array([1, 2], dtype=np.uint8), np.array([0.5, 0.5]))
    acc.add(1.5, 2, np.bool_(True), torch.tensor([]), torch.tensor(2), 0, torch.tensor(1))
    assert list(acc) == [2.5, 2.5, 2, 0.25, 4, 3, 2.0]
    assert [type(entry) for entry in acc] == [float, float, int, float, int, int, float]


def test_nan_and_infinity_show() -> None:
    acc = Accumulator("a", "b", "c")
    acc.add(float("nan"), torch.tensor(float("inf")), torch.tensor([1.0, float("nan")]))
    for _ in range(40):
        acc.add(1.0, torch.tensor(1.0), torch.tensor(1.0))
    assert np.isnan(acc["a"])
    assert acc["b"] == float("inf")
    assert np.isnan(acc["c"])


def test_reading() -> None:
    acc = Accumulator("loss", "n")
    acc.add(3.0, 5)
    assert (acc["loss"], acc[0], acc[-1], len(acc), acc[:], acc.mean()) == (3.0, 3.0, 5, 2, [3.0, 5], 4.0)
    assert dict(zip(acc.names or (), acc, strict=True)) == {"loss": 3.0, "n": 5}
    assert repr(acc) == "Accumulator(loss: 3.0, n: 5)"
    assert list(iter(acc)) == [3.0, 5]
    assert list(Accumulator(2)) == [0, 0]
    with pytest.raises(IndexError, match="entry 2 of an accumulator with 2 entries"):
        acc[2]
    with pytest.raises(InputError, match="'los'; did you mean 'loss'"):
        acc["los"]
    with pytest.raises(InputError, match="numbers, no names"):
        Accumulator(2)["loss"]
    with pytest.raises(InputTypeError, match="number or name"):
        acc[0.5]  # type: ignore[call-overload]


def test_wrong_use_is_said() -> None:
    with pytest.raises(InputError, match=r"takes 2 values \(loss, n\); got 3"):
        Accumulator("loss", "n").add(1, 2, 3)
    with pytest.raises(InputError, match="takes 2 values; got 1"):
        Accumulator(2).add(1)
    for wrong in ("a", [1], None, 1j, torch.tensor(1j), np.array(["a"])):
        with pytest.raises(InputTypeError):
            Accumulator(1).add(wrong)
    for arguments in ((), (0,), (-1,), (True,), (2, 3), ("a", 2), ("a", "a")):
        with pytest.raises(InputError, match="entr"):
            Accumulator(*arguments)
    with pytest.raises(InputTypeError):
        Accumulator(2.0)  # type: ignore[arg-type]


def test_reset_keeps_the_storage() -> None:
    acc = Accumulator(3)
    acc.add(torch.ones(()), torch.tensor(1), 1)
    sums = [acc._totals[0]._sums[torch.float64], acc._totals[1]._sums[torch.int64]]
    before = [each.fold().data_ptr() for each in sums]
    for _ in range(40):
        acc.add(torch.ones(()), torch.tensor(1), 2.5)
    acc.reset()
    assert list(acc) == [0.0, 0, 0.0]
    acc.add(torch.ones(()), torch.tensor(1), 1)
    assert list(acc) == [1.0, 1, 1.0]
    assert [each.fold().data_ptr() for each in sums] == before


def filled() -> Accumulator:
    acc = Accumulator("loss", "correct", "n")
    for _ in range(40):
        acc.add(torch.tensor(0.5), torch.tensor(3), 4)
    acc.add(0.25, 1, 2**60)
    return acc


def test_merge_makes_no_ties() -> None:
    a, b = filled(), filled()
    both = a + b
    assert list(both) == [40.5, 242, 2**61 + 320]
    both.add(1, 1, 1)
    b.add(1, 1, 1)
    assert list(a) == list(filled())
    assert a.merge(b) is a
    assert list(a) == [41.5, 243, 2**61 + 321]
    assert list(a.merge(a)) == [83.0, 486, 2**62 + 642]
    empty = Accumulator("loss", "correct", "n")
    assert list(empty + filled()) == list(filled() + empty) == list(filled())
    assert [type(entry) for entry in empty + filled()] == [float, int, int]
    with pytest.raises(InputError, match="cannot be merged"):
        a.merge(Accumulator(3))
    with pytest.raises(InputTypeError):
        a.merge([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_state_round_trip(tmp_path: Path) -> None:
    acc, fresh = filled(), filled()
    torch.save(acc.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh.load_state_dict(state)
    for one in (acc, fresh):
        one.add(torch.tensor(0.5), torch.tensor(3), 4)
    assert list(fresh) == list(acc)
    assert [type(entry) for entry in fresh] == [float, int, int]
    acc.load_state_dict(state)
    assert list(acc) == list(filled()), "what was added after the state is gone"
    with pytest.raises(InputError, match=r"entries=\['loss', 'correct', 'n'\]\) cannot be loaded into .*entries=3"):
        Accumulator(3).load_state_dict(state)
    with pytest.raises(InputError, match="lacks signature, floats, ints and has \\['a'\\]"):
        acc.load_state_dict({"a": 1})


def test_copies_and_all_reduce_are_independent() -> None:
    acc = filled()
    buffer = io.BytesIO(pickle.dumps(acc))
    copies = [copy.copy(acc), copy.deepcopy(acc), pickle.load(buffer), acc.all_reduce(), acc + Accumulator(*acc.names)]  # type: ignore[misc]
    for one in copies:
        assert list(one) == list(filled())
        one.add(torch.tensor(1.0), torch.tensor(1), 1)
        assert list(one) == [21.25, 122, 2**60 + 161]
    assert list(acc) == list(filled())
