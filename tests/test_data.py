import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from csglib import Problem, data, paths
from csglib.data.images import Images

SAMPLE = paths.ROOT / "data" / "cifar10-mini"


# The embedded sample


def test_the_sample_is_balanced(mini):
    assert mini.train.images.shape == (2000, 3, 32, 32)
    assert mini.test.images.shape == (1000, 3, 32, 32)
    assert mini.train.labels.bincount().tolist() == [200] * 10
    assert mini.test.labels.bincount().tolist() == [100] * 10


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_sample_holds_the_full_sets_images_at_its_indices(part, mini, cifar10):
    index = torch.from_numpy(np.fromfile(SAMPLE / f"{part}.index", "<u2").astype(np.int64))
    full, sample = getattr(cifar10, part), getattr(mini, part)
    assert len(index.unique()) == len(sample)
    assert torch.equal(full.images[index], sample.images)
    assert torch.equal(full.labels[index], sample.labels)


@pytest.fixture
def copied_sample(tmp_path, monkeypatch) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "data" / "cifar10-mini")
    monkeypatch.setattr("csglib.data.cifar10.ROOT", tmp_path)
    return tmp_path / "data" / "cifar10-mini"


@pytest.mark.parametrize("name", ["train.webp", "test.labels"])
def test_an_altered_sample_is_refused_with_its_file_and_the_remedy(name, copied_sample):
    content = bytearray((copied_sample / name).read_bytes())
    content[-1] ^= 1
    (copied_sample / name).write_bytes(content)
    with pytest.raises(Problem, match=f"{name}.*git checkout"):
        data.load("cifar10-mini")


@pytest.mark.parametrize("name", ["train.labels", "test.webp", "SHA256SUMS"])
def test_an_incomplete_sample_is_refused_with_the_remedy(name, copied_sample):
    (copied_sample / name).unlink()
    with pytest.raises(Problem, match="cifar10-mini.*git checkout"):
        data.load("cifar10-mini")


# Which there are


def test_without_the_variable_downloads_lie_in_the_repository(monkeypatch):
    monkeypatch.delenv("CSGLIB_DATA", raising=False)
    assert paths.folder() == paths.ROOT / "data" / "raw"


def test_an_unknown_data_set_is_refused_with_the_choice():
    with pytest.raises(Problem, match="'mnist'.*cifar10, cifar10-mini, cifar100, stl10, "):
        data.load("mnist")


# Batches


def numbered(n: int, side: int = 8) -> Images:
    """Image i has value i in every pixel and label i; i counts from 1, since the border is 0."""
    labels = torch.arange(1, n + 1)
    return Images(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(n, 3, side, side).contiguous(), labels)


def epoch(images: Images, size: int, seed: int = 0) -> list:
    return list(data.batches(images, size, torch.Generator().manual_seed(seed)))


def test_an_epoch_has_full_batches_and_each_image_at_most_once():
    batches = epoch(numbered(50), 8)
    labels = torch.cat([y for _, y in batches]).tolist()
    assert [x.shape for x, _ in batches] == [(8, 3, 8, 8)] * 6
    assert len(set(labels)) == 48 and set(labels) <= set(range(1, 51))


def test_labels_stay_with_their_images():
    for x, y in epoch(numbered(48), 8):
        assert torch.equal(x.amax((1, 2, 3)).long(), y)


def test_an_epoch_depends_on_its_generator_alone():
    images = Images(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40))
    first, again, other = (epoch(images, 10, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[0][1], other[0][1])
    assert not torch.equal(first[0][0], other[0][0])


def test_all_shifts_and_both_directions_occur_about_equally_often():
    """An image of its own coordinates tells where it was cropped and whether it was mirrored."""
    row = torch.arange(10, 42, dtype=torch.uint8)
    image = torch.stack([row[:, None].expand(32, 32), row.expand(32, 32), torch.ones(32, 32, dtype=torch.uint8)])
    x = next(data.batches(Images(image.expand(2000, 3, 32, 32), torch.zeros(2000, dtype=torch.long)), 2000, torch.Generator()))[
        0
    ]
    top, left, right = x[:, 0, 16, 16].long(), x[:, 1, 16, 15].long(), x[:, 1, 16, 16].long()
    assert 900 < (left > right).sum() < 1100  # mirrored
    assert (top.bincount()[22:31] > 150).all() and top.min() == 22 and top.max() == 30


def test_augmentation_equals_a_loop_over_images_and_pixels():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 6, 7), dtype=torch.uint8, generator=rng)
    dy, dx = torch.randint(0, 9, (2, 12), generator=rng)
    dy[:2], dx[:2] = torch.tensor([0, 8]), torch.tensor([8, 0])
    flip = torch.arange(12) % 2 == 0
    expected = torch.zeros_like(images)
    for n in range(12):
        for i in range(6):
            for j in range(7):
                y, x = i + dy[n] - 4, (6 - j if flip[n] else j) + dx[n] - 4
                if 0 <= y < 6 and 0 <= x < 7:
                    expected[n, :, i, j] = images[n, :, y, x]
    assert torch.equal(data.augment(images, dy, dx, flip), expected)


def test_floats_are_the_bytes_over_255():
    x = data.to_float(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1))
    assert x.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert x.dtype == torch.float32
