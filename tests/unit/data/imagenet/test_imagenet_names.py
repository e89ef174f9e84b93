import pytest

from wholebatch.core.errors import ConfigError
from wholebatch.data.imagenet.names import SYNSET, imagenet_classes, synset_of_id
from wholebatch.data.imagenet.subset import parse_indices

# The ground truth of the first validation images as the development kit has it, and their synsets as
# tensorflow-datasets lists them (validation_labels.txt).
FIRST = {490: "n01751748", 361: "n09193705", 171: "n02105855"}


def test_a_thousand_classes_in_the_order_of_their_synsets():
    rows = imagenet_classes()
    assert len(rows) == 1000
    assert [row.synset for row in rows] == sorted({row.synset for row in rows})
    assert all(SYNSET.fullmatch(row.synset) for row in rows)
    assert {row.ilsvrc_id for row in rows} == set(range(1, 1001))
    assert len({row.words for row in rows}) == 999  # two cranes: the bird and the machine
    known = {
        0: "tench, Tinca tinca",
        134: "crane",
        278: "kit fox, Vulpes macrotis",
        517: "crane",
        639: "maillot, tank suit",
    }
    assert {number: rows[number].words for number in known} == known
    assert rows[999].words == "toilet tissue, toilet paper, bathroom tissue"


def test_the_kits_numbers_are_another_order_than_the_labels():
    synsets = synset_of_id()
    assert [synsets[number] for number in range(1, 11)] == [
        "n02119789", "n02100735", "n02110185", "n02096294", "n02102040",
        "n02066245", "n02509815", "n02124075", "n02417914", "n02123394",
    ]  # fmt: skip
    assert {number: synsets[number] for number in FIRST} == FIRST
    assert synsets[1000] == "n03255030"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0-9, 12", [*range(10), 12]),
        ("12,0-9", [*range(10), 12]),
        ("5", [5]),
        ("5-5", [5]),
        ("3 - 4", [3, 4]),
        ("0-3, 2, 2-4", [0, 1, 2, 3, 4]),
        ("999", [999]),
        (7, [7]),
        ([3, 1], [1, 3]),
    ],
)
def test_both_ends_of_a_range_count(given, expected):
    assert parse_indices(given) == expected


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("9-0", "runs backwards; write 0-9"),
        ("a", "'a' is no number and no range"),
        ("1000", "1000 is too large"),
        ("990-1000", "1000 is too large"),
        ("0-9,,", "a piece between commas is empty"),
        ("0-9,", "empty"),
        (",1", "empty"),
        ("", "empty"),
        ("-1", "'-1' is no number"),
        ("5-", "'5-'"),
        ("1-2-3", "'1-2-3'"),
        ("1.5", "'1.5'"),
        ("1 2", "'1 2'"),
        ("٣", "'٣'"),
        ("1" * 5000, "no number and no range"),
        ([], "names no class"),
        ([1, -1], "-1 is no class number"),
        ([True], "True is no class number"),
        (["1"], "'1' is no class number"),
        (1000, "1000 is no class number"),
        (1.5, "names no class"),
        (True, "names no class"),
    ],
)
def test_a_malformed_range_is_refused(given, why):
    with pytest.raises(ConfigError, match="sub_indices=") as caught:
        parse_indices(given)
    assert why in str(caught.value)
    assert "both ends of a range included" in str(caught.value)
