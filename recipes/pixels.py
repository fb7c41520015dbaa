"""What is done to the pixels of images in tensors: resize, crop and mirror, AutoAugment, normalise.

Sources of images (`recipes.sources`) are made of these, and so are thumbnails and the images of an export.
"""
# n images, b batch, h/w native size, s side, r resolution asked for, c channels; NHWC in store, NCHW when handed out

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.seeding import stream_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1], of torchvision's published classification recipes
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZE_CHUNK = 1024  # images


def crop_and_flip(images: Tensor, chosen: Tensor, corners: Tensor, mirrored: Tensor, resolution: int) -> Tensor:
    """Cut a square out of each chosen image and mirror it where asked, all in one gather.

    Args:
        images: `(n, s, s, c)`, contiguous.
        chosen: `(b,)` int64 index into the images.
        corners: `(b, 2)` int64 top and left of the squares, each in [0, s - r].
        mirrored: `(b,)` bool.
        resolution: r, side of the squares.

    Returns:
        `(b, r, r, c)` of the images' type.
    """
    side, channels = images.shape[1], images.shape[3]
    steps = torch.arange(resolution)
    rows = (chosen * side + corners[:, 0])[:, None] + steps  # (b, r), counted over all images
    columns = corners[:, 1, None] + torch.where(mirrored[:, None], resolution - 1 - steps, steps)
    pixels = rows[:, :, None] * side + columns[:, None, :]
    gathered = images.view(-1, channels).index_select(0, pixels.flatten())
    return gathered.view(len(chosen), resolution, resolution, channels)


def resize_images(images: Tensor, resolution: int) -> Tensor:
    """Bilinear resize with antialiasing, rounded to whole values.

    Args:
        images: `(n, h, w, c)` uint8.
        resolution: r.

    Returns:
        `(n, r, r, c)` uint8, contiguous.
    """
    resized = torch.empty(len(images), resolution, resolution, images.shape[3], dtype=torch.uint8)
    for start in range(0, len(images), RESIZE_CHUNK):
        planes = images[start : start + RESIZE_CHUNK].permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, (resolution, resolution), mode="bilinear", antialias=True)
        resized[start : start + RESIZE_CHUNK] = planes.permute(0, 2, 3, 1)
    return resized


class Normalise:
    """uint8 `(b, r, r, c)` to `((x / 255) - mean) / std`, `(b, c, r, r)` float32 in channels_last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(b, r, r, c)` uint8 normalised, `(b, c, r, r)`."""
        # NHWC seen as NCHW is channels_last already, and the conversion keeps the strides
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(self.scale).add_(self.shift)

    def undone(self, images: Tensor) -> Tensor:
        """`(b, r, r, c)` uint8 of what was normalised, to the bit; values outside are cut off."""
        pixels = (images.detach().cpu().float() - self.shift) / self.scale
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class CifarAutoAugment:
    """AutoAugment's CIFAR-10 policy; what is drawn for an image depends on the seed and its place in the epoch alone."""

    def __init__(self, seed: int) -> None:
        from torchvision.transforms import v2

        self.seed, self.transform = seed, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """Changed copies of images `(b, r, r, c)` uint8 at `places` `(b,)` of the epoch."""
        changed = torch.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for index, (image, place) in enumerate(zip(images, places.tolist(), strict=True)):
                torch.default_generator.manual_seed(stream_seed(self.seed, "image", place))
                changed[index] = self.transform(image.permute(2, 0, 1)).permute(1, 2, 0)
        return changed
