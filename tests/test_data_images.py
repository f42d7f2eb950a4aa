"""Images and the batches drawn from them, augmentation, noise."""

import math
import pickle

import numpy as np
import pytest
import torch

from nkdlib.compendium.crops import Crops
from nkdlib.data import GaussianImages, Images, load, random_shift_flip
from nkdlib.tasks.keys import Ingredients


def numbered(count: int = 10, channels: int = 1) -> Images:
    """Images of 2x3 whose every pixel is the image's number, which is its label too."""
    labels = torch.arange(count)
    pixels = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(count, channels, 2, 3).contiguous()
    classes = tuple(map(str, range(count)))
    return Images("numbered", "train", pixels, labels, classes, (0.5,) * channels, (0.25,) * channels)


def order(batches) -> list[int]:
    return torch.cat([y for _, y in batches]).tolist()


def test_batches_pair_pixels_with_labels_and_repeat():
    images = numbered(10, channels=3)
    batches = images.batches(4, steps=4, seed=1)
    assert len(batches) == len(list(batches)) == 4
    for x, y in batches:
        assert x.shape == (4, 3, 2, 3) and x.dtype == torch.float32
        torch.testing.assert_close(x[:, 2, 1, 2], (y / 255 - 0.5) / 0.25)
    assert order(batches) == order(batches)
    assert order(images.batches(4, steps=4, seed=2)) != order(batches)


def test_every_epoch_is_another_permutation():
    batches = order(numbered().batches(5, steps=6, seed=0))
    epochs = [batches[:10], batches[10:20], batches[20:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"seed": 0}, [4, 4]),
        ({"shuffle": False}, [4, 4, 2]),
        ({"shuffle": False, "steps": 4}, [4, 4, 2, 4]),
    ],
)
def test_sizes_of_batches(options, sizes):
    batches = numbered().batches(4, **options)
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes)
    assert options.get("seed") is not None or order(batches)[:10] == list(range(10))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "seed"),
        ({"shuffle": False, "augment": random_shift_flip()}, "seed"),
        ({"seed": 0, "batch_size": 11}, "batch_size"),
        ({"seed": 0, "batch_size": 0}, "batch_size"),
        ({"seed": 0, "batch_size": 2.5}, "batch_size"),
        ({"seed": 0, "steps": -1}, "steps"),
        ({"seed": 0, "device": "gpu"}, r"device \(='gpu'\) must be cpu"),
        ({"seed": 0, "device": "meta"}, r"device \(='meta'\) must be cpu"),
    ],
)
def test_batches_that_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        numbered().batches(**{"batch_size": 4} | options)


def test_channels_last_is_another_layout_of_the_same():
    images = numbered(8, channels=3)
    (plain, _), (last, _) = (next(iter(images.batches(8, seed=0, channels_last=c))) for c in (False, True))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=0, atol=0)


