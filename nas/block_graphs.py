"""ONNX graphs of our blocks, node by node: what `nas export` writes for them, in a millisecond instead of seconds.

The nodes are those of torch's exporter: batch norms folded into convolutions, a global pool as ReduceMean. A test compares
both, and the outputs of every kind of block with PyTorch's.
"""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from search_spaces.blocks import InvertedResidual, PoolHead

OPSET, IR_VERSION = 20, 10  # those of torch's exporter
INPUT = "images"

Value = str  # name of a tensor in the graph


class BlockGraph:
    """A graph under construction; every method adds nodes behind a value and returns theirs."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, *inputs: Value, **attributes: Any) -> Value:
        """One operator with one output."""
        output = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, tensor: Tensor) -> Value:
        """A weight."""
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), name))
        return name

    def conv(self, x: Value, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Value:
        """A convolution, with the batch norm behind it folded in."""
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = -norm.running_mean if bias is None else bias - norm.running_mean
            weight, bias = weight * scale[:, None, None, None], norm.bias + shift * scale
        constants = [self.constant(tensor) for tensor in (weight, bias) if tensor is not None]
        padding, strides = int(conv.padding[0]), list(conv.stride)
        return self.node(
            "Conv", x, *constants, group=conv.groups, pads=[padding] * 4, strides=strides, dilations=[1, 1],
            kernel_shape=list(conv.kernel_size),
        )  # fmt: skip

    def activation(self, x: Value, module: nn.Module) -> Value:
        """ReLU, h-swish or h-sigmoid."""
        if isinstance(module, nn.Hardsigmoid):
            return self.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        return self.node({nn.ReLU: "Relu", nn.Hardswish: "HardSwish"}[type(module)], x)

    def pool(self, x: Value) -> Value:
        """Global average."""
        return self.node("ReduceMean", x, self.constant(torch.tensor([-1, -2])), keepdims=1)

    def conv_norm(self, x: Value, module: nn.Module) -> Value:
        """What `search_spaces.blocks.conv_norm` makes."""
        conv, norm, *activation = module.children()
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        x = self.conv(x, conv, norm)
        return self.activation(x, activation[0]) if activation else x

    def squeeze_excitation(self, x: Value, module: SqueezeExcitation) -> Value:
        """Gates from the pooled map, times the map."""
        gate = self.activation(self.conv(self.pool(x), module.fc1), module.activation)
        return self.node("Mul", self.activation(self.conv(gate, module.fc2), module.scale_activation), x)

    def shuffle(self, x: Value, groups: int, channels: int, side: int) -> Value:
        """Channel shuffle as the exporter writes it: reshape, transpose, reshape."""
        split = torch.tensor([-1, groups, channels // groups, side, side])
        x = self.node("Reshape", x, self.constant(split), allowzero=1)
        x = self.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", x, self.constant(torch.tensor([-1, channels, side, side])), allowzero=1)

    def block(self, x: Value, module: nn.Module, side: int) -> Value:
        """What `search_spaces.blocks.build_block` makes; ``side`` of the map that enters."""
        if isinstance(module, nn.Identity):
            return x
        if isinstance(module, InvertedResidual):
            return self._inverted_residual(x, module, side)
        if isinstance(module, PoolHead):
            pooled = self.pool(self.conv_norm(x, module.pw))
            return self.activation(self.conv(pooled, module.pwl), module.activation)
        return self.conv_norm(x, module)

    def _inverted_residual(self, x: Value, module: InvertedResidual, side: int) -> Value:
        branch = x if isinstance(module.pw, nn.Identity) else self.conv_norm(x, module.pw)
        if isinstance(module.shuffle, nn.ChannelShuffle):
            conv = module.dw.get_submodule("0")
            assert isinstance(conv, nn.Conv2d)
            branch = self.shuffle(branch, module.shuffle.groups, conv.in_channels, side)
        branch = self.conv_norm(branch, module.dw)
        if isinstance(module.se, SqueezeExcitation):
            branch = self.squeeze_excitation(branch, module.se)
        branch = self.conv_norm(branch, module.pwl)
        return self.node("Add", x, branch) if module.residual else branch

    def classifier(self, x: Value, module: nn.Linear) -> Value:
        """Average pool and linear layer."""
        shape = self.constant(torch.tensor([-1, module.in_features]))
        flat = self.node("Reshape", self.pool(x), shape, allowzero=1)
        return self.node("Gemm", flat, self.constant(module.weight), self.constant(module.bias), transB=1)

    def serialised(self, shape: tuple[int, ...], output: Value) -> bytes:
        """The model, from images of ``shape`` to ``output``."""
        images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "blocks", [images], [result], self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())
