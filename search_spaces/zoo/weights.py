"""Published weights: state dicts of other code bases into a `Network`, and back to timm's names. No file is read here.

State dicts are matched by order, shape and role (the last part of a name: ``weight``, ``bias``, ``running_mean``, ...), since
every code base names its modules in its own way but lists them in the order they are used.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.blocks import InvertedResidual, PoolHead
from search_spaces.errors import UserError
from search_spaces.network import Network
from search_spaces.serialisation import require

BATCHES = ".num_batches_tracked"
TIMM_STEM = "conv_stem."
_HEAD = 2  # weight and bias of the classifier, which come last

# Parts of an inverted residual, ours to timm's, with and without its first 1x1 convolution; of the pool head likewise.
_TIMM_WITH_POINTWISE = {
    "pw.0": "conv_pw", "pw.1": "bn1", "dw.0": "conv_dw", "dw.1": "bn2", "se.fc1": "se.conv_reduce",
    "se.fc2": "se.conv_expand", "pwl.0": "conv_pwl", "pwl.1": "bn3",
}  # fmt: skip
_TIMM_WITHOUT_POINTWISE = {
    "dw.0": "conv_dw", "dw.1": "bn1", "se.fc1": "se.conv_reduce", "se.fc2": "se.conv_expand", "pwl.0": "conv_pw",
    "pwl.1": "bn2",
}  # fmt: skip

Named = list[tuple[str, Tensor]]


def read_published(network: Network, state: Mapping[str, Any], *, where: str) -> str | None:
    """Load a published checkpoint, of mobile-vision's or of timm's layout, into a network.

    Weights are taken from ``model_ema`` when it is there and not None, else from ``state_dict``, else from ``state`` itself;
    the prefix ``module.`` is dropped. A stem bias that only the network has becomes zero, one that only the file has moves
    into the norm behind it. The classifier may be a linear layer or a 1x1 convolution. Counters of batches may be missing.
    Shapes do not tell all networks apart (FBNetV3-A and B, FBNetV2 F1 and F2, L1 and L2 agree), nor do they tell paddings.

    Args:
        network: changed in place, or left as it is when an error is raised.
        state: what the checkpoint holds; it is not changed.
        where: names the checkpoint in messages.

    Returns:
        A line to show when the file is of another number of classes and the classifier was left as it is, else None.

    Raises:
        UserError: a tensor of another shape, missing or left over (the message names the first), or not finite.
    """
    tensors = _tensors(state, where)
    batches = {name.removesuffix(BATCHES): count for name, count in tensors.items() if name.endswith(BATCHES)}
    own = network.state_dict()
    wanted = [(name, tensor) for name, tensor in own.items() if not name.endswith(BATCHES)]
    given = [(name, tensor) for name, tensor in tensors.items() if not name.endswith(BATCHES)]
    given = [(name, _checked(name, tensor, wanted[0][1].dtype, where)) for name, tensor in given]
    given = _with_stem_bias_of(wanted, _in_order(network, given))
    note = _compare(wanted, given, where)
    loaded = len(wanted) - (_HEAD if note else 0)
    for (own_name, tensor), (name, value) in zip(wanted[:loaded], given, strict=False):
        own[own_name] = value.reshape(tensor.shape)
        count = batches.get(name.removesuffix(".running_mean"))
        if count is not None and _role(name) == "running_mean":
            whole = count.shape == () and not count.is_floating_point() and count.device.type != "meta"
            require(whole, f"{where}: the number of batches beside {name!r} must be one whole number")
            own[own_name.removesuffix(".running_mean") + BATCHES] = count
    network.load_state_dict(own)
    return note


def is_timm(state: Mapping[str, Any], *, where: str) -> bool:
    """Whether a checkpoint has timm's names; its networks pad every kernel by kernel // 2, also FBNetV3-B."""
    return any(name.startswith(TIMM_STEM) for name in _tensors(state, where))


def to_timm(network: Network) -> dict[str, Tensor]:
    """State dict with timm's names, for its ``fbnetv3_b``, ``fbnetv3_d`` and ``fbnetv3_g``; a copy.

    timm's stem has no bias: ours is taken from the running mean of the norm behind it.

    Raises:
        UserError: another kind of network, or one whose paddings timm does not have.
    """
    modules = _timm_modules(network)
    if modules is None:
        raise UserError("timm's names are for FBNetV3 networks: a stem, inverted residuals without groups, a pool head")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel, padding = module.kernel_size[0], module.padding[0]
            require(
                padding == kernel // 2,
                f"timm pads a kernel of {kernel} by {kernel // 2}, {name} by {padding}: outputs would differ;"
                " create the network with paddings='normal'",
            )
    state = {}
    for name, tensor in network.state_dict().items():
        module_name, _, role = name.rpartition(".")
        state[f"{modules[module_name]}.{role}"] = tensor.detach().clone()
    bias = state.pop(f"{TIMM_STEM}bias", None)
    if bias is not None:
        state["bn1.running_mean"] -= bias
    return state


