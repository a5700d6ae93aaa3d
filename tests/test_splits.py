"""Three splits that share no item, cut by content: the same for every order, name and machine."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.core.errors import DataError
from quantkit.data import Item, KeptBatches, Splits, Subset, collect, concatenate, cut, sample, separate, split
from quantkit.data.splits import whole


class Words:
    """Items that are words; enough of a dataset to be cut."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def item(self, index: int) -> Item:
        return Item({"0": torch.tensor([float(len(self.words[index]))])}, torch.tensor(index))

    def digest(self, index: int) -> str:
        return hashlib.sha256(self.words[index].encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"kind": "words", "count": len(self)}


def words(count: int) -> Words:
    return Words([f"word {number}" for number in range(count)])


def contents(subset: Subset) -> list[str]:
    dataset = subset.dataset
    assert isinstance(dataset, Words)
    return [dataset.words[index] for index in subset.indices]


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.calibration), len(splits.search), len(splits.gate)


@pytest.mark.parametrize(
    "total, counts, wanted",
    [
        (100, {}, (20, 40, 40)),
        (101, {}, (20, 40, 41)),
        (5000, {}, (512, 2244, 2244)),
        (3, {}, (1, 1, 1)),
        (100, {"calibration": 10}, (10, 45, 45)),
        (100, {"gate": 70}, (20, 10, 70)),
        (100, {"search": 70, "gate": 20}, (10, 70, 20)),
        (100, {"calibration": 1, "search": 2, "gate": 3}, (1, 2, 3)),
    ],
    ids=str,
)
def test_counts_are_honoured_and_the_rest_is_shared_out(total: int, counts: dict[str, int], wanted: tuple[int, int, int]) -> None:
    assert sizes(cut(words(total), seed=0, **counts)) == wanted


def test_a_cut_follows_content_and_seed_not_order() -> None:
    forward, backward = words(60), Words(words(60).words[::-1])
    one, other, third = cut(forward, seed=3), cut(backward, seed=3), cut(forward, seed=4)

    for name in ("calibration", "search", "gate"):
        assert contents(getattr(one, name)) == contents(getattr(other, name))
    assert contents(one.gate) != contents(third.gate)


def test_a_cut_orders_items_by_the_hash_of_seed_and_content() -> None:
    dataset = words(10)
    order = sorted(range(10), key=lambda i: hashlib.sha256(f"5:{dataset.digest(i)}".encode()).digest())
    splits = cut(dataset, seed=5)

    assert [*splits.calibration.indices, *splits.search.indices, *splits.gate.indices] == order


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=3, max_size=40), st.integers(0, 9))
def test_equal_items_never_part(letters: list[str], seed: int) -> None:
    try:
        splits = cut(Words(letters), seed=seed)
    except DataError:
        assert len(set(letters)) < len(letters)
        return
    held = [set(contents(subset)) for subset in (splits.calibration, splits.search, splits.gate)]

    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert all(held)


@pytest.mark.parametrize(
    "total, counts",
    [(2, {}), (10, {"calibration": 8, "search": 2, "gate": 1}), (10, {"gate": 0}), (10, {"search": -1}), (10, {"gate": 10})],
    ids=str,
)
def test_counts_that_cannot_be_met_are_refused(total: int, counts: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"{total} items for splits of"):
        cut(words(total), seed=0, **counts)


def test_a_source_of_equal_items_is_refused() -> None:
    with pytest.raises(DataError, match="are equal"):
        cut(Words(["same"] * 10), seed=0)


def test_separate_splits_keep_their_order_and_refuse_an_overlap() -> None:
    a, b, c = Words(["u", "t"]), Words(["v"]), Words(["w", "v"])
    splits = separate(a, b, Words(["w"]))

    assert contents(splits.calibration) == ["u", "t"]
    with pytest.raises(DataError, match="search and gate splits share 1 items; the first is item 0 of search"):
        separate(a, b, c)


def test_data_given_by_name_is_halved_by_seed_and_calibration_sampled() -> None:
    source = {"calibration": Words([f"other {n}" for n in range(50)]), "data": words(40)}
    splits, again, counted = (
        split(source, seed=0, calibration=8),
        split(source, seed=1, calibration=8),
        split(source, seed=0, search=10, gate=5),
    )

    assert sizes(splits) == (8, 20, 20) and sizes(counted) == (50, 10, 5)
    assert contents(splits.gate) != contents(again.gate) and contents(splits.calibration) != contents(again.calibration)
    with pytest.raises(DataError, match="share"):
        split({"calibration": words(3), "data": words(40)}, seed=0)


