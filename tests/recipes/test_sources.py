import math
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from recipes.folder_source import FolderSource
from recipes.pixels import crop_and_flip, resize_images
from recipes.sources import Source, split_indices
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)


def random_images(n: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, channels), dtype=torch.uint8, generator=generator)


def tensor_source(n: int = 23, side: int = 9, *, flip: bool = True, crop_padding: int = 2) -> TensorSource:
    labels = torch.arange(n) % 5
    return TensorSource(random_images(n, side), labels, mean=MEAN, std=STD, flip=flip, crop_padding=crop_padding)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def epoch(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def normalised(image: Tensor) -> Tensor:
    """(h, w, c) uint8 to (c, h, w), channel by channel."""
    planes = [(image[:, :, c].double() / 255 - MEAN[c]) / STD[c] for c in range(3)]
    return torch.stack(planes).float()


def test_crop_and_flip_equals_one_image_at_a_time() -> None:
    images, generator = random_images(6, 11), rng()
    chosen, corners = generator.integers(0, 6, 40), generator.integers(0, 5, (40, 2))  # 11 - 7 = 4 is the last corner
    mirrored = generator.integers(0, 2, 40).astype(bool)
    got = crop_and_flip(images, *map(torch.from_numpy, (chosen, corners, mirrored)), 7)
    for index, result in enumerate(got.numpy()):
        top, left = corners[index]
        cut = images[chosen[index]].numpy()[top : top + 7, left : left + 7]
        assert np.array_equal(result, cut[:, ::-1] if mirrored[index] else cut)
    assert mirrored.any() and not mirrored.all()


def test_batches_in_order_are_the_normalised_images() -> None:
    source = tensor_source()
    got = list(source.batches(10, resolution=9))
    assert [len(labels) for _, labels in got] == [10, 10, 3]
    images, labels = epoch(iter(got))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(labels, torch.arange(23) % 5)
    expected = torch.stack([normalised(image) for image in random_images(23, 9)])
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)
    assert [len(labels) for _, labels in source.batches(10, resolution=9, drop_last=True)] == [10, 10]


def test_normalised_images_become_the_same_pixels_again() -> None:
    source, pixels = tensor_source(), random_images(23, 9)
    images, _ = epoch(source.batches(23, resolution=9))
    assert torch.equal(source.pixels(images), pixels)
    assert torch.equal(source.normalise(pixels), images)
    assert source.pixels(torch.full((1, 3, 2, 2), 1e9)).unique().tolist() == [255]
    every = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(1, 16, 16, 3)
    assert torch.equal(source.pixels(source.normalise(every)), every)


def test_augmented_images_are_crops_of_the_padded_image_all_of_them_drawn() -> None:
    source = TensorSource(
        random_images(1, 5).repeat(3000, 1, 1, 1), torch.zeros(3000, dtype=torch.int64), mean=MEAN, std=STD, flip=True,
        crop_padding=1,
    )  # fmt: skip
    padded = np.zeros((7, 7, 3), dtype=np.uint8)
    padded[1:6, 1:6] = random_images(1, 5)[0].numpy()
    allowed = []
    for top in range(3):
        for left in range(3):
            cut = padded[top : top + 5, left : left + 5]
            allowed += [normalised(torch.from_numpy(view.copy())) for view in (cut, cut[:, ::-1])]
    images, _ = epoch(source.batches(256, resolution=5, rng=rng(), augment=True))
    distance = (images[:, None] - torch.stack(allowed)).abs().amax((2, 3, 4))
    assert float(distance.amin(1).max()) < 1e-5
    counts = distance.argmin(1).bincount(minlength=18)
    error = 4 * math.sqrt(3000 / 18 * (1 - 1 / 18))  # four standard errors
    assert bool(((counts - 3000 / 18).abs() < error).all())


def test_no_flip_unless_asked() -> None:
    source = tensor_source(flip=False, crop_padding=0)
    images, labels = epoch(source.batches(8, resolution=9, rng=rng(), augment=True))
    plain, plain_labels = epoch(source.batches(8, resolution=9, rng=rng()))
    assert torch.equal(images, plain) and torch.equal(labels, plain_labels)


