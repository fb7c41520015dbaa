"""From a supergraph to one network: built without masks, with the supergraph's weights sliced to its widths."""

from collections.abc import Iterator

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from search_spaces.blocks import InvertedResidual, PoolHead
from search_spaces.network import Network, build
from supernets.blocks import MixedLayer
from supernets.residuals import MaskedInvertedResidual
from supernets.supergraph import Supergraph


def sliced_network(supergraph: Supergraph, row: npt.ArrayLike) -> Network:
    """The network of ``row``, built without masks, with the supergraph's weights sliced to its widths.

    Args:
        supergraph: whose weights to take.
        row: `(d,)` option indices.

    Returns:
        A network of `search_spaces.network.build` in the supergraph's precision, in eval mode.
    """
    network = build(supergraph.space.decode(row), supergraph.classifier.out_features, supergraph.tables.in_channels)
    network.to(supergraph.alpha.dtype)
    for target, source in _pairs(network, supergraph, row):
        _copy_slice(target, source)
    return network.eval()


def _pairs(network: Network, supergraph: Supergraph, row: npt.ArrayLike) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Modules of the network with the supergraph's module that each is a slice of."""
    space = supergraph.space
    rows = space.check_rows(row)
    blocks = iter(network.blocks)
    yield next(blocks), supergraph.stem.conv
    for slot, layer in zip(space.slots, supergraph.layers, strict=True):
        if not space.present(rows, slot)[0]:
            continue
        assert isinstance(layer, MixedLayer)
        block, branch = next(blocks), layer.branches[int(space.picked(rows, slot.block)[0])]
        if isinstance(block, InvertedResidual):
            assert isinstance(branch, MaskedInvertedResidual)
            if branch.pw is not None:
                yield block.pw, branch.pw
            yield block.dw, branch.dw
            if isinstance(block.se, SqueezeExcitation):
                assert branch.reduce is not None and branch.expand is not None
                yield block.se.get_submodule("fc1"), branch.reduce
                yield block.se.get_submodule("fc2"), branch.expand
            yield block.pwl, branch.pwl
        elif not isinstance(block, nn.Identity):
            yield block, branch
    head = next(blocks)
    assert isinstance(head, PoolHead)
    yield head.pw, supergraph.head.pw
    yield head.pwl, supergraph.head.pwl
    yield network.classifier, supergraph.classifier


@torch.no_grad()
def _copy_slice(target: nn.Module, source: nn.Module) -> None:
    """Copy every tensor of ``target`` from that of ``source``: its leading channels, the middle of its kernels."""
    tensors: dict[str, Tensor] = source.state_dict()
    for name, tensor in target.state_dict().items():
        whole, channels, kernel = tensors[name], tensor.shape[:2], tensor.shape[2:]
        margins = [(size - side) // 2 for size, side in zip(whole.shape[2:], kernel, strict=True)]
        middle = [slice(margin, margin + side) for margin, side in zip(margins, kernel, strict=True)]
        tensor.copy_(whole[(*(slice(size) for size in channels), *middle)])
