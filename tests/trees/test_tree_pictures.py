"""Images on the page of a tree: which, how many, and that they are the data's own pixels."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nas
from nas.trees.analyses import PathEntropies
from nas.trees.hierarchy import Hierarchy
from nas.trees.pictures import class_thumbnails, contact_sheet, page_images, pictures, worth_a_look
from recipes.datasets import Dataset
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError

TREE = Hierarchy(("a", "b", "c"), ((0, 1), (3, 2)), ("", ""))
LABELS = [2, 0, 1, 2, 2, 0, 2]  # the first ones: a 1, 5; b 2; c 0, 3, 4


def dataset(channels: int, side: int = 6, classes: int = 3) -> Dataset:
    """Seven random images, normalised by means and deviations of its own."""
    pixels = torch.randint(
        0, 256, (7, side, side, channels), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    mean, std = (0.2, 0.5, 0.7, 0.1)[:channels], (0.3, 0.25, 0.2, 0.4)[:channels]
    source = TensorSource(pixels, torch.tensor(LABELS), mean=mean, std=std)
    names = tuple("abc") if classes == 3 else tuple(f"class {i}" for i in range(classes))
    return Dataset(
        name="made", num_classes=classes, in_channels=channels, resolution=side, class_names=names, train=source, test=source
    )  # fmt: skip


def read(file: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(file)))


def stored(data: Dataset, index: int) -> np.ndarray[Any, Any]:
    """Pixels as they were given."""
    images, _ = next(data.test.subset(np.array([index])).batches(1, resolution=data.resolution))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.2, 0.5, 0.7), (0.3, 0.25, 0.2)))
    channels = images.shape[1]
    return ((images[0] * std[:channels] + mean[:channels]) * 255).round().byte().permute(1, 2, 0).numpy()


def test_thumbnails_are_the_first_images_of_each_class() -> None:
    data = dataset(1)
    found = class_thumbnails(data, 3)
    expected = {0: [1, 5], 1: [2], 2: [0, 3, 4]}
    assert {leaf: len(files) for leaf, files in found.items()} == {leaf: len(those) for leaf, those in expected.items()}
    for leaf, those in expected.items():
        for file, index in zip(found[leaf], those, strict=True):
            assert np.array_equal(read(file), stored(data, index)[..., 0]), "grey ones are kept to the bit"
    assert {leaf: len(files) for leaf, files in class_thumbnails(data, 4, most=3).items()} == {0: 1, 1: 1, 2: 1}
    assert class_thumbnails(data, 4, most=2) == {}


def test_colour_images_are_jpeg_and_small() -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64))[..., None] + np.array([0, 40, 80])
    source = TensorSource(
        torch.from_numpy(smooth.astype(np.uint8))[None], torch.tensor([0]), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    (file,) = pictures(source, 64, 32)
    assert file[:3] == b"\xff\xd8\xff" and read(file).shape == (32, 32, 3)
    expected = smooth.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(read(file) - expected).mean() < 3
    (whole,) = pictures(source, 64, 96)
    assert read(whole).shape == (64, 64, 3), "small ones stay as they are"


def entropies(predicted: list[int], probability: list[float], path_entropy: list[float]) -> PathEntropies:
    ints, zeros = np.array(predicted), np.zeros(len(predicted))
    return PathEntropies(
        ints, np.array(probability), np.array(path_entropy), zeros, ints, ints, ints, zeros, zeros, zeros
    )


def test_which_images_are_worth_a_look() -> None:
    """Right: 0 and 1 (class 0), 2 (class 1), 5; wrong: 3, 4."""
    labels = np.array([0, 0, 1, 0, 1, 1])
    found = entropies([0, 0, 1, 1, 0, 1], [0.9, 0.95, 0.6, 0.7, 0.8, 0.5], [0.1, 0.0, 0.2, 0.9, 0.3, 0.4])
    assert worth_a_look(found, labels, each=2) == [
        (1, "right"), (2, "right"), (4, "wrong"), (3, "wrong"), (5, "ambiguous"), (0, "ambiguous"),
    ]  # fmt: skip
    assert worth_a_look(found, labels, each=3)[:3] == [(1, "right"), (2, "right"), (0, "right")], (
        "each class once, then the rest"
    )
    perfect = entropies([0, 0, 1, 0, 1, 1], [1.0] * 6, [0.0] * 6)
    assert {kind for _, kind in worth_a_look(perfect, labels)} == {"right"}, "nothing is ambiguous without path entropy"


class Means(nn.Module):
    """Logits from three pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :3] * 2.0


