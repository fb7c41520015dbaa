"""The supergraph of DMaskingNAS (FBNetV2, thesis section 3.3): every network of a space in one module.

`Supergraph.forward(images, weights)` takes the Gumbel weights of every choice as an argument and keeps no choice itself.
One-hot weights give exactly the network of that row, on images subsampled to its resolution.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor, nn

from search_spaces.network import initialise
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from supernets.blocks import LayerWeights, MaskedPoolHead, MaskedStem, MixedLayer
from supernets.effective import EffectiveCost, SlotMasks, Weights, pick, presence
from supernets.gumbel import gumbel_weights, keep_two
from supernets.masking import MaskPosition, width_table
from supernets.recompute import recomputed
from supernets.resolution import scatter_add, scatter_back, subsample


class Level(NamedTuple):
    """Resolutions that are alike at one layer: same side of the map before and after it."""

    resolutions: tuple[int, ...]
    side_in: int
    side_out: int


ScaledLevels = list[tuple[Level, Tensor]]  # with the weights of their resolutions
Given = Tensor | LayerWeights  # what a layer needs to know besides its input


class Supergraph(nn.Module):
    """All networks of a space with shared, maximally wide weights.

    Attributes:
        alpha: logits of all choices, one flat float32 vector in the order of ``space.variables``.
        mask_choices: names of the variables whose options are masks of channels: widths and expansions.
        sample_two: whether a layer runs only two block types, drawn by their weights (`keep_two`).
        run_all_blocks: whether block types of weight exactly 0 are run too, when no gradient of the weights is wanted.
        run_all_resolutions: the same of resolutions.
        recompute_resolutions: whether the backward pass runs all resolutions but the largest again instead of finding their
            maps kept: the memory of one resolution for all, the same bits, more time.

    Args:
        space: what can be chosen.
        num_classes: outputs of the classifier.
        counted_classes: outputs of the classifier whose cost is counted; default the same.
        in_channels: channels of the image.
        seed: of the initial weights; alpha starts at zero.
        mask_position: ``"affine"`` folds masks into batch norms, ``"output"`` is Eq. 3.3 to the letter.
        share_pointwise: whether the block types of a layer share their 1x1 convolutions, see `MixedLayer`.
        share_blocks: whether they share all weights, likewise.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int,
        in_channels: int = 3,
        *,
        seed: int = 0,
        mask_position: MaskPosition = "affine",
        counted_classes: int | None = None,
        share_pointwise: bool = False,
        share_blocks: bool = False,
    ) -> None:
        super().__init__()
        require(len(space) > 0, f"space {space.name} has nothing to choose: every variable has one option")
        self.space = space
        self.tables = SpaceTables(space, num_classes=counted_classes or num_classes, in_channels=in_channels)
        self.option_counts = [int(count) for count in space.option_counts]
        self.alpha = nn.Parameter(torch.zeros(sum(self.option_counts)))
        self.mask_choices = {space.stem.width.name} | {
            variable.name for slot in space.slots for variable in (slot.expansion, slot.width)
        }
        self.sample_two = False
        self.run_all_blocks = False
        self.run_all_resolutions = False
        self.recompute_resolutions = False
        self.cost = EffectiveCost(self.tables)
        self.masks = nn.ModuleList(SlotMasks(space, self.tables, index) for index in range(len(space.slots)))
        with torch.random.fork_rng(devices=[]):
            shared = {"share_pointwise": share_pointwise, "share_blocks": share_blocks}
            self._make_layers(num_classes, in_channels, mask_position, shared)
        initialise(self, torch.Generator().manual_seed(seed))
        self.levels = self._levels()

    def _make_layers(
        self, num_classes: int, in_channels: int, mask_position: MaskPosition, shared: Mapping[str, bool]
    ) -> None:
        space = self.space
        width = int(space.built_widths(space.stem.width).max())
        self.register_buffer(
            "stem_widths", width_table(torch.as_tensor(space.built_widths(space.stem.width))), persistent=False
        )
        self.stem = MaskedStem(space.stem, in_channels, width, mask_position)
        self.layers = nn.ModuleList()
        for slot, table in zip(space.slots, self.tables.slots, strict=True):
            out = int(space.built_widths(slot.width).max())
            middle, squeeze = int(table.mid.max()), int(table.squeeze.max())
            layer = MixedLayer(slot, width, middle, squeeze, out, mask_position, **shared)
            self.layers.append(layer)
            width = out
        head_mid = torch.tensor([space.head_mid_channels(int(w)) for w in space.built_widths(space.slots[-1].width)])
        self.register_buffer("head_widths", width_table(head_mid), persistent=False)
        self.head = MaskedPoolHead(space.head, width, int(head_mid.max()), mask_position)
        self.classifier = nn.Linear(space.head.out_channels, num_classes)

    def _levels(self) -> list[list[Level]]:
        """For the stem, every slot and the head: groups of resolutions alike there, the largest last."""
        sides = self.tables.sides
        pairs = [(sides[:, i], sides[:, i + 1]) for i in range(sides.shape[1] - 1)] + [(sides[:, -1], sides[:, -1])]
        levels = []
        for before, after in pairs:
            groups: dict[tuple[int, int], list[int]] = {}
            for index, pair in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
                groups.setdefault(pair, []).append(index)
            levels.append([Level(tuple(members), *pair) for pair, members in groups.items()])
        return levels

    def network_parameters(self) -> list[nn.Parameter]:
        """All weights but alpha."""
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]

    def weights(
        self,
        tau: float,
        noise: Tensor | None = None,
        *,
        committed: Mapping[str, int] | None = None,
        mask_tau: float | None = None,
    ) -> Weights:
        """Gumbel weights of every variable: one draw a choice, shared by all that reads the choice.

        Args:
            tau: temperature, > 0.
            noise: Gumbel noise as long as alpha; None for none.
            committed: variables that have been decided, with their option: one-hot, without gradient.
            mask_tau: temperature of the choices that are masks of channels, > 0; None: ``tau``.
        """
        committed, mask_tau = committed or {}, tau if mask_tau is None else mask_tau
        epsilon = torch.zeros_like(self.alpha) if noise is None else noise.to(self.alpha)
        parts = zip(torch.split(self.alpha, self.option_counts), torch.split(epsilon, self.option_counts), strict=True)
        return {
            variable.name: self._one_hot(count, committed[variable.name])
            if variable.name in committed
            else gumbel_weights(alpha, mask_tau if variable.name in self.mask_choices else tau, epsilon_part)
            for variable, count, (alpha, epsilon_part) in zip(
                self.space.variables, self.option_counts, parts, strict=True
            )
        }

    def _one_hot(self, count: int, option: int) -> Tensor:
        return torch.eye(count, dtype=self.alpha.dtype, device=self.alpha.device)[option]

    def one_hot(self, row: npt.ArrayLike) -> Weights:
        """Weights that choose the options of ``row`` `(d,)`, in the type of alpha."""
        (indices,) = self.space.check_rows(row)
        return {
            variable.name: self._one_hot(count, int(option))
            for variable, count, option in zip(self.space.variables, self.option_counts, indices, strict=True)
        }

    def layer_weights(self, weights: Weights) -> list[LayerWeights]:
        """What the weights mean for every layer, computed once a step."""
        return [self._layer_weights(index, masks(weights), weights) for index, masks in enumerate(self.masks)]

    def _layer_weights(self, index: int, masks: tuple[Tensor, ...], weights: Weights) -> LayerWeights:
        slot = self.space.slots[index]
        mid_mask, squeeze_mask, out_mask, same = masks
        there, block = presence(weights, slot), pick(weights, slot.block)
        block = keep_two(block) if self.sample_two else block
        same = same if slot.stride == 1 else torch.zeros_like(same)
        return LayerWeights(
            block=block * there,
            active=self._active_blocks(block),
            mid_mask=mid_mask,
            squeeze_mask=squeeze_mask,
            out_mask=out_mask,
            same=same,
            identity=there * same + (1 - there),
        )

    def _active_blocks(self, block: Tensor) -> tuple[int, ...]:
        """Block types that have to run."""
        if self.run_all_blocks:
            return tuple(range(len(block)))
        return _active(block.detach() if self.sample_two else block)  # what `keep_two` has left out gets no gradient

    def forward(self, images: Tensor, weights: Weights) -> Tensor:
        """Images at the largest resolution `(B, C, H, H)` to logits `(B, num_classes)`.

        Args:
            images: square, side = the largest resolution of the space.
            weights: Gumbel weights `(n_options,)` of every variable (`weights` or `one_hot`).

        Raises:
            ValueError: images of another side.
        """
        largest = max(self.space.resolution.options)
        if images.shape[-2:] != (largest, largest):
            raise ValueError(f"images must be {largest}x{largest}, got {images.shape[-2]}x{images.shape[-1]}")
        g_resolution = pick(weights, self.space.resolution)
        active = set(range(len(g_resolution)) if self.run_all_resolutions else _active(g_resolution))
        levels = [
            [(level, g_resolution[list(level.resolutions)].sum()) for level in layer if active & set(level.resolutions)]
            for layer in self.levels
        ]
        with torch.autocast(
            images.device.type, enabled=False
        ):  # masks are few numbers, and alpha's gradient goes through them
            stem_mask = pick(weights, self.space.stem.width) @ self.get_buffer("stem_widths")
            given_layers = self.layer_weights(weights)
            head_mask = pick(weights, self.space.slots[-1].width) @ self.get_buffer("head_widths")
        full = [layer[-1].side_out for layer in self.levels]
        x = self._over_resolutions(self.stem, stem_mask, levels[0], images, full[0])
        for index, (layer, given) in enumerate(zip(self.layers, given_layers, strict=True), start=1):
            x = self._over_resolutions(layer, given, levels[index], x, full[index])
        pooled = [*self._at_resolutions(self.head, head_mask, levels[-1], x)]
        return self.classifier(torch.stack(pooled[::-1]).sum(0).flatten(1))  # type: ignore[no-any-return]

    def _over_resolutions(self, layer: nn.Module, given: Given, levels: ScaledLevels, x: Tensor, full: int) -> Tensor:
        """Sum over resolutions of scatter(layer(subsample(x)) times the weight of the resolution), a map of side ``full``."""
        total: Tensor | None = None
        for y in self._at_resolutions(layer, given, levels, x):  # the largest first: the others are added into its map
            total = scatter_back(y, full) if total is None else scatter_add(total, y)
        assert total is not None, "some resolution is active"
        return total

    def _at_resolutions(self, layer: nn.Module, given: Given, levels: ScaledLevels, x: Tensor) -> Iterator[Tensor]:
        """What a layer makes of ``x`` `(B, C, H, H)` at every resolution, the largest first."""
        for index, (level, scale) in enumerate(reversed(levels)):
            run = partial(_run_layer, layer, given, level.side_in)
            again = self.recompute_resolutions and index > 0
            yield recomputed(run, layer, x, scale) if again else run(x, scale)


def _run_layer(layer: nn.Module, given: Given, side: int, x: Tensor, scale: Tensor) -> Tensor:
    """A layer on the subsample of ``x`` that has this side, times the weight of the resolution."""
    return layer(subsample(x, side), given, scale)  # type: ignore[no-any-return]


def _active(gumbel_weights: Tensor) -> tuple[int, ...]:
    """Options that have to run: all of them when their weights learn, else those with a weight."""
    if gumbel_weights.requires_grad:
        return tuple(range(len(gumbel_weights)))
    return tuple(index for index, weight in enumerate(gumbel_weights.tolist()) if weight != 0)