def test_subset_of_a_subset():
    images = numbered()
    part = images.subset([7, 3, 5, 1]).subset([2, 0])
    assert part.labels.tolist() == part.pixels[:, 0, 0, 0].tolist() == [5, 7]
    assert order(part.batches(2, shuffle=False)) == [5, 7]
    assert images.subset(images.labels > 7).labels.tolist() == [8, 9]
    assert images.subset(3).labels.tolist() == images.subset(np.int64(3)).labels.tolist() == [0, 1, 2]
    drawn = images.subset(5, seed=0).labels.tolist()
    assert drawn == sorted(set(drawn)) and drawn != images.subset(5, seed=1).labels.tolist()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": torch.tensor([0, 2])}, r"labels \(=0 to 2\) must be 0 to 1"),
        ({"labels": torch.tensor([-1, 0])}, r"labels \(=-1 to 0\)"),
        ({"labels": torch.zeros(2, 1).long()}, r"labels \(torch.int64, \(2, 1\)\) must be int64 \(2,\)"),
        ({"labels": torch.zeros(1).long()}, r"labels .* must be int64 \(2,\)"),
        ({"labels": torch.zeros(2)}, r"labels \(torch.float32"),
        ({"pixels": torch.zeros(2, 1, 2, 3)}, r"pixels \(torch.float32"),
        ({"mean": (0.5, 0.5)}, r"mean .* must have 1 values"),
        ({"mean": (math.nan,)}, r"mean \(=nan\) must be a finite number"),
        ({"std": (0.0,)}, r"std \(=0.0\) must be a finite number above 0"),
        ({"std": (math.inf,)}, r"std \(=inf\)"),
    ],
)
def test_images_that_cannot_be_are_refused(changed, said):
    whole = {"pixels": torch.zeros(2, 1, 2, 3, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    whole |= {"classes": ("a", "b"), "mean": (0.5,), "std": (0.25,)}
    with pytest.raises(ValueError, match=said):
        Images("small", "train", **whole | changed)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_that_cannot_be_is_refused(seed):
    images = numbered()
    for use in (lambda: images.subset(2, seed), lambda: images.hold_out(2, seed), lambda: images.batches(2, seed=seed)):
        with pytest.raises(ValueError, match=rf"seed \(={seed}\) must be a whole number of at least 0"):
            use()


@pytest.mark.parametrize("indices", [0, 11, [10], [-1], [[1]], [], [0.5, 1.7], [False] * 10])
def test_subset_refuses_what_is_not_there(indices):
    with pytest.raises(ValueError, match="indices"):
        numbered().subset(indices)


@pytest.mark.parametrize("shape", [(3,), (20,), (10, 2), ()])
def test_a_mask_of_another_shape_is_refused(shape):
    mask = torch.arange(math.prod(shape)).view(shape) < 2  # of the first images, in the right shape
    with pytest.raises(ValueError, match=r"indices \(torch.bool, \(.*\)\) must be .* or a mask of 10"):
        numbered().subset(mask)


def test_split_divides():
    rest, held_out = numbered().hold_out(3, seed=0)
    assert (len(rest), len(held_out)) == (7, 3)
    assert sorted(rest.labels.tolist() + held_out.labels.tolist()) == list(range(10))
    for count in (10, 0.2):
        with pytest.raises(ValueError, match=rf"count \(={count}\) must be a whole number from 1 to 9"):
            numbered().hold_out(count, seed=0)


def test_fingerprint_follows_the_content():
    images, same, other = numbered(), numbered(), numbered()
    other.pixels[9, 0, 1, 2] += 1
    changed = Images("numbered", "train", other.pixels, other.labels, other.classes, other.mean, other.std)
    assert images.fingerprint == same.fingerprint != changed.fingerprint
    assert images.subset([1, 2]).fingerprint == same.subset([1, 2]).fingerprint
    assert len({images.fingerprint, *(images.subset(i).fingerprint for i in ([1, 2], [2, 1], 2))}) == 4


def test_batches_and_noise_can_be_arguments_of_a_task():
    def key(batches):
        return Ingredients().canonical(batches, "batches")

    images = numbered()
    one, same = (images.batches(2, seed=0, augment=random_shift_flip(1)) for _ in range(2))
    others = [images.batches(2, seed=1, augment=random_shift_flip(1)), images.batches(2, seed=0)]
    others += [images.batches(2, seed=0, augment=random_shift_flip(2)), GaussianImages((1, 2, 3), 10, seed=0)]
    assert key(one) == key(same) and all(key(one) != key(other) for other in others)


def test_pickled_images_are_the_same():
    images = numbered().subset([4, 2])
    again = pickle.loads(pickle.dumps(images))
    assert again.fingerprint == images.fingerprint and again.labels.tolist() == [4, 2]
    assert torch.equal(again.pixels, images.pixels)


def test_shift_flip_against_a_loop():
    pixels = torch.arange(1, 61, dtype=torch.uint8).view(5, 2, 2, 3)
    changed = random_shift_flip(pad=2)(pixels, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randint(5, (2, 5, 1), generator=generator).flatten(1)
    mirrored = torch.randint(2, (5, 1), generator=generator, dtype=torch.bool)
    assert 0 < mirrored.sum() < 5
    for image, result, dy, dx, mirror in zip(pixels, changed, *shifts.tolist(), mirrored, strict=True):
        expected = torch.zeros(2, 6, 7, dtype=torch.uint8)
        expected[:, 2:4, 2:5] = image
        expected = expected[:, dy : dy + 2, dx : dx + 3]
        assert torch.equal(result, expected.flip(-1) if mirror else expected)


def test_shift_flip_can_be_nothing_and_leaves_its_input():
    pixels = torch.rand(4, 3, 5, 5)
    kept = pixels.clone()
    assert torch.equal(random_shift_flip(0, flip=False)(pixels, torch.Generator()), pixels)
    random_shift_flip(3)(pixels, torch.Generator())
    assert torch.equal(pixels, kept)
    with pytest.raises(ValueError, match="pad"):
        random_shift_flip(-1)


def test_augmentation_leaves_the_order_alone():
    images = numbered()
    assert order(images.batches(5, seed=3, augment=random_shift_flip(1))) == order(images.batches(5, seed=3))


def test_digits():
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test), train.shape, train.num_classes) == (1437, 360, (1, 8, 8), 10)
    assert train.labels.bincount().min() >= 139 and test.labels.bincount().min() >= 35
    assert train.pixels.max() == 255 and (train.mean, train.std) == (test.mean, test.std)
    x = train.normalize(train.pixels)
    assert abs(x.mean()) < 1e-5 and abs(x.std(unbiased=False) - 1) < 1e-5
    assert repr(train).startswith("Images(digits train: 1,437 of 1x8x8, 10 classes, ")


def test_crops_are_the_center_its_mirror_image_and_random_places():
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(3, 1, 1, 1)
    images = Images("ramp", "all", pixels, torch.arange(3), ("a", "b", "c"), (0.0,), (1 / 255,))
    crops = Crops(images, 4, views=8, batch_size=2, seed=1)
    found = list(crops)
    assert len(crops) == len(found) == 16
    assert torch.cat([y for _, y in found]).tolist() == [0, 1, 2] * 8
    views = torch.cat([x for x, _ in found]).view(8, 3, 4, 4)
    torch.testing.assert_close(views[0, 0], pixels[0, 0, 2:6, 2:6].float())
    assert torch.equal(views[1], views[0].flip(-1))
    assert all((view[:, :, 1] > view[:, :, 0]).all() != bool(place % 2) for place, view in enumerate(views))
    assert len(views[2:].flatten(2)[:, :, 0].unique()) > 5  # many places
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, crops, strict=True))
    with pytest.raises(ValueError, match=r"size \(=9\) must fit into images of \(1, 8, 8\)"):
        Crops(images, 9)


