"""Sampling: each picture once an epoch, halves kept apart, ranks that share what one device would have had."""

import itertools

import pytest
import torch
from torch import Tensor

from dartslight.data.pictures import Pictures
from dartslight.data.sampling import UNCHANGED, Batch, Batches, EvaluationBatches, epoch_order
from dartslight.errors import InputError


def numbered(count: int) -> Pictures:
    """Pictures whose label and first byte are their own number."""
    images = torch.zeros(count, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % 256
    return Pictures(images, torch.arange(count), ("a", "b"))


def halves(train: int, val: int) -> tuple[Tensor, Tensor | None]:
    order = epoch_order(train + val, 99, 0)
    return order[:train], order[train:] if val else None


def loader(train: int, val: int, batch_size: int, seed: int = 0, **options: object) -> Batches:
    return Batches(numbered(train + val), *halves(train, val), batch_size, seed, **options)  # type: ignore[arg-type]


def labels(batches: list[dict[str, Batch]], part: str) -> list[int]:
    return torch.cat([b[part].labels for b in batches]).tolist()


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.seed == b.seed


def test_orders_are_permutations_that_follow_from_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch) for seed, epoch in itertools.product(range(3), range(3))]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 9
    assert torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))


@pytest.mark.parametrize(("size", "batch_size", "last"), [(100, 16, 4), (64, 16, 16), (10, 16, 10)])
def test_an_epoch_holds_every_picture_once(size: int, batch_size: int, last: int) -> None:
    batches = loader(size, size, batch_size)
    epoch = list(batches)
    train, val = halves(size, size)
    assert val is not None
    assert sorted(labels(epoch, "train")) == sorted(train.tolist())
    assert sorted(labels(epoch, "val")) == sorted(val.tolist())
    assert len(epoch) == len(batches) == -(-size // batch_size)
    for part in ("train", "val"):
        sizes = [len(b[part].labels) for b in epoch]
        assert sizes == [batch_size] * (len(epoch) - 1) + [last]


def test_cifar_makes_391_batches_and_the_last_has_40() -> None:
    batches = loader(25_000, 25_000, 64)
    batches.load_state_dict({"epoch": 0, "next_batch": 390})
    (last,) = batches
    assert len(batches) == 391
    assert (len(last["train"].labels), len(last["val"].labels)) == (40, 40)


def test_pictures_and_labels_stay_together() -> None:
    for batch in loader(30, 30, 8):
        for part in batch.values():
            assert part.images.dtype == torch.uint8
            assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = list(loader(40, 40, 8))
    again = list(loader(40, 40, 8))
    other_seed = list(loader(40, 40, 8, seed=1))
    batches = loader(40, 40, 8)
    batches.sampler.set_epoch(1)
    second = list(batches)
    for part in ("train", "val"):
        assert all(same(a[part], b[part]) for a, b in zip(first, again, strict=True))
        for other in (other_seed, second):
            assert labels(first, part) != labels(other, part)
            assert sorted(labels(first, part)) == sorted(labels(other, part))
    positions = [
        [half.tolist().index(x) for x in labels(first, part)]
        for part, half in zip(("train", "val"), halves(40, 40), strict=True)
        if half is not None
    ]
    assert positions[0] != positions[1]  # the halves have orders of their own


def test_a_short_val_half_goes_on_with_its_next_permutation() -> None:
    epoch = list(loader(100, 24, 10))
    seen = labels(epoch, "val")
    assert [len(b["val"].labels) for b in epoch] == [10] * 10
    passes = [seen[i : i + 24] for i in range(0, 96, 24)]
    assert all(sorted(p) == sorted(passes[0]) and len(set(p)) == 24 for p in passes)
    assert passes[0] != passes[1]


def test_a_val_half_smaller_than_a_batch_fills_it() -> None:
    epoch = list(loader(20, 3, 8))
    assert [len(b["val"].labels) for b in epoch] == [8] * 3
    assert [len(b["train"].labels) for b in epoch] == [8, 8, 4]


def test_a_long_val_half_is_left_in_full_batches() -> None:
    epoch = list(loader(20, 100, 8))
    assert [len(b["val"].labels) for b in epoch] == [8] * 3
    assert len(set(labels(epoch, "val"))) == 24


def test_halves_that_differ_by_one_are_both_seen_whole() -> None:
    epoch = list(loader(36, 37, 8))
    assert [len(b["val"].labels) for b in epoch] == [8, 8, 8, 8, 5]
    assert len(set(labels(epoch, "val"))) == 37


def test_without_a_val_half_batches_are_of_training_alone() -> None:
    assert all(set(b) == {"train"} for b in loader(20, 0, 8))


@pytest.mark.parametrize(("train", "val"), [(96, 96), (100, 100), (97, 40), (5, 5)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_device(train: int, val: int, world_size: int) -> None:
    ranks = [list(loader(train, val, 8, rank=r, world_size=world_size)) for r in range(world_size)]
    whole = list(loader(train, val, 8 * world_size))
    for step, batch in enumerate(whole):
        for part in ("train", "val"):
            mine = [rank[step][part].labels for rank in ranks]
            assert len({len(m) for m in mine}) == 1  # equally many on each
            shared = torch.cat(mine)
            size = len(batch[part].labels)
            assert torch.equal(shared[:size], batch[part].labels)
            assert len(shared) - size < world_size
            if step < len(whole) - 1:
                assert len(shared) == size
    padding = torch.cat([rank[-1]["train"].labels for rank in ranks])[len(whole[-1]["train"].labels) :]
    assert torch.equal(padding, whole[0]["train"].labels[: len(padding)])  # continued from the start


def test_more_devices_than_pictures_get_pictures_again() -> None:
    ranks = [list(loader(2, 2, 1, rank=r, world_size=5)) for r in range(5)]
    assert all(len(rank) == 1 and len(rank[0]["train"].labels) == 1 for rank in ranks)
    assert {rank[0]["train"].labels.item() for rank in ranks} == set(halves(2, 2)[0].tolist())


def test_every_batch_has_an_augmentation_seed_of_its_own() -> None:
    seeds = set()
    count = 0
    for seed, epoch, rank in itertools.product(range(2), range(3), range(2)):
        batches = loader(32, 32, 4, seed=seed, rank=rank, world_size=2)
        batches.set_epoch(epoch)
        for batch in batches:
            seeds |= {batch["train"].seed, batch["val"].seed}
            count += 2
    assert len(seeds) == count
    assert min(seeds) >= 0


def test_val_batches_can_be_left_as_they_are() -> None:
    for batch in loader(20, 20, 8, augment_val=False):
        assert batch["val"].seed == UNCHANGED
        assert batch["train"].seed != UNCHANGED


def test_it_goes_on_where_it_was() -> None:
    whole = list(loader(40, 24, 8))
    batches = loader(40, 24, 8)
    steps = iter(batches)
    next(steps), next(steps)
    state = batches.state_dict()
    resumed = loader(40, 24, 8)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = list(resumed)
    assert len(rest) == 3
    for batch, wanted in zip(rest, whole[2:], strict=True):
        assert same(batch["train"], wanted["train"])
        assert same(batch["val"], wanted["val"])
    assert len(list(resumed)) == 5  # a restored place counts once


def test_a_place_in_another_epoch_is_no_place_to_go_on() -> None:
    resumed = loader(40, 24, 8)
    resumed.load_state_dict({"epoch": 2, "next_batch": 5})
    resumed.set_epoch(3)
    wanted = loader(40, 24, 8)
    wanted.set_epoch(3)
    assert all(same(a["train"], b["train"]) for a, b in zip(resumed, wanted, strict=True))


def test_the_epoch_may_be_told_after_the_iterator_is_made() -> None:
    batches = loader(40, 0, 8)
    steps = iter(batches)
    batches.set_epoch(4)
    late = next(steps)
    early = loader(40, 0, 8)
    early.set_epoch(4)
    assert same(late["train"], next(iter(early))["train"])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 24, 25, 31])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_sees_every_picture_once(count: int, world_size: int) -> None:
    if count < world_size:
        with pytest.raises(InputError, match=f"{world_size} devices cannot share {count} pictures"):
            EvaluationBatches(numbered(count), torch.arange(count), 4, rank=0, world_size=world_size)
        return
    indices = epoch_order(count, 5, 0)
    ranks = [
        list(EvaluationBatches(numbered(count), indices, 4, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1  # devices wait for each other in each batch
    seen = [torch.cat([b.labels for b in rank]) for rank in ranks]
    assert sorted(torch.cat(seen).tolist()) == list(range(count))
    assert all(torch.equal(s, indices[r::world_size]) for r, s in enumerate(seen))
    for batch in itertools.chain(*ranks):
        assert 1 <= len(batch.labels) <= 4 + (world_size > 1)
        assert batch.seed == UNCHANGED
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)


def test_an_evaluation_keeps_the_order_and_the_limit() -> None:
    indices = torch.tensor([3, 1, 4, 0, 5, 9, 2])
    batches = EvaluationBatches(numbered(10), indices, 3, limit=2)
    assert len(batches) == 2
    assert [b.labels.tolist() for b in batches] == [[3, 1, 4], [0, 5, 9]]
    assert [b.labels.tolist() for b in EvaluationBatches(numbered(10), indices, 3, limit=9)][-1] == [2]


def test_an_augmented_evaluation_has_seeds_that_repeat() -> None:
    def seeds(seed: int, rank: int) -> list[int]:
        return [
            b.seed for b in EvaluationBatches(numbered(40), torch.arange(40), 8, seed=seed, rank=rank, world_size=2)
        ]

    assert seeds(1, 0) == seeds(1, 0)
    drawn = seeds(1, 0) + seeds(1, 1) + seeds(2, 0)
    assert len(set(drawn)) == len(drawn) == 9
    assert min(drawn) >= 0
