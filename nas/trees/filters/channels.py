"""Where a convolution's filters go, found by torch.fx: which layers carry them, which mix them, and what a narrower network is.

A filter is one output channel of a convolution. Norms, activations, pools, depthwise convolutions and squeeze-and-excite keep
channels apart; the next full convolution or linear layer mixes them. Removing a filter therefore narrows the convolution, all
that carries its channels and the inputs of what mixes them. Setting its channel to zero wherever channels are mixed gives the
same outputs without building anything; a norm or bias on the way cannot bring it back.
"""
# B batch, C filters of the layer, H/W feature map

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from recipes.evaluation import evaluation_mode
from search_spaces.errors import UserError, closest, first_line
from search_spaces.serialisation import require

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh,
)  # fmt: skip
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PLAIN = (*ACTIVATIONS, *POOLS, nn.Dropout, nn.Dropout2d, nn.Identity, StochasticDepth)
ACTIVATION_NAMES = frozenset({"relu", "relu_", "relu6", "hardswish", "silu", "gelu", "leaky_relu", "sigmoid", "tanh"})
PLAIN_NAMES = ACTIVATION_NAMES | {
    "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "contiguous",
}  # fmt: skip
FLATTEN_NAMES = frozenset({"flatten", "view", "reshape"})
MASK = "filter_mask"


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterGroup:
    """A convolution whose filters can be removed, and the layers that change with it.

    Attributes:
        layer: name of the convolution that makes the channels.
        filters: C.
        carriers: names of norms, depthwise convolutions and squeeze-and-excites that keep the channels apart.
        mixers: names of convolutions and linear layers that mix them, each with its number of inputs for a filter.
    """

    layer: str
    filters: int
    carriers: tuple[str, ...]
    mixers: tuple[tuple[str, int], ...]


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The two-dimensional convolutions of a network by name, in order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def find_convolution(network: nn.Module, layer: str) -> nn.Conv2d:
    """A convolution by name.

    Raises:
        UserError: no layer of that name, or one that is no convolution.
    """
    known = convolutions(network)
    require(bool(known), "the network has no convolution, so there are no filters to look at")
    if layer in known:
        return known[layer]
    other = dict(network.named_modules()).get(layer) if layer else None
    what = f"the network has no layer {layer!r}" if other is None else f"layer {layer!r} is a {type(other).__name__}"
    raise UserError(f"{what}; a convolution is needed{closest(layer, known)}")


