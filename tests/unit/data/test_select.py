import pytest
import torch

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import Compose, Normalize, Select
from wholebatch.data.select import selection, with_selection

BATCH = {"image": torch.rand(5, 8, 6, 3), "label": torch.arange(5), "weight": torch.ones(5), "name": list("abcde")}


class Dicts:
    batch_keys = ("image", "label")
    channels_last = True


def test_keys_become_inputs_and_targets():
    inputs, label = Select("image", "label")(BATCH, seed=0, epoch=0, indices=torch.arange(5))
    assert inputs is BATCH["image"]
    assert label is BATCH["label"]
    inputs, label, weight = Select("image", ["label", "weight"])(BATCH)
    assert weight is BATCH["weight"]
    inputs, name = Select(["image", "weight"], "name")(BATCH)
    assert list(inputs) == ["image", "weight"]
    assert name == list("abcde")
    assert len(Select("image")(BATCH)) == 1


def test_images_are_turned_without_a_copy():
    inputs, *_ = Select("image", ["label", "weight"], channels_first=True)(BATCH)
    assert inputs.shape == (5, 3, 8, 6)
    assert torch.equal(inputs[2, 1], BATCH["image"][2, :, :, 1])
    assert inputs.data_ptr() == BATCH["image"].data_ptr()
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    several, _ = Select(["image", "weight"], "label", channels_first=True)(BATCH)
    assert several["image"].shape == (5, 3, 8, 6)
    assert several["weight"].shape == (5,)


def test_what_cannot_be_selected_is_said():
    with pytest.raises(DataError, match=r"no key 'imgae'; did you mean 'image'\?"):
        Select("imgae", "label")(BATCH)
    with pytest.raises(DataError, match="no key 'zzz'; there are 'image', 'label'"):
        Select("image", "zzz")(BATCH)
    with pytest.raises(DataError, match="inputs='image' names a key, but the batches are of tuple"):
        Select("image", "label")((BATCH["image"], BATCH["label"]))
    with pytest.raises(DataError, match="inputs names no key"):
        Select([], "label")
    with pytest.raises(InputTypeError, match="targets holds 3"):
        Select("image", [3])
    with pytest.raises(DataError, match="process_images=False"):
        Select("name", "label", channels_first=True)(BATCH)


def test_what_a_data_set_says_of_itself_fills_in():
    assert selection(object()) is None
    assert repr(selection(Dicts())) == "Select(['image'], ['label'], channels_first=True)"
    assert repr(selection(Dicts(), targets="weight")) == "Select(['image'], ['weight'], channels_first=True)"
    assert repr(selection(Dicts(), inputs="image")) == "Select(['image'], ['label'], channels_first=True)"
    assert repr(selection(Dicts(), inputs="weight")) == "Select(['weight'], ['label'], channels_first=False)"
    assert repr(selection(object(), "a", ["b", "c"])) == "Select(['a'], ['b', 'c'], channels_first=False)"
    assert repr(selection(object(), "a")) == "Select(['a'], [], channels_first=False)"
    with pytest.raises(DataError, match="targets='b' without inputs"):
        selection(object(), targets="b")


def test_it_comes_last_and_once():
    select, normalize = Select("a", "b"), Normalize(field="a")
    assert with_selection(None, None) is None
    assert with_selection(normalize, None) is normalize
    assert with_selection(None, select) is select
    both = with_selection(normalize, select)
    assert isinstance(both, Compose)
    assert both.transforms == (normalize, select)
    assert with_selection(both, Select("a", "b")) is both
    assert with_selection(select, Select("a", "b")) is select
    assert isinstance(with_selection(Compose(), select), Compose)