@pytest.mark.parametrize("thumbnails", [0, 2])
def test_images_of_a_page(thumbnails: int) -> None:
    data = dataset(3)
    model = nas.NBDT(Means(), TREE).eval()
    images, labels = next(data.test.batches(7, resolution=6))
    found = page_images(model, data, Means()(images), labels, resolution=6, thumbnails=thumbnails)
    assert len(found.decisions) == 7 and {leaf: len(files) for leaf, files in found.thumbnails.items()} == (
        {0: 2, 1: 1, 2: 2} if thumbnails else {}
    )
    for one in found.decisions:
        kind, index, name = re.fullmatch(r"(\w+): image (\d), (\w)", one.title).groups()  # type: ignore[union-attr]
        assert one.label == LABELS[int(index)] and name == "abc"[one.label]
        (expected,) = model.decisions(images[int(index)][None])
        assert one.decision.predicted == expected.predicted
        assert kind == "ambiguous" or (kind == "right") == (expected.predicted == one.label)
        assert (one.picture is not None) == bool(thumbnails)


def test_other_channels_are_not_shown() -> None:
    data = dataset(4)
    images, labels = next(data.test.batches(7, resolution=6))
    found = page_images(nas.NBDT(Means(), TREE), data, Means()(images), labels, resolution=6)
    assert found.thumbnails == {} and {one.picture for one in found.decisions} == {None}


def test_contact_sheet() -> None:
    data = dataset(1, side=40)
    sheet = read(contact_sheet(data.test, np.array([3, 0, 3]), 2, 40))
    assert sheet.shape == (2 * 84, 2 * 84), "twice as large, 4 pixels between them"
    for row, column, index in ((0, 0, 3), (0, 1, 0), (1, 0, 3)):
        tile = sheet[84 * row : 84 * row + 80 : 2, 84 * column : 84 * column + 80 : 2]
        assert np.array_equal(tile, stored(data, index)[..., 0])
    assert (sheet[84:, 84:] == 255).all() and (sheet[80:84] == 255).all()
    with pytest.raises(UserError, match="2000"):
        contact_sheet(data.test, np.zeros(2001, dtype=np.int64), 2, 40)
    with pytest.raises(UserError, match="4 channels"):
        contact_sheet(dataset(4).test, np.array([0]), 1, 6)


def page_data(path: Path) -> dict[str, Any]:
    text = path.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    return dict(json.loads(found[1]))


def test_nbdt_puts_images_on_its_page(tmp_path: Path) -> None:
    data = dataset(1)
    nas.nbdt(Means(), data, tree=TREE, out=tmp_path / "some", thumbnails=1)
    page = page_data(tmp_path / "some" / "page.html")
    assert {leaf: len(files) for leaf, files in page["thumbnails"].items()} == {"0": 1, "1": 1, "2": 1}
    first = base64.b64decode(page["thumbnails"]["0"][0].removeprefix("data:image/png;base64,"))
    assert np.array_equal(read(first), stored(data, 1)[..., 0])
    shown = [one["title"] for one in page["images"]]
    assert 5 <= len(shown) <= 7 and all(one["picture"] for one in page["images"])
    nas.nbdt(Means(), data, tree=TREE, out=tmp_path / "none", thumbnails=0)
    page = page_data(tmp_path / "none" / "page.html")
    assert page["thumbnails"] == {} and [one["title"] for one in page["images"]] == shown
    assert not any(one["picture"] for one in page["images"])
    with pytest.raises(UserError, match="thumbnails must be >= 0"):
        nas.nbdt(Means(), data, tree=TREE, thumbnails=-1)


def test_a_page_of_many_classes_stays_small() -> None:
    """1,000 noisy colour thumbnails of 32 pixels, which compress worst of all."""
    noise = torch.randint(0, 256, (20, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    files = pictures(TensorSource(noise, torch.zeros(20, dtype=torch.int64), mean=(0.5,) * 3, std=(0.2,) * 3), 32, 32)
    assert max(map(len, files)) * 1000 * 4 / 3 < 4_000_000