def test_resized_crops_are_parts_of_the_image_in_every_size_that_is_allowed():
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(50, 1, 1, 1)  # 1 a column, 8 a row
    images = Images("ramp", "all", pixels, torch.zeros(50).long(), ("a",), (0.0,), (1 / 255,))
    crops = Crops(images, 4, views=6, scale=0.25, batch_size=50, seed=1)
    views = torch.stack([x for x, _ in crops])
    assert torch.equal(views, torch.stack([x for x, _ in crops]))
    assert torch.equal(views[:2], torch.stack([x for x, _ in Crops(images, 4, views=2, batch_size=50)]))
    across = (views[2:, :, 0, 1, 2] - views[2:, :, 0, 1, 1]).abs() * 4 / 8  # a ramp says how much was cut out
    down = (views[2:, :, 0, 2, 1] - views[2:, :, 0, 1, 1]) / 8 * 4 / 8
    area, shape = across * down, across / down
    assert 0.25 - 1e-5 <= area.min() < 0.3 and 0.85 < area.max() <= 1 + 1e-5
    assert 3 / 4 - 1e-5 <= shape.min() < 0.8 and 1.25 < shape.max() <= 4 / 3 + 1e-5
    assert views.min() >= 0 and views.max() <= 63
    with pytest.raises(ValueError, match=r"scale \(=0\) is a share of an image's area"):
        Crops(images, 4, scale=0)


def test_every_second_random_crop_is_a_mixture_of_two_images():
    colors = torch.tensor([0, 50, 100, 200], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    images = Images("plain", "all", colors, torch.arange(4), ("a", "b", "c", "d"), (0.0,), (1 / 255,))
    views = [x[:, 0, 0, 0] for x, _ in Crops(images, 4, views=40, mix=True, batch_size=4, seed=1)]
    alone = torch.tensor([0.0, 50, 100, 200])
    assert all(torch.equal(found, alone) for found in (views[1], *views[::2]))
    mixed = torch.stack(views[3::2])
    assert mixed.min() >= 0 and mixed.max() <= 200 and len(mixed.unique()) > 40
    assert mixed[:, 0].max() > 100 and mixed[:, 3].min() < 100  # the partner may weigh more
