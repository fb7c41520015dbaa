"""Trees against the package `nbdt` 0.0.4, on the trees that it ships; and their share of a ResNet-18's forward pass.

Measured are, on the same random logits: soft inference (logits to class probabilities), hard inference (logits to one row
a sample, whose largest entry is the prediction), the soft loss as the package computes it (our form ``xent_on_probs``; forward
and backward pass to the logits), and reading and building a tree. Where the results differ, by how much stands beside.

CPU time of one thread. The two sides take turns in one process; a turn is as many calls as take about 20 ms, at least one, and
its result their mean. Ratios are within a round: the median, and the worst of all rounds. ``limit`` is what we promise.

Three lines of the package do not run under today's networkx and scikit-learn; their names are replaced in memory
(`load_nbdt`). It also looks up the WordNet name of every node that a sample passes; here that costs it nothing.

Share: soft and hard inference of 1,000 classes relative to torchvision's ResNet-18 at 224 pixels under `inference_mode`, in
that of two memory layouts which is the faster one for one image.

    OMP_NUM_THREADS=1 python -m benchmarks.tree_speed     (needs nbdt; without it, only the share is measured)
"""

import contextlib
import importlib
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.tables import parser, write_table
from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import random_hierarchy
from nas.trees.losses import TreeSupervision, Weight
from nas.trees.rules import HardRule, SoftRule

INSTALL = (
    "nbdt is missing: pip install --target DIR --no-deps nbdt pytorchcv nltk regex click joblib tqdm defusedxml,"
    " and PYTHONPATH=DIR:."
)
SHIPPED = (
    ("CIFAR10", "induced"), ("CIFAR10", "wordnet"), ("CIFAR100", "induced"), ("CIFAR100", "wordnet"),
    ("TinyImagenet200", "induced"), ("TinyImagenet200", "wordnet"), ("Imagenet1000", "induced-efficientnet_b7b"),
)  # fmt: skip
SOFT, LOSS, HARD, BUILD = "soft inference", "soft loss and gradient", "hard inference", "reading and building"
LIMITS = {SOFT: {10: 10, 100: 40, 1000: 100}, LOSS: {10: 7, 100: 30, 1000: 100}}  # times faster, by classes
HARD_INDUCED, HARD_WIDE, WIDE = 30, 19, 8  # times faster; a wide tree has nodes of so many children
SHARE_LIMITS = {1: 2.0, 128: 0.2}  # percent of the network, by batch
TURN_SECONDS, MOST_CALLS = 0.02, 50
SHARE_ROUNDS = 3  # of the network, at most

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """The package's modules, patched."""

    folder: Path
    analysis: Any
    custom: Any
    loss: Any


def load_nbdt() -> Peer | None:
    """The package; None where it, or something that it needs, is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints why a terminal has no width
            graph: Any = importlib.import_module("nbdt.graph")
            peer = Peer(
                Path(graph.__file__).parent,
                *(importlib.import_module(f"nbdt.{name}") for name in ("analysis", "data.custom", "loss")),
            )
            networkx: Any = importlib.import_module("networkx.readwrite.json_graph")
            cluster: Any = importlib.import_module("sklearn.cluster").AgglomerativeClustering
    except ImportError:
        return None
    # The three lines: read_graph and write_graph (networkx calls links edges), build_induced_graph (affinity is metric).
    graph.node_link_graph = partial(networkx.node_link_graph, edges="links")
    graph.node_link_data = partial(networkx.node_link_data, edges="links")
    graph.AgglomerativeClustering = lambda affinity, **options: cluster(metric=affinity, **options)
    peer.custom.wnid_to_synset, peer.analysis.wnid_to_name = graph.FakeSynset, str  # names for nothing
    return peer


def cpu_ms(call: Call, calls: int = 1) -> float:
    """CPU milliseconds of a call, the mean of some."""
    started = time.process_time()
    for _ in range(calls):
        call()
    return 1e3 * (time.process_time() - started) / calls


def turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each in every round, in turn."""
    repeats = {}
    for name, call in calls.items():
        once = min(cpu_ms(call), cpu_ms(call)) if cpu_ms(call) < 1e3 * TURN_SECONDS else 1e3 * TURN_SECONDS
        repeats[name] = min(MOST_CALLS, max(1, math.ceil(1e3 * TURN_SECONDS / max(once, 1e-3))))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(cpu_ms(call, repeats[name]))
    return found


