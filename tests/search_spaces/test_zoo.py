"""Published networks: FLOPs and parameters to the last printed digit, by our formulas and by fvcore on the built module."""

from pathlib import Path

import pytest
import torch

from search_spaces.architecture import Block
from search_spaces.blocks import build_block
from search_spaces.cost import cost
from search_spaces.counting import fvcore_cost
from search_spaces.errors import UserError
from search_spaces.network import build
from search_spaces.scaling import low_resolution
from search_spaces.zoo import find, load, load_networks, names, published

# Measured on the authors' modules: FLOPs with pools, convolution and linear weights, all parameters, in millions.
MEASURED = {
    "fbnet_a": ("244.526360", "4.270288", "4.321232"),
    "fbnet_b": ("291.101640", "4.766672", "4.818216"),
    "fbnet_c": ("378.233440", "5.525424", "5.592784"),
    "fbnetv2_f1": ("56.410560", "5.999408", "6.024744"),
    "fbnetv2_f2": ("85.441392", "5.999408", "6.024744"),
    "fbnetv2_f3": ("121.824000", "6.899504", "6.924840"),
    "fbnetv2_f4": ("238.351984", "6.994824", "7.022880"),
    "fbnetv2_l1": ("326.023008", "8.496520", "8.538792"),
    "fbnetv2_l2": ("423.912768", "8.496520", "8.538792"),
    "fbnetv3_a": ("356.598280", "8.542224", "8.598480"),
    "fbnetv3_b": ("461.550136", "8.542224", "8.598480"),
    "fbnetv3_c": ("556.969904", "9.907136", "9.973816"),
    "fbnetv3_d": ("644.420352", "10.237552", "10.306296"),
    "fbnetv3_e": ("762.046336", "10.699464", "10.772896"),
    "fbnetv3_f": ("1181.644520", "13.803072", "13.896160"),
    "fbnetv3_g": ("2129.656384", "16.513648", "16.623920"),
    "dmasking_f1": ("56.274952", "5.992970", "6.029661"),
    "dmasking_f4": ("235.882786", "6.991688", "7.032827"),
    "dmasking_l3": ("753.163968", "9.394060", "9.464040"),
    "fbnet_ase": ("204.917792", "6.679456", "6.728334"),
    "fbnetv2_l3": ("626.312896", "11.325008", "11.384472"),
}
FILE = """
families:
  v9: {divisor: 8, threshold: 0.95, squeeze: mid, round_squeeze: true, block_bias: false, head_bias: false}
networks:
  one:
    family: v9
    input: 32
    lines:
      - [conv, k3, -, c16, s2, 1, se0, hs]
      - [mb, k5, e3, c24, s2, 2, se1, re, p1]
"""


def test_every_network_is_measured() -> None:
    assert sorted(names()) == sorted(MEASURED)


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_cost_to_the_last_digit_two_ways(name: str) -> None:
    architecture = load(name)
    exact = cost(architecture)
    assert tuple(f"{entry / 1e6:.6f}" for entry in exact) == MEASURED[name]
    assert fvcore_cost(build(architecture, 1000), in_channels=3, resolution=architecture.resolution) == exact


def test_published_figures_agree_with_the_measured_ones() -> None:
    for name, (flops, params, _) in MEASURED.items():
        figures = published(name)
        if figures is not None:
            assert figures.flops_m == pytest.approx(float(flops), abs=5e-6)
            assert figures.params_m == pytest.approx(float(params), abs=5e-6)


def test_names_are_forgiving_and_aliases_work() -> None:
    assert load("FBNetV3-B") == load("fbnetv3_b")
    assert load("FBNetV2_F5") == load("fbnetv2_l2")
    with pytest.raises(UserError, match=r"unknown network 'fbnetv3_z'; did you mean 'fbnetv3_"):
        load("fbnetv3_z")


def test_grouped_pointwise_convolutions_shuffle_after_the_first() -> None:
    """Loop reference of a grouped block: group, shuffle, depthwise, group."""
    from dataclasses import replace

    block = next(block for block in load("fbnet_a").blocks if block.groups == 2)
    block = replace(block, mid_channels=8, out_channels=6, groups=2, stride=1, kernel=3, pointwise=True)
    module = build_block(block, 4).double().eval()
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    expected = module.pw(x)
    shuffled = torch.empty_like(expected)
    for channel in range(8):  # channel g * 4 + i of two groups of four goes to i * 2 + g
        group, index = divmod(channel, 4)
        shuffled[:, index * 2 + group] = expected[:, channel]
    torch.testing.assert_close(module(x), module.pwl(module.dw(shuffled)))


def test_odd_paddings_shrink_the_map() -> None:
    """FBNetV3-A at 224: sides 112, 56, 28, 13, 6 because of two depthwise paddings smaller than half the kernel."""
    network = build(load("fbnetv3_a"), 10).eval()
    sides = []
    x = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        for block in network.blocks[:-1]:
            x = block(x)
            sides.append(x.shape[-1])
    assert list(dict.fromkeys(sides)) == [112, 56, 28, 13, 6]