def activation_maps(network: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
    """A module that computes the activation maps of some convolutions and nothing behind them; weights are shared.

    A map is taken behind the convolution's norm and activation, where it has them (document 004, section 3: "at each ReLU
    layer"), before any pool.

    Args:
        network: any that torch.fx can follow.
        layers: L names of convolutions.

    Returns:
        Images `(B, c, r, r)` to a tuple of L maps `(B, C, H, W)`.

    Raises:
        UserError: a name that is no convolution, one that runs more or less than once, or a network that cannot be followed.
    """
    for layer in layers:
        find_convolution(network, layer)
    graph, modules = _graph(network, inside=True)
    taken = tuple(_activation(_only_node(graph, layer), modules) for layer in layers)
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (taken,)
    made = fx.GraphModule(network, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def filter_group(network: nn.Module, layer: str) -> FilterGroup:
    """What changes when filters of a convolution are removed; of a depthwise one, those of the convolution before it.

    Args:
        network: any that torch.fx can follow.
        layer: name of a convolution.

    Raises:
        UserError: as `activation_maps`; or filters that cannot be removed, as those added to other channels.
    """
    return _followed(network, layer)[0]


def masked(network: nn.Module, layer: str) -> tuple[fx.GraphModule, FilterGroup]:
    """The network with one more input that switches filters off; weights are shared.

    Returns:
        Images `(B, c, r, r)` and a mask `(C,)` of zeros and ones to outputs as without the filters of the zeros; and the group.

    Raises:
        UserError: as `filter_group`.
    """
    group, graph, places = _followed(network, layer)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    require(len(inputs) == 1, f"the network must take images only, it takes {len(inputs)} inputs")
    with graph.inserting_after(inputs[-1]):
        mask = graph.placeholder(MASK)
    with graph.inserting_after(mask):
        column = graph.call_method("reshape", (mask, (1, -1, 1, 1)))
    for node, user in places:
        with graph.inserting_before(user):
            user.replace_input_with(node, graph.call_function(operator.mul, (node, column)))
    return fx.GraphModule(network, graph), group


def narrowed(network: nn.Module, layer: str, kept: Sequence[int]) -> nn.Module:
    """A copy of the network without the other filters of a convolution; outputs are as with `masked`.

    Args:
        network: left as it is.
        layer: name of a convolution.
        kept: numbers of the filters that stay, ascending, at least one.

    Raises:
        UserError: as `filter_group`, or numbers that are no such filters.
    """
    group = filter_group(network, layer)
    numbers = list(kept)
    require(
        len(numbers) > 0 and numbers == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < group.filters,
        f"kept filters of {layer} must be ascending numbers in 0..{group.filters - 1}, at least one, got {numbers[:10]}",
    )
    index = torch.tensor(numbers)
    made = copy.deepcopy(network)
    modules = dict(made.named_modules())
    _select(modules[group.layer], index, axis=0)
    for name in group.carriers:
        carrier = modules[name]
        if isinstance(carrier, SqueezeExcitation):
            _select(carrier.fc1, index, axis=1)
            _select(carrier.fc2, index, axis=0)
        else:
            _select(carrier, index, axis=0)
    for name, repeated in group.mixers:
        _select(modules[name], (index[:, None] * repeated + torch.arange(repeated)).flatten(), axis=1)
    return made


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own modules and those named."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _graph(network: nn.Module, *, inside: bool = False) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The network's operations and its modules by name; ``inside`` squeeze-and-excites as well."""
    leaves = (StochasticDepth,) if inside else (StochasticDepth, SqueezeExcitation)
    with evaluation_mode(network):
        try:
            graph = _Tracer(leaves).trace(network)
        except Exception as error:  # tracing runs the network's own code, which may raise anything at all
            raise UserError(f"torch.fx cannot follow {type(network).__name__}: {first_line(error)}") from error
    return graph, dict(network.named_modules())


def _only_node(graph: fx.Graph, layer: str) -> fx.Node:
    nodes: list[fx.Node] = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    require(len(nodes) == 1, f"layer {layer} must run once for an image, it runs {len(nodes)} times")
    return nodes[0]


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _function(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The activation behind a convolution, or the last of its norm and itself."""
    while len(node.users) == 1:
        (user,) = node.users
        module = _module(user, modules)
        if isinstance(module, ACTIVATIONS) or _function(user) in ACTIVATION_NAMES:
            return user
        if not isinstance(module, nn.BatchNorm2d):
            break
        node = user
    return node


def _is_depthwise(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _source(graph: fx.Graph, modules: dict[str, nn.Module], layer: str) -> fx.Node:
    """The full convolution whose channels ``layer`` puts out."""
    node, seen = _only_node(graph, layer), layer
    while True:
        module = _module(node, modules)
        if isinstance(module, nn.Conv2d) and not _is_depthwise(module):
            require(module.groups == 1, f"filters of {seen} cannot be removed: {node.target} works in groups")
            return node
        inputs = node.all_input_nodes
        passing = isinstance(module, (nn.Conv2d, nn.BatchNorm2d, SqueezeExcitation, *PLAIN))
        require(
            (passing or _function(node) in PLAIN_NAMES) and len(inputs) == 1,
            f"filters of {seen} cannot be removed: its channels come from {_shown(node)}",
        )
        node = inputs[0]


def _shown(node: fx.Node) -> str:
    if node.op in ("output", "placeholder"):
        return "the network's output" if node.op == "output" else "the image"
    return f"layer {node.target}" if node.op == "call_module" else f"the operation {_function(node) or node.name}"


def _followed(network: nn.Module, layer: str) -> tuple[FilterGroup, fx.Graph, list[tuple[fx.Node, fx.Node]]]:
    """The group, the network's graph, and its edges into operations that mix channels or move them to other places."""
    find_convolution(network, layer)
    graph, modules = _graph(network)
    owner = next(
        (
            name
            for name, module in modules.items()
            if isinstance(module, SqueezeExcitation) and layer.startswith(f"{name}.")
        ),
        "",
    )
    require(not owner, f"filters of {layer} cannot be removed: they are inside the squeeze-and-excite {owner}")
    source = _source(graph, modules, layer)
    convolution = modules[str(source.target)]
    assert isinstance(convolution, nn.Conv2d)
    filters = convolution.out_channels
    carriers: list[str] = []
    mixers: list[tuple[str, int]] = []
    places: list[tuple[fx.Node, fx.Node]] = []
    waiting = [(source, False)]  # a node with the channels, and whether its positions are flattened into them
    done = {source}
    while waiting:
        node, flat = waiting.pop(0)
        for user in node.users:
            if _asks_batch(user):
                continue
            kind, repeated = _kind(user, modules, filters, flat)
            if kind == "other" or (user in done and kind != "mixes"):
                raise UserError(f"filters of {layer} cannot be removed: their channels reach {_shown(user)}")
            if kind == "mixes":
                mixers.append((str(user.target), repeated))
            elif kind == "carries":
                carriers.append(str(user.target))
            mixed = kind in ("mixes", "flattens") or isinstance(_module(user, modules), SqueezeExcitation)
            if mixed and not flat:
                places.append((node, user))
            if kind != "mixes":
                done.add(user)
                waiting.append((user, flat or kind == "flattens"))
    group = FilterGroup(layer=str(source.target), filters=filters, carriers=tuple(carriers), mixers=tuple(mixers))
    require(bool(mixers), f"filters of {layer} cannot be removed: nothing uses them")
    return group, graph, places


def _kind(user: fx.Node, modules: dict[str, nn.Module], filters: int, flat: bool) -> tuple[str, int]:
    """What an operation does with channels: keeps, carries, flattens, mixes (with its inputs for a filter), or other."""
    module, function = _module(user, modules), _function(user)
    if isinstance(module, nn.Linear):
        fits = flat and module.in_features % filters == 0
        return ("mixes", module.in_features // filters) if fits else ("other", 0)
    if isinstance(module, PLAIN) or function in PLAIN_NAMES:
        alone = len(user.all_input_nodes) == 1 and not (flat and (isinstance(module, POOLS) or "pool" in function))
        return ("keeps" if alone else "other", 0)
    if flat:
        return "other", 0
    if isinstance(module, nn.Conv2d):
        carries = _is_depthwise(module)
        return ("carries" if carries else "mixes" if module.groups == 1 else "other", 1)
    if isinstance(module, (nn.BatchNorm2d, SqueezeExcitation)):
        return "carries", 0
    flattens = isinstance(module, nn.Flatten) and module.start_dim == 1
    flattens |= function in FLATTEN_NAMES and _flattens(user, function)
    flattens |= function == "mean" and tuple(_argument(user, 1, "dim", ())) in ((2, 3), (-2, -1))
    return ("flattens" if flattens else "other", 0)


def _asks_batch(user: fx.Node) -> bool:
    """``x.size(0)`` or ``x.shape[0]``."""
    if user.op == "call_method" and user.target == "size":
        return bool(_argument(user, 1, "dim", None) == (0,))
    shape = user.op == "call_function" and user.target is getattr and bool(user.args[1] == "shape")
    return shape and all(then.target is operator.getitem and then.args[1] == 0 for then in user.users)


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    value = node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
    return value if isinstance(value, (list, tuple)) else (value,)


def _flattens(node: fx.Node, function: str) -> bool:
    """Whether everything but the batch becomes one axis."""
    if function == "flatten":
        return bool(_argument(node, 1, "start_dim", 0) == (1,) and _argument(node, 2, "end_dim", -1) == (-1,))
    given = node.args[1:]
    shape = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    return len(shape) == 2 and isinstance(shape[1], int) and bool(shape[1] == -1)


def _select(module: nn.Module, index: Tensor, axis: int) -> None:
    """Keep these entries of a layer's outputs (axis 0) or inputs (axis 1)."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in own:
        if tensor.ndim <= axis:
            continue  # a bias has outputs only; a counter of batches has neither
        chosen = tensor.detach().index_select(axis, index.to(tensor.device)).clone()
        setattr(
            module, name, nn.Parameter(chosen, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else chosen
        )
    count = len(index)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            module.in_channels = module.out_channels = module.groups = count
        elif axis == 0:
            module.out_channels = count
        else:
            module.in_channels = count
    elif isinstance(module, nn.Linear):
        module.in_features = count
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = count