def compare(ours: Call, theirs: Call, rounds: int) -> dict[str, float]:
    """Medians in milliseconds, and theirs / ours, the median and the least."""
    found = turns({"ours": ours, "theirs": theirs}, rounds)
    ratios = [b / a for a, b in zip(found["ours"], found["theirs"], strict=True)]
    return {
        "ours_ms": statistics.median(found["ours"]),
        "theirs_ms": statistics.median(found["theirs"]),
        "ratio_median": statistics.median(ratios),
        "ratio_worst": min(ratios),
    }


class OurTree:
    """The four measured things, as a user calls them."""

    def __init__(self, tree: Hierarchy) -> None:
        self.tree, self.soft_rule, self.hard_rule = tree, SoftRule(tree), HardRule(tree)
        self.supervision = TreeSupervision(tree, omega=Weight(1.0), beta=Weight(1.0), form="xent_on_probs")
        self.network = nn.Identity()

    @torch.inference_mode()
    def soft(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to probabilities `(B, K)`."""
        return self.soft_rule(logits).exp()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def hard(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to log-probabilities `(B, K)`."""
        return self.hard_rule(logits)  # type: ignore[no-any-return]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy plus that of the tree, of logits `(B, K)` and labels `(B,)`."""
        return self.supervision(self.network, logits, labels, 0.0)


class TheirTree:
    """The same by the package.

    Args:
        peer: the package.
        graph: its file of the tree.
        wnids: its file of the classes.
    """

    def __init__(self, peer: Peer, graph: Path, wnids: Path) -> None:
        dataset, files = wnids.stem, (str(graph), str(wnids))
        rules = peer.analysis.SoftEmbeddedDecisionRules(dataset, *files)
        with mock.patch.object(peer.custom.Node, "get_nodes", return_value=rules.nodes):  # not built three times
            self.hard_rules = peer.analysis.HardEmbeddedDecisionRules(dataset, *files)
            self.criterion = peer.loss.SoftTreeSupLoss(dataset, nn.CrossEntropyLoss(), *files)
        self.soft_rules = rules

    @torch.inference_mode()
    def soft(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to probabilities `(B, K)`."""
        return self.soft_rules.forward(logits)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def hard(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to one-hot rows `(B, K)`."""
        return self.hard_rules.forward(logits)  # type: ignore[no-any-return]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As `OurTree.loss`."""
        return self.criterion(logits, labels)  # type: ignore[no-any-return]


def loss_and_gradient(tree: OurTree | TheirTree, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss `()` and its gradient `(B, K)` with respect to the logits."""
    given = logits.clone().requires_grad_()
    loss = tree.loss(given, labels)
    torch.autograd.backward(loss)
    assert given.grad is not None
    return loss.detach(), given.grad


def differences(ours: OurTree, theirs: TheirTree, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """By what is measured: the largest difference of probabilities, of loss and gradient, number of other predictions."""
    (a, slope_a), (b, slope_b) = (loss_and_gradient(tree, logits, labels) for tree in (ours, theirs))
    return {
        SOFT: float((ours.soft(logits) - theirs.soft(logits)).abs().max()),
        LOSS: max(float((a - b).abs()), float((slope_a - slope_b).abs().max())),
        HARD: int((ours.hard(logits).argmax(1) != theirs.hard(logits).argmax(1)).sum()),
    }


def random_batch(classes: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits `(B, K)` and labels `(B,)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, classes, generator=generator), torch.randint(classes, (batch,), generator=generator)


def tree_files(peer: Peer, dataset: str, name: str) -> tuple[Path, Path]:
    """The package's files of a tree and of its classes."""
    return peer.folder / "hierarchies" / dataset / f"graph-{name}.json", peer.folder / "wnids" / f"{dataset}.txt"


def read_tree(graph: Path, wnids: Path) -> Hierarchy:
    """The package's tree, classes in the order of its file."""
    return Hierarchy.load(graph, ids=wnids.read_text().split())


def limit_of(what: str, name: str, tree: Hierarchy) -> int | None:
    """How many times faster we promise to be; None where nothing is promised."""
    if what != HARD:
        return LIMITS[what].get(len(tree.classes))
    if name.startswith("induced"):
        return HARD_INDUCED
    return HARD_WIDE if max(map(len, tree.children)) >= WIDE else None


def tree_rows(peer: Peer, dataset: str, name: str, batch: int, rounds: int, seed: int) -> list[dict[str, Any]]:
    """A line for each of the four things."""
    files = tree_files(peer, dataset, name)
    their_ms = cpu_ms(lambda: peer.analysis.SoftEmbeddedDecisionRules(dataset, *map(str, files)))
    our_ms = statistics.median(cpu_ms(lambda: SoftRule(read_tree(*files))) for _ in range(rounds))
    ours, theirs = OurTree(read_tree(*files)), TheirTree(peer, *files)
    logits, labels = random_batch(len(ours.tree.classes), batch, seed)
    apart = differences(ours, theirs, logits, labels)
    about = {
        "tree": f"{dataset} {name}", "classes": len(ours.tree.classes), "inner_nodes": len(ours.tree.children),
        "most_children": max(map(len, ours.tree.children)),
    }  # fmt: skip
    pairs: dict[str, tuple[Call, Call]] = {
        SOFT: (partial(ours.soft, logits), partial(theirs.soft, logits)),
        LOSS: (partial(loss_and_gradient, ours, logits, labels), partial(loss_and_gradient, theirs, logits, labels)),
        HARD: (partial(ours.hard, logits), partial(theirs.hard, logits)),
    }
    lines = []
    for what, (a, b) in pairs.items():
        limit, found = limit_of(what, name, ours.tree), compare(a, b, rounds)
        met = "" if limit is None else "yes" if found["ratio_median"] >= limit else "no"
        lines.append({**about, "what": what, **found, "limit": limit, "met": met, "largest_difference": apart[what]})
    lines.append({**about, "what": BUILD, "ours_ms": our_ms, "theirs_ms": their_ms, "ratio_median": their_ms / our_ms})
    return lines


def share_rows(
    tree: Hierarchy, network: nn.Module, side: int, batches: Sequence[int], rounds: int, seed: int
) -> list[dict[str, Any]]:
    """What inference by the tree takes in percent of the network, a line for each batch and rule."""
    ours, lines = OurTree(tree), []
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    network.eval()
    for number, batch in enumerate(batches):
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
        logits, _ = random_batch(len(tree.classes), batch, seed)
        found: dict[str, dict[str, list[float]]] = {}
        for name, layout in layouts.items():
            network.to(memory_format=layout)
            forward = torch.inference_mode()(partial(network, images.to(memory_format=layout)))
            calls = {"network": forward, SOFT: partial(ours.soft, logits), HARD: partial(ours.hard, logits)}
            found[name] = turns(calls, rounds)
        best = min(found, key=lambda name: statistics.median(found[name]["network"]))
        if number == 0:
            layouts = {best: layouts[best]}
        for what in (SOFT, HARD):
            percent = [100 * a / b for a, b in zip(found[best][what], found[best]["network"], strict=True)]
            limit = SHARE_LIMITS.get(batch) if what == SOFT else None
            lines.append({
                "batch": batch, "layout": best, "what": what, "rule_ms": statistics.median(found[best][what]),
                "network_ms": statistics.median(found[best]["network"]), "percent_median": statistics.median(percent),
                "percent_worst": max(percent), "limit": limit,
                "met": "" if limit is None else "yes" if statistics.median(percent) <= limit else "no",
            })  # fmt: skip
    return lines


def main() -> None:
    """Print and write both tables."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--batch", type=int, default=128, help="of the comparison with nbdt")
    options.add_argument(
        "--quick", action="store_true", help="two trees, three rounds, the network with one image only"
    )
    arguments = options.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("set OMP_NUM_THREADS=1: the table is for one thread")
    torch.set_num_threads(1)
    peer, rounds = load_nbdt(), 3 if arguments.quick else arguments.rounds
    scale = "tiny" if arguments.quick else "full"
    facts: dict[str, Any] = {"rounds": rounds, "scale": scale, "seed": arguments.seed, "threads": 1}
    if peer is None:
        print(INSTALL, file=sys.stderr)
    else:
        lines = []
        for dataset, name in SHIPPED[:3:2] if arguments.quick else SHIPPED:
            lines += tree_rows(peer, dataset, name, arguments.batch, rounds, arguments.seed)
        version = {"batch": arguments.batch, "nbdt": importlib.import_module("importlib.metadata").version("nbdt")}
        write_table([{**line, **version, **facts} for line in lines], arguments.out / "tree_speed.csv")
    if peer is None:
        tree, called = random_hierarchy([str(number) for number in range(1000)], arguments.seed), "random"
    else:
        tree, called = read_tree(*tree_files(peer, *SHIPPED[-1])), " ".join(SHIPPED[-1])
    resnet: nn.Module = importlib.import_module("torchvision.models").resnet18()
    batches = tuple(SHARE_LIMITS)[:1] if arguments.quick else tuple(SHARE_LIMITS)
    facts["rounds"] = min(rounds, SHARE_ROUNDS)
    shares = share_rows(tree, resnet, 224, batches, facts["rounds"], arguments.seed)
    write_table([{"tree": called, **line, **facts} for line in shares], arguments.out / "tree_share.csv")


if __name__ == "__main__":
    main()