def test_another_file_in_the_same_format(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(FILE)
    architecture = load_networks(path)["one"].architecture
    first, second = architecture.blocks[1:]
    assert (first.mid_channels, first.squeeze_channels, first.stride, first.padding) == (
        48,
        16,
        2,
        1,
    )  # R(int(12.0)) = 16
    assert (second.mid_channels, second.squeeze_channels, second.stride) == (72, 24, 1)  # int(18.0) = 18 rounds to 24
    assert fvcore_cost(build(architecture, 10), in_channels=3, resolution=32) == cost(architecture, num_classes=10)


FACTS = """
families:
  v3: {d: 8, t: 0.95, mb_conv_bias: false, se: "sq = R(int(0.25/e * mid)): about a quarter of the block's input"}
  own: {d: 4, t: 0.9, mb_conv_bias: true, pool_head_bias: false, se: "sq = int(0.25 * mid): a quarter"}
nets:
  One:
    family: v3
    input: 32
    published: {flops_m: 1.5, params_m: 0.5, top1: 70.0, top5: 90.0, eval_resize: default_rule}
    stages:
      - - [conv, k3, -, c16, s2, 1, se0, hs]
      - - [mb, k5, e3, c24, s2, 1, se1, hs, p1]
        - [mb, k3, e3, c24, s1, 2, se0, hs, dwg4]
  two:
    family: own
    input: 16
    published: null
    stages: [[[conv, k3, -, c8, s2, 1, se0, re]], [[mb, k3, e3, c8, s1, 1, se1, re]]]
  three: {family: v2, input: 16, stages: [[[conv, k3, -, c16, s2, 1, se0, re], [mb, k3, e4, c16, s1, 1, se1, re, g2, dwg8]]]}
"""


def test_facts_in_stages(tmp_path: Path) -> None:
    """The form in which the facts were first written down: nets, stages, families by d, t and a rule in words."""
    path = tmp_path / "facts.yaml"
    path.write_text(FACTS)
    networks = load_networks(path)
    one = networks["One"]
    assert one.published is not None and one.published.top1 == 70.0
    assert [block.squeeze_channels for block in one.architecture.blocks] == [0, 8, 0, 0]  # R(int(0.25 / 3 x 48)) = 8
    assert [block.group_width for block in one.architecture.blocks] == [1, 1, 4, 4]
    assert networks["two"].published is None
    two = networks["two"].architecture.blocks[1]
    assert (two.mid_channels, two.squeeze_channels, two.bias) == (24, 6, True)
    three = networks["three"].architecture.blocks[1]
    assert (three.squeeze_channels, three.groups, three.group_width) == (16, 2, 8), "a family of our own file"
    for entry in networks.values():
        architecture = entry.architecture
        counted = fvcore_cost(build(architecture, 10), in_channels=3, resolution=architecture.resolution)
        assert counted == cost(architecture, num_classes=10)
    assert find("one_low48", networks).architecture.resolution == 48


def test_group_width_is_of_the_kernel_convolution() -> None:
    """Channels of a group see each other and nobody else."""
    block = Block(kind="ir", out_channels=6, kernel=3, mid_channels=6, pointwise=False, group_width=3)
    module = build_block(block, 6).eval()
    x = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4] += 1.0
    differs = (module.dw(changed) != module.dw(x)).flatten(2).any(2)[0]
    assert differs.tolist() == [False] * 3 + [True] * 3
    for wrong, kind in ((4, "ir"), (0, "ir"), (2, "conv")):
        with pytest.raises(UserError, match="group_width"):
            Block(kind=kind, out_channels=6, mid_channels=6 if kind == "ir" else 0, group_width=wrong)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("k5", "5", "line 2: kernel must be k and a number"),
        ("e3", "x3", "line 2: expansion must be e and a number"),
        ("mb,", "mbx,", "line 2: type must be"),
        ("p1]", "q1]", "line 2: unknown extra 'q1'"),
        ("family: v9", "family: v8", "unknown family 'v8'"),
        (" 2, se1", " 0, se1", "line 2: repeats must be in 1..100"),
        ("input: 32", "input: big", "input must be a number of pixels"),
        ("divisor: 8, ", "", "'divisor' is missing"),
        ("networks:", "netz:", "expected the key networks"),
        ("[conv", "!!python/object/apply:os.getcwd [conv", "not valid YAML"),
    ],
)
def test_wrong_files_name_network_and_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_networks(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variants_for_small_images_have_names() -> None:
    assert load("FBNetV3-B_low32") == low_resolution(load("fbnetv3_b"), 32)
    assert load("fbnetv3_b_low48").resolution == 48
    assert published("fbnetv3_b_low32") is None
    with pytest.raises(UserError, match=r"unknown network 'fbnetv3_h_low32'.*did you mean 'fbnetv3_"):
        load("fbnetv3_h_low32")
    with pytest.raises(UserError, match=r"resolution must be in 1..4096, got 0"):
        load("fbnetv3_b_low0")