def test_three_named_sources_are_taken_as_they_are_and_counts_limit_them() -> None:
    source = {"calibration": Words(["a", "b"]), "search": Words(["c", "d", "e"]), "gate": Words(["f"])}

    assert sizes(split(source, seed=0)) == (2, 3, 1)
    assert sizes(split(source, seed=0, search=2)) == (2, 2, 1)
    with pytest.raises(DataError, match="9 items asked of 3"):
        split(source, seed=0, search=9)


def test_one_dataset_is_cut_and_splits_stay_what_they_are() -> None:
    splits = split(words(30), seed=2, gate=7)

    assert contents(splits.gate) == contents(cut(words(30), seed=2, gate=7).gate)
    assert split(splits, seed=9) is splits


@pytest.mark.parametrize("names, says", [(["gates"], "did you mean 'gate'"), (["search", "gate"], "data given as gate, search")], ids=str)
def test_sources_by_other_names_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        split({name: words(3) for name in names}, seed=0)


def test_a_sample_is_chosen_by_content() -> None:
    forward, backward = sample(words(30), count=7, seed=1), sample(Words(words(30).words[::-1]), count=7, seed=1)

    assert contents(forward) == contents(backward) and len(forward) == 7
    assert len(sample(words(30), count=None, seed=1)) == 30


def test_a_subset_gives_batches_labels_and_digests_in_one_order() -> None:
    dataset = collect([(torch.arange(10.0)[:, None], torch.arange(10) * 2)])
    subset = Subset(dataset, (7, 2, 5))
    batches = list(subset.batches(2))

    assert [batch.size for batch in batches] == [2, 1]
    assert torch.cat([batch.inputs["0"] for batch in batches]).flatten().tolist() == [7, 2, 5]
    assert np.array_equal(subset.labels(), [14, 4, 10])
    assert subset.digests() == (dataset.digest(7), dataset.digest(2), dataset.digest(5))


def test_a_fingerprint_changes_with_the_items_their_order_and_their_labels() -> None:
    values, labels = torch.arange(6.0)[:, None], torch.arange(6)
    plain = collect([(values, labels)])
    prints = [
        Subset(plain, (0, 1)).fingerprint(),
        Subset(plain, (1, 0)).fingerprint(),
        Subset(plain, (0, 1, 2)).fingerprint(),
        Subset(collect([(values, labels + 1)]), (0, 1)).fingerprint(),
        Subset(collect([(values + 1, labels)]), (0, 1)).fingerprint(),
    ]

    assert len(set(prints)) == 5
    assert Subset(collect([(values, labels)]), (0, 1)).fingerprint() == prints[0]


def test_subsets_of_subsets_and_concatenations_find_their_items() -> None:
    both = concatenate([words(3), Words(["x", "y"])])
    subset = Subset(Subset(both, (4, 0, 2)), (0, 2))

    assert len(both) == 5
    assert subset.digests() == (both.digest(4), both.digest(2))
    assert both.digest(4) == Words(["y"]).digest(0)
    assert whole(subset) is subset
    with pytest.raises(IndexError):
        both.item(5)


def test_items_with_and_without_labels_do_not_mix() -> None:
    values = torch.ones(2, 1)
    mixed = whole(concatenate([collect([values]), collect([(values + 1, torch.arange(2))])]))

    with pytest.raises(DataError, match="2 of 4 items have a label"):
        mixed.labels()
    with pytest.raises(DataError, match="2 of 4 items have a label"):
        list(mixed.batches(4))


@pytest.mark.parametrize("kept", [0, 1, 2, 10])
def test_kept_batches_are_those_of_the_subset_and_are_read_once_as_far_as_they_are_kept(kept: int) -> None:
    reads: list[int] = []

    class Counting:
        """Ten items of 12 bytes."""

        def __len__(self) -> int:
            return 10

        def item(self, index: int) -> Item:
            reads.append(index)
            return Item({"x": torch.arange(3, dtype=torch.float32) + index}, None)

    subset = Subset(Counting(), tuple(range(9, -1, -1)))  # type: ignore[arg-type]
    held = KeptBatches(subset, most_bytes=kept * 4 * 12)
    for size in (4, 3, 4):
        before = [batch.inputs["x"] for batch in held.batches(size)]
        reads.clear()
        again = [batch.inputs["x"] for batch in held.batches(size)]
        read = len(reads)

        assert all(map(torch.equal, before, [batch.inputs["x"] for batch in subset.batches(size)]))
        assert len(before) == len(again) and all(map(torch.equal, before, again))
        assert read == max(0, 10 - kept * 4 // size * size)