def test_shuffling_is_a_permutation_and_depends_on_the_generator_alone() -> None:
    source = tensor_source()
    ordered, _ = epoch(source.batches(23, resolution=9))
    first = epoch(source.batches(4, resolution=9, rng=rng(), augment=True))
    torch.manual_seed(99)
    again = epoch(source.batches(7, resolution=9, rng=rng(), augment=True))  # another batch size: same epoch
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], epoch(source.batches(4, resolution=9, rng=rng(2), augment=True))[0])
    shuffled, labels = epoch(source.batches(4, resolution=9, rng=rng()))
    order = rng().permutation(23)
    assert torch.equal(shuffled, ordered[order]) and torch.equal(labels, torch.from_numpy(order) % 5)


def test_everything_is_drawn_when_batches_is_called() -> None:
    source, generator = tensor_source(), rng()
    batches = source.batches(4, resolution=9, rng=generator, augment=True)
    generator.random(1000)
    expected = epoch(source.batches(4, resolution=9, rng=rng(), augment=True))[0]
    assert torch.equal(epoch(batches)[0], expected)


@pytest.mark.parametrize(("side", "channels"), [(6, 3), (15, 1), (17, 3)])
def test_resize_is_the_float_resize_rounded(side: int, channels: int) -> None:
    images = random_images(5, 11, channels)
    planes = images.permute(0, 3, 1, 2).double()
    expected = functional.interpolate(planes, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    got = resize_images(images, side)
    assert got.shape == (5, side, side, channels) and got.is_contiguous()
    assert float((got - expected).abs().max()) <= 1.01  # fixed-point arithmetic may round the other way
    assert float((got - expected).abs().mean()) < 0.35  # rounding alone: 0.25


def test_resizing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(7, 8)
    whole = resize_images(images, 5)
    monkeypatch.setattr("recipes.pixels.RESIZE_CHUNK", 3)
    assert torch.equal(resize_images(images, 5), whole)


def test_resized_images_are_cached_shared_by_subsets_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(images: Tensor, resolution: int) -> Tensor:
        calls.append(resolution)
        return resize_images(images, resolution)

    monkeypatch.setattr("recipes.tensor_source.resize_images", counted)
    source = tensor_source()
    part = source.subset(np.array([3, 1, 20]))
    whole, _ = epoch(source.batches(8, resolution=6))
    images, labels = epoch(part.batches(2, resolution=6))
    assert calls == [6]
    assert torch.equal(images, whole[[3, 1, 20]]) and labels.tolist() == [3, 1, 0]
    for resolution in (9, 5, 7, 8, 10):
        next(source.batches(1, resolution=resolution))
    assert calls == [6, 5, 7, 8, 10]  # 9 is native
    next(source.batches(1, resolution=10))
    next(source.batches(1, resolution=6))  # four newer ones have pushed it out
    assert calls == [6, 5, 7, 8, 10, 6]


def test_padding_is_scaled_with_the_resolution() -> None:
    white = TensorSource(
        torch.full((400, 8, 8, 1), 255, dtype=torch.uint8), torch.zeros(400, dtype=torch.int64), mean=(0,), std=(1,),
        crop_padding=2,
    )  # fmt: skip
    for resolution, padding in ((8, 2), (16, 4), (12, 3), (4, 1)):
        images, _ = epoch(white.batches(400, resolution=resolution, rng=rng(), augment=True))
        black_rows = (images.amax((1, 3)) == 0).sum(1)
        assert int(black_rows.max()) == padding


def test_subset_of_subset_indexes_the_first_subset() -> None:
    source = tensor_source()
    part = source.subset(np.array([10, 4, 7])).subset(np.array([2, 0]))
    assert len(part) == 2 and part.labels.tolist() == [2, 0]
    ordered, _ = epoch(source.batches(23, resolution=9))
    assert torch.equal(epoch(part.batches(2, resolution=9))[0], ordered[[7, 10]])
    assert list(source.subset(np.array([], dtype=np.int64)).batches(2, resolution=9)) == []


@pytest.mark.parametrize("indices", [[23], [-1], [[0, 1]]])
def test_bad_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(UserError, match=r"indices in 0\.\.22"):
        tensor_source().subset(np.array(indices))


def test_bad_requests_are_refused_at_the_call() -> None:
    source = tensor_source()
    with pytest.raises(UserError, match="batch_size"):
        source.batches(0, resolution=9)
    with pytest.raises(UserError, match="resolution"):
        source.batches(1, resolution=0)
    with pytest.raises(UserError, match="rng"):
        source.batches(1, resolution=9, augment=True)
    with pytest.raises(UserError, match="auto_augment needs augment"):
        source.batches(1, resolution=9, rng=rng(), auto_augment=True)
    with pytest.raises(UserError, match=r"0 <= k < n, got \(2, 2\)"):
        source.batches(1, resolution=9, part=(2, 2))


@pytest.mark.parametrize("auto_augment", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_parts_of_batches_are_the_batches(folder: Path, auto_augment: bool, drop_last: bool) -> None:
    """Whatever the number of processes, the k-th batch holds the same images."""
    for source in (tensor_source(23), FolderSource(folder, workers=0)):

        def batches(k: int, n: int, source: Source = source) -> list[tuple[Tensor, Tensor]]:
            given = source.batches(
                5, resolution=9, rng=rng(), augment=True, auto_augment=auto_augment, drop_last=drop_last,
                part=(k, n),
            )  # fmt: skip
            return list(given)

        whole, parts = batches(0, 1), [batches(k, 3) for k in range(3)]
        assert len(whole) == (len(source) // 5 if drop_last else -(-len(source) // 5))
        for index, (images, labels) in enumerate(whole):
            for k in range(min(3, len(labels))):
                assert torch.equal(parts[k][index][0], images[k::3])
                assert torch.equal(parts[k][index][1], labels[k::3])
        assert [len(part) for part in parts] == [sum(len(labels) > k for _, labels in whole) for k in range(3)]


def test_auto_augment_of_tensors_depends_on_the_generator_alone() -> None:
    source = tensor_source(40, 32)
    plain, labels = epoch(source.batches(8, resolution=32, rng=rng(), augment=True))
    before = torch.random.get_rng_state()
    images, same = epoch(source.batches(8, resolution=32, rng=rng(), augment=True, auto_augment=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    again, _ = epoch(source.batches(40, resolution=32, rng=rng(), augment=True, auto_augment=True))
    assert torch.equal(labels, same) and torch.equal(images, again)
    changed = (images != plain).flatten(1).any(1).sum()
    assert changed > 20, "each of the 25 pairs of CIFAR-10's policy changes most images"
    grey = TensorSource(random_images(4, 16, 1), torch.zeros(4, dtype=torch.int64), mean=(0.5,), std=(0.5,))
    assert epoch(grey.batches(4, resolution=16, rng=rng(), augment=True, auto_augment=True))[0].shape == (4, 1, 16, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"images": random_images(4, 5).float()},
        {"images": random_images(4, 5)[:, :3]},
        {"images": random_images(4, 5)[0]},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"labels": torch.tensor([0, 1, -1, 0])},
        {"labels": torch.zeros(4)},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"crop_padding": -1},
    ],
)
def test_bad_tensors_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {
        "images": random_images(4, 5), "labels": torch.zeros(4, dtype=torch.int64), "mean": MEAN, "std": STD,
    }  # fmt: skip
    TensorSource(**good)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        TensorSource(**good | change)  # type: ignore[arg-type]


def test_split_gives_each_class_its_share() -> None:
    labels = torch.tensor([0] * 10 + [1] * 31 + [2] * 7 + [5] * 4)[torch.randperm(52, generator=torch.Generator())]
    first, rest = split_indices(labels, 0.3, rng())
    assert first.dtype == rest.dtype == np.int64
    assert len(first) == round(0.3 * 52) == 16
    assert sorted([*first, *rest]) == list(range(52))
    assert list(first) == sorted(first) and list(rest) == sorted(rest)
    counts = labels[first].bincount(minlength=6).tolist()
    assert counts == [3, 10, 2, 0, 0, 1]  # 3.0, 9.3, 2.1, 1.2: the one left over goes to the remainder .3
    assert np.array_equal(first, split_indices(labels, 0.3, rng())[0])
    assert not np.array_equal(first, split_indices(labels, 0.3, rng(2))[0])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_split_refuses_fractions_outside(fraction: float) -> None:
    with pytest.raises(UserError, match="fraction"):
        split_indices(torch.zeros(4, dtype=torch.int64), fraction, rng())


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of different sizes in two classes; one is grey, one has a palette."""
    generator = rng()
    for index in range(7):
        path = tmp_path / "images" / ("cat" if index < 4 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + 3 * index, 40 - index, 3), dtype=np.uint8)
        mode = {2: "L", 5: "P"}.get(index, "RGB")
        Image.fromarray(pixels).convert(mode).save(path)
    return tmp_path / "images"


def test_folder_evaluation_cuts_the_centre_of_the_resized_image(folder: Path) -> None:
    source = FolderSource(folder, workers=0)
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0] * 4 + [1] * 3
    images, labels = epoch(source.batches(3, resolution=16))
    assert images.shape == (7, 3, 16, 16) and torch.equal(labels, source.labels)
    assert next(source.batches(3, resolution=16))[0].is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for index in range(7):
        with Image.open(folder / ("cat" if index < 4 else "dog") / f"{index}.png") as file:
            image = file.convert("RGB")
        height, width = 20 + 3 * index, 40 - index
        short = 24  # 16 * 256 / 224 = 18.3, up to a multiple of 8
        size = (int(short * width / height), short) if height <= width else (short, int(short * height / width))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 16) / 2), round((size[1] - 16) / 2)
        pixels = np.asarray(image.crop((left, top, left + 16, top + 16)))
        expected = ((torch.from_numpy(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)
        torch.testing.assert_close(images[index], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("auto_augment", [False, True])
def test_folder_augmentation_depends_on_the_generator_alone(folder: Path, auto_augment: bool) -> None:
    def one_epoch(workers: int, seed: int, batch_size: int = 2) -> tuple[Tensor, Tensor]:
        source = FolderSource(folder, workers=workers)
        batches = source.batches(batch_size, resolution=16, rng=rng(seed), augment=True, auto_augment=auto_augment)
        return epoch(batches)

    before = torch.random.get_rng_state()
    images, labels = one_epoch(workers=0, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    for again in (one_epoch(workers=2, seed=1), one_epoch(workers=0, seed=1, batch_size=3)):
        assert torch.equal(again[0], images) and torch.equal(again[1], labels)
    assert not torch.equal(one_epoch(workers=0, seed=2)[0], images)


def test_folder_augmentation_differs_between_images_and_epochs(tmp_path: Path) -> None:
    pixels = rng().integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for index in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{index}.png")
    source, generator = FolderSource(tmp_path, workers=0), rng()
    images = [epoch(source.batches(6, resolution=8, rng=generator, augment=True))[0] for _ in range(2)]
    assert len(torch.cat(images).unique(dim=0)) == 12
    plain, _ = epoch(source.batches(6, resolution=8, rng=generator))
    assert len(plain.unique(dim=0)) == 1


def test_folder_subset_and_drop_last(folder: Path) -> None:
    source = FolderSource(folder, workers=0)
    whole, _ = epoch(source.batches(7, resolution=8))
    part = source.subset(np.array([6, 0, 4])).subset(np.array([2, 0]))
    images, labels = epoch(part.batches(2, resolution=8))
    assert torch.equal(images, whole[[4, 6]]) and labels.tolist() == part.labels.tolist() == [1, 1]
    assert [len(labels) for _, labels in source.batches(3, resolution=8, drop_last=True)] == [3, 3]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "nonsense", "gone"])
def test_an_unreadable_image_is_named_in_one_line(folder: Path, workers: int, damage: str) -> None:
    path = folder / "dog" / "9.jpg"
    Image.fromarray(rng().integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(path)
    source = FolderSource(folder, workers=workers)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"not an image")
    with pytest.raises(UserError) as caught:
        list(source.batches(3, resolution=8))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_bug_in_a_transform_is_not_called_a_bad_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Image.Image) -> Image.Image:
        raise RuntimeError("a bug")

    monkeypatch.setattr("recipes.folder_source._transform", lambda *arguments: broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(FolderSource(folder, workers=0).batches(3, resolution=8))


def test_a_reading_process_that_dies_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.folder_source._transform", lambda *arguments: lambda image: os._exit(1))
    with pytest.raises(UserError, match="try fewer workers") as caught:
        list(FolderSource(folder, workers=1).batches(3, resolution=8))
    assert "\n" not in str(caught.value)


def test_reading_processes_stay_until_the_main_one_ends_them(tmp_path: Path) -> None:
    """A scheduler sends SIGTERM to all processes of a job; the main one saves first, and may still need images for it."""
    for index in range(24):
        (tmp_path / f"{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 10 * index, dtype=np.uint8)).save(tmp_path / f"{index % 2}" / f"{index}.png")
    expected = [images for images, _ in FolderSource(tmp_path, workers=0).batches(2, resolution=8)]
    batches = FolderSource(tmp_path, workers=2).batches(2, resolution=8)
    found = [next(batches)[0]]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for sent in ("-TERM", "-INT"):  # from another process than their parent
        subprocess.run(["kill", sent, *(str(worker.pid) for worker in workers)], check=True)
    found += [images for images, _ in batches]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    again = FolderSource(tmp_path, workers=1).batches(2, resolution=8)
    next(again)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0  # its parent's word counts
    with suppress(UserError):  # it may have read all by then
        list(again)


def test_folders_without_images_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no valid file for the classes empty") as caught:
        FolderSource(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="class folder"):
        FolderSource(folder / "empty")
    with pytest.raises(UserError, match="missing is not a folder"):
        FolderSource(tmp_path / "missing")
    with pytest.raises(UserError, match="workers"):
        FolderSource(folder, workers=-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_in_the_middle(tmp_path: Path, workers: int) -> None:
    for index in range(5):
        (tmp_path / f"{index % 2}").mkdir(exist_ok=True)
        pixels = np.full((9, 9, 3), 40 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index % 2}" / f"{index}.png")
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 9, 9, 3) * 40
    in_memory = TensorSource(images, torch.arange(5) % 2, mean=(0.5,) * 3, std=(0.2,) * 3, flip=True, crop_padding=2)
    for source in (FolderSource(tmp_path, workers=workers), in_memory):
        asked = {"resolution": 8, "augment": True, "part": (0, 1)}
        whole = list(source.batches(2, rng=np.random.default_rng(1), **asked))
        for start in (0, 1, 2, 3, 9):
            rest = list(source.batches(2, rng=np.random.default_rng(1), start=start, **asked))
            assert len(rest) == max(0, 3 - start)
            for (a, b), (c, d) in zip(whole[start:], rest, strict=True):
                assert torch.equal(a, c) and torch.equal(b, d)
        with pytest.raises(UserError, match="start must be >= 0, got -1"):
            source.batches(2, rng=np.random.default_rng(1), start=-1, **asked)


def test_workers_leave_an_interrupt_to_the_main_process(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((12, 12, 3), dtype=np.uint8)).save(tmp_path / name / "1.png")
    repeated = FolderSource(tmp_path, workers=2).subset(np.array([0, 1] * 100))
    batches = repeated.batches(1, resolution=16)
    next(batches), next(batches)  # one from each worker: both have begun
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 198