def _tensors(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, without wrapper and prefix."""
    inside: Any = state
    for wrapper in ("model_ema", "state_dict"):
        if state.get(wrapper) is not None:
            inside = state[wrapper]
            where = f"{where}, {wrapper}"
            break
    if not isinstance(inside, Mapping) or not inside:
        raise UserError(f"{where}: expected a mapping of tensors, got {type(inside).__name__}")
    for name, tensor in inside.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{where}: expected tensors by name (inside model_ema or state_dict, if anywhere),"
                f" but {name!r} is of type {type(tensor).__name__}"
            )
    tensors = dict(inside)
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _checked(name: str, tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """A weight or statistic as the network's type of number."""
    dense = tensor.is_floating_point() and tensor.layout == torch.strided and tensor.device.type != "meta"
    require(dense, f"{where}: {name!r} must be a dense tensor of floating-point numbers, got {tensor.dtype}")
    tensor = tensor.detach().to(dtype)
    require(bool(torch.isfinite(tensor).all()), f"{where}: {name!r} holds numbers that are not finite")
    negative = _role(name) == "running_var" and bool((tensor < 0).any())
    require(not negative, f"{where}: {name!r} holds negative variances")
    return tensor


def _role(name: str) -> str:
    return name.rpartition(".")[2]


def _in_order(network: Network, given: Named) -> Named:
    """Tensors with exactly timm's names in the network's order (some file formats sort by name), others as they are."""
    modules = _timm_modules(network) or {}
    tensors = dict(given)
    names = []
    for own_name in network.state_dict():
        module_name, _, role = own_name.rpartition(".")
        names.append(f"{modules.get(module_name)}.{role}")
    order = [name for name in names if name in tensors]
    return [(name, tensors[name]) for name in order] if len(order) == len(given) else given


def _with_stem_bias_of(wanted: Named, given: Named) -> Named:
    """The file's tensors with a bias of the first convolution exactly if the network has one."""
    has_bias, file_has_bias = (len(named) > 1 and _role(named[1][0]) == "bias" for named in (wanted, given))
    if has_bias == file_has_bias or len(given) < 5:  # convolution, (bias,) and the four tensors of a norm
        return given
    if has_bias:
        name, weight = given[0]
        zero = (name.removesuffix("weight") + "bias", weight.new_zeros(weight.shape[:1]))
        return [given[0], zero, *given[1:]]
    (_, bias), (mean_name, mean) = given[1], given[4]
    if _role(mean_name) != "running_mean" or mean.shape != bias.shape:
        return given
    return [given[0], *given[2:4], (mean_name, mean - bias), *given[5:]]


def _compare(wanted: Named, given: Named, where: str) -> str | None:
    """The line about a classifier left fresh, if it must be; otherwise nothing, when all tensors agree."""
    classes = given[-_HEAD][1].shape[:1] if len(given) == len(wanted) else torch.Size()
    fresh = bool(classes) and classes != wanted[-1][1].shape
    for index, (own_name, tensor) in enumerate(wanted):
        shape = tuple(tensor.shape)
        if index == len(given):
            raise UserError(
                f"{where} is of another network or cut short: {own_name!r} with shape {shape} is missing,"
                f" the file ends after {len(given)} tensors"
            )
        name, value = given[index]
        found = tuple(value.shape)
        in_head = index >= len(wanted) - _HEAD
        expected = (*classes, *shape[1:]) if in_head and fresh else shape
        agrees = found == expected or (in_head and found == (*expected, 1, 1) and len(expected) == 2)
        if agrees and _role(name) == _role(own_name):
            continue
        hint = ""
        if index == 0 and len(found) == 4 and (found[0], *found[2:]) == (shape[0], *shape[2:]):
            hint = f"; the file is for images of {found[1]} channels (in_channels={found[1]})"
        raise UserError(
            f"{where} is of another network: {name!r} with shape {found} is where {own_name!r} with shape {shape}"
            f" belongs{hint}"
        )
    if len(given) > len(wanted):
        name, value = given[len(wanted)]
        raise UserError(
            f"{where} is of another network: it has {len(given) - len(wanted)} more tensors, the first is {name!r}"
            f" with shape {tuple(value.shape)}"
        )
    if not fresh:
        return None
    return f"{where} is of {classes[0]} classes, not {wanted[-1][1].shape[0]}: the classifier is left fresh"


def _timm_modules(network: Network) -> dict[str, str] | None:
    """timm's names of the modules that hold tensors, by ours; None where it has no such network.

    Its stages begin at stride 2 and where the width changes at stride 16; a change at stride 32 stays inside its stage.
    """
    stem, *body, head = network.blocks
    if not isinstance(stem, nn.Sequential) or not isinstance(head, PoolHead) or head.pwl.bias is not None:
        return None
    names = {"blocks.0.0": "conv_stem", "blocks.0.1": "bn1"}
    total, width, stage, place = _convolution(stem, 0).stride[0], 0, 0, 0
    for index, block in enumerate(body, start=1):
        if not isinstance(block, InvertedResidual) or not isinstance(block.shuffle, nn.Identity):
            return None
        depthwise, last = _convolution(block.dw, 0), _convolution(block.pwl, 0)
        if last.bias is not None:
            return None
        begins = depthwise.stride[0] == 2 or (last.out_channels != width and total == 16)
        stage, place = (stage + 1, 0) if begins and index > 1 else (stage, place)
        has_pointwise = not isinstance(block.pw, nn.Identity)
        parts = _TIMM_WITH_POINTWISE if has_pointwise else _TIMM_WITHOUT_POINTWISE
        names |= {f"blocks.{index}.{ours}": f"blocks.{stage}.{place}.{timm}" for ours, timm in parts.items()}
        total, width, place = total * depthwise.stride[0], last.out_channels, place + 1
    top = f"blocks.{len(body) + 1}"
    names |= {f"{top}.pw.0": f"blocks.{stage + 1}.0.conv", f"{top}.pw.1": f"blocks.{stage + 1}.0.bn1"}
    return names | {f"{top}.pwl": "conv_head", "classifier": "classifier"}


def _convolution(module: nn.Sequential, index: int) -> nn.Conv2d:
    convolution = module[index]
    assert isinstance(convolution, nn.Conv2d)
    return convolution
