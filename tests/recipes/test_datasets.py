import dataclasses
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from recipes import datasets
from recipes.datasets import DATASETS, DOWNLOADS, IDX_FILES, load_dataset, resolve_data_dir
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError

Arrays = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Arrays]:
    """Stand-ins of 20 training and 10 test images for each set, with the facts that belong to them."""
    rng, sets, facts = np.random.default_rng(0), {}, {}
    for name, download in DOWNLOADS.items():
        arrays: Arrays = {}
        for part, count in (("train", 20), ("test", 10)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (count, *download.shape), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count, dtype=np.uint8) % 10
        sums = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
        facts[name] = dataclasses.replace(download, images={"train": 20, "test": 10}, sha256=sums)
        sets[name] = arrays
    monkeypatch.setattr(datasets, "DOWNLOADS", facts)
    return sets


def write_idx(folder: Path, arrays: Arrays) -> None:
    folder.mkdir(parents=True)
    for key, file in IDX_FILES.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in arrays[key].shape)
        (folder / file).write_bytes(bytes([0, 0, 8, arrays[key].ndim]) + sizes + arrays[key].tobytes())


def write_npz(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir()
    np.savez(path, **arrays)  # type: ignore[arg-type]


def message(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_the_stored_ones_enlarged_and_split_the_same_way_always() -> None:
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert (digits.num_classes, digits.in_channels, digits.resolution) == (10, 1, 16)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    stored = load_digits()
    for label, all_count in enumerate(np.bincount(stored.target)):
        train_count = int((digits.train.labels == label).sum())
        assert abs(train_count - all_count * 1437 / 1797) < 1
        assert train_count + int((digits.test.labels == label).sum()) == all_count
    assert digits.test.labels[:12].tolist() == [2, 3, 8, 1, 4, 5, 6, 0, 5, 5, 5, 7]  # never to change: results depend
    images = torch.cat([batch for batch, _ in digits.train.batches(500, resolution=16)]).double()
    assert images.shape == (1437, 1, 16, 16)
    assert abs(float(images.mean())) < 1e-3 and abs(float(images.std()) - 1) < 1e-3
    # bilinear by a factor of two: centres of new pixels lie 1/4 of the way to the neighbour
    pixels = images * datasets.DIGITS_STD + datasets.DIGITS_MEAN
    inner = pixels[:, 0, 1:15, 1:15]
    every = torch.from_numpy(stored.images) / 16
    rows = torch.stack([0.75 * every[:, :-1] + 0.25 * every[:, 1:], 0.25 * every[:, :-1] + 0.75 * every[:, 1:]], 2)
    rows = rows.flatten(1, 2)
    both = torch.stack([0.75 * rows[..., :-1] + 0.25 * rows[..., 1:], 0.25 * rows[..., :-1] + 0.75 * rows[..., 1:]], 3)
    expected = both.flatten(2, 3)
    assert float((inner[:50, None] - expected[None]).abs().amax((2, 3)).amin(1).max()) < 2 / 255
    assert torch.equal(load_dataset("digits").train.labels, digits.train.labels)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_as_they_are(name: str, small: dict[str, Arrays], tmp_path: Path) -> None:
    write_idx(tmp_path / DOWNLOADS[name].folder, small[name])
    dataset = load_dataset(name, tmp_path)
    assert (dataset.in_channels, dataset.resolution, len(dataset.class_names)) == (1, 28, 10)
    assert dataset.test.labels.tolist() == small[name]["y_test"].tolist()
    images, labels = next(dataset.train.batches(20, resolution=28))
    pixels = (images[:, 0] * DOWNLOADS[name].std[0] + DOWNLOADS[name].mean[0]) * 255
    assert np.abs(pixels.numpy() - small[name]["x_train"]).max() < 1e-3
    assert labels.tolist() == small[name]["y_train"].tolist()


def test_torchvision_accepts_the_same_layout(small: dict[str, Arrays], tmp_path: Path) -> None:
    from torchvision.datasets import MNIST

    write_idx(tmp_path / "MNIST" / "raw", small["mnist"])
    assert np.array_equal(MNIST(str(tmp_path), download=False).data.numpy(), small["mnist"]["x_train"])


def test_cifar10_from_npz(small: dict[str, Arrays], tmp_path: Path) -> None:
    write_npz(tmp_path / "cifar10" / "cifar10.npz", small["cifar10"])
    dataset = load_dataset("cifar10", tmp_path)
    assert (dataset.num_classes, dataset.in_channels, dataset.resolution) == (10, 3, 32)
    images, _ = next(dataset.test.batches(10, resolution=32))
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = (images.permute(0, 2, 3, 1) * std + mean) * 255
    assert np.abs(pixels.numpy() - small["cifar10"]["x_test"]).max() < 1e-3


def test_cifar10_original_archive_is_unpickled_only_with_the_right_md5(
    small: dict[str, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = {"batches.meta": {"label_names": list(DOWNLOADS["cifar10"].class_names)}}
    for part, file in (("train", "data_batch_1"), ("test", "test_batch")):
        rows = small["cifar10"][f"x_{part}"].transpose(0, 3, 1, 2).reshape(-1, 3072)
        contents[file] = {"data": rows, "labels": small["cifar10"][f"y_{part}"].tolist()}  # type: ignore[dict-item]
    sums = {}
    for file, content in contents.items():
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.train.labels.tolist() == small["cifar10"]["y_train"].tolist()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    assert "cifar-10-batches-py is incomplete or damaged" in message("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_cifar10_with_a_pickled_array_is_refused(small: dict[str, Arrays], tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "cifar10.npz"
    write_npz(path, small["cifar10"] | {"x_train": np.array([{"a": 1}], dtype=object)})
    assert f"{path} is damaged" in message("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 3000, -50])
def test_a_truncated_npz_is_named(keep: int, small: dict[str, Arrays], tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "cifar10.npz"
    write_npz(path, small["cifar10"])
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is damaged" in message("cifar10", tmp_path)


def test_an_npz_that_lacks_an_array_or_is_a_single_array_is_named(small: dict[str, Arrays], tmp_path: Path) -> None:
    path = tmp_path / "cifar10" / "cifar10.npz"
    write_npz(path, {"x_train": small["cifar10"]["x_train"]})
    assert f"{path} is damaged" in message("cifar10", tmp_path)
    with path.open("wb") as file:
        np.save(file, small["cifar10"]["x_train"])
    assert f"{path} is damaged" in message("cifar10", tmp_path)


@pytest.mark.parametrize("key", list(IDX_FILES))
@pytest.mark.parametrize("keep", [0, 3, 9, -1])
def test_a_truncated_idx_file_is_named(key: str, keep: int, small: dict[str, Arrays], tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, small["mnist"])
    path = folder / IDX_FILES[key]
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is damaged" in message("mnist", tmp_path)


def test_one_changed_pixel_and_another_number_of_images_are_refused(small: dict[str, Arrays], tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, small["mnist"])
    path = folder / IDX_FILES["x_test"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{path} is damaged or not mnist's x_test: its SHA-256 is" in message("mnist", tmp_path)
    write_idx(tmp_path / "other" / "MNIST" / "raw", small["mnist"] | {"y_test": small["mnist"]["y_test"][:9]})
    assert "uint8 (9,) instead of uint8 (10,)" in message("mnist", tmp_path / "other")


@pytest.mark.parametrize("name", list(DOWNLOADS))
def test_a_missing_set_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    assert message(name, tmp_path) == (
        f"dataset {name!r} is not in {tmp_path}; get it with: nas data get {name} --data-dir {tmp_path}"
    )


def test_the_command_of_the_message_survives_a_shell(tmp_path: Path) -> None:
    assert message("mnist", tmp_path / "my data").endswith(f"--data-dir '{tmp_path / 'my data'}'")


def test_an_incomplete_set_counts_as_missing(small: dict[str, Arrays], tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", small["mnist"])
    (tmp_path / "MNIST" / "raw" / IDX_FILES["y_test"]).unlink()
    assert "is not in" in message("mnist", tmp_path)


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    assert message("cifar-10", tmp_path) == "unknown dataset 'cifar-10'; did you mean 'cifar10'?"


def test_data_dir_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("NAS_DATA", "~/sets")
    assert resolve_data_dir("~/mine") == Path("/somewhere/mine")
    assert resolve_data_dir(None) == Path("/somewhere/sets")
    monkeypatch.delenv("NAS_DATA")
    assert resolve_data_dir(None) == Path("/somewhere/.cache/nas-toolkit/data")
    with pytest.raises(UserError, match="home folder of ~no-such-user-here"):
        resolve_data_dir("~no-such-user-here/data")


def write_images(folder: Path, classes: tuple[str, ...]) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((12, 10, 3), 40 * number, dtype=np.uint8)).save(folder / name / "1.jpg")


def test_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "photos" / part, ("ant", "bee"))
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = load_dataset("imagefolder:~/photos", workers=0)
    assert (dataset.num_classes, dataset.in_channels, dataset.resolution) == (2, 3, 224)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.name == f"imagefolder:{tmp_path}/photos"
    monkeypatch.chdir(tmp_path)
    assert load_dataset("imagefolder:photos", workers=0).name == dataset.name
    images, labels = next(dataset.test.batches(2, resolution=32))
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [0, 1]


def test_image_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("ant", "bee"))
    assert f"{tmp_path / 'val'} is not a folder" in message(f"imagefolder:{tmp_path}", tmp_path)
    write_images(tmp_path / "val", ("ant", "cow"))
    assert message(f"imagefolder:{tmp_path}", tmp_path).endswith("same classes; in one only: bee, cow")
    assert "needs the path" in message("imagefolder:", tmp_path)
    for part in ("train", "val"):
        write_images(tmp_path / "single" / part, ("ant",))
    assert message(f"imagefolder:{tmp_path / 'single'}", tmp_path).endswith("at least 2 classes, got 'ant' only")


def test_every_listed_set_is_known() -> None:
    assert {name for name in DATASETS if name not in ("digits", "imagefolder:PATH")} == set(DOWNLOADS)
    for facts in DOWNLOADS.values():
        assert len(facts.class_names) == 10 and set(facts.sha256) == {"x_train", "y_train", "x_test", "y_test"}
        assert all(len(sha256) == 64 for sha256 in facts.sha256.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DOWNLOADS))
def test_the_real_sets_have_their_published_facts(name: str) -> None:
    if not resolve_data_dir(None).joinpath(DOWNLOADS[name].folder).is_dir():
        pytest.skip(f"{name} is not in the default data folder")
    first = {"mnist": [5, 0, 4, 1, 9], "fashion-mnist": [9, 0, 0, 3, 0], "cifar10": [6, 9, 9, 4, 1]}
    dataset = load_dataset(name)
    assert dataset.train.labels[:5].tolist() == first[name]
    if name != "mnist":
        assert dataset.train.labels.bincount().tolist() == [len(dataset.train) // 10] * 10
        assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert isinstance(dataset.train, TensorSource)
    images = torch.cat([batch for batch, _ in dataset.train.batches(1000, resolution=dataset.resolution)])
    assert float(images.mean((0, 2, 3)).abs().max()) < 1e-3  # normalised by constants of four digits
    assert float((images.std((0, 2, 3)) - 1).abs().max()) < 1e-3


def test_some_classes_with_all_their_images() -> None:
    digits = load_dataset("digits")
    some = digits.of_classes(3, seed=4)
    assert some.num_classes == 3 and len(set(some.class_names)) == 3 and some.name == digits.name
    assert digits.of_classes(3, seed=4).class_names == some.class_names
    assert {digits.of_classes(3, seed=seed).class_names for seed in range(8)} != {some.class_names}
    whole, _ = next(digits.test.batches(len(digits.test), resolution=8))
    part, labels = next(some.test.batches(len(some.test), resolution=8))
    old = [digits.class_names.index(name) for name in some.class_names]
    assert old == sorted(old)
    kept = torch.isin(digits.test.labels, torch.tensor(old))
    assert torch.equal(part, whole[kept])
    assert torch.equal(torch.tensor(old)[labels], digits.test.labels[kept]) and torch.equal(labels, some.test.labels)
    for count in (1, 11):
        with pytest.raises(UserError, match=f"classes must be in 2..10, got {count}"):
            digits.of_classes(count, seed=0)
    with pytest.raises(UserError, match="class 10 has no images"):
        digits.train.of_classes([3, 10])
    with pytest.raises(UserError, match="classes must be different ones"):
        digits.train.of_classes([3, 3])
