"""``nas nbdt analyse entropy|node|superclasses|similar|paths MODEL``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import DataDir, Device, Resolution, Seed, Threads, require_file_place, set_threads

if TYPE_CHECKING:
    import pandas as pd

    from nas.trees.outputs import TreeOutputs

app = typer.Typer(
    no_args_is_help=True,
    help="What a tree's decisions tell: ambiguous labels, the meaning of nodes, typical images, the ways of classes.",
)

Model = Annotated[str, typer.Argument(help="run folder of nas train or nas demo, a model.pt, or torchvision:NAME")]
Node = Annotated[str, typer.Argument(help="number, name or class of a node, or root")]
Data = Annotated[str | None, typer.Option("--data", help="data set; default the one it was trained on")]
Unseen = Annotated[str | None, typer.Option("--unseen", help="data set of other classes to look at instead")]
UnseenNeeded = Annotated[str, typer.Option("--unseen", help="data set with classes that the network has never seen")]
Part = Annotated[str, typer.Option("--part", help="images to look at: test or train")]
Tree = Annotated[str | None, typer.Option("--tree", help="as nas nbdt takes; default the one it was trained with")]
Weights = Annotated[Path | None, typer.Option("--pretrained", help="weights of a network given by name")]
Out = Annotated[Path | None, typer.Option("--out", help="CSV file for the whole table")]
Top = Annotated[int, typer.Option("--top", help="lines to print")]
Synsets = Annotated[
    Path | None, typer.Option("--synsets", help="file of unseen classes' synsets, where their names do not tell")
]
WIDTH = 44  # characters of a name in print


@app.command("entropy")
def entropy_command(
    model: Model,
    data: Data = None,
    unseen: Unseen = None,
    part: Part = "test",
    tree: Tree = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    top: Top = 20,
    out: Out = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Images with ambiguous labels: the highest path entropy, largest minus smallest on the way (nats)."""
    from nas.trees.analyses import path_entropy

    found = _outputs(locals())
    frame = path_entropy(found.hierarchy, found.logits, found.labels, found.class_names)
    columns = [
        "image",
        "label",
        "predicted",
        "probability",
        "path_entropy",
        "node",
        "first",
        "first_probability",
        "second",
    ]
    _show(frame, columns, top, out)


@app.command("node")
def node_command(
    model: Model,
    node: Node,
    unseen: UnseenNeeded,
    means: Annotated[
        str | None, typer.Option("--means", help="nouns for the node's children: animal,vehicle; default their names")
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option("--expect", help="CLASS=CHILD for one unseen class; several times")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="accept above this share, 0 to 1; default that of guessing")
    ] = None,
    synsets: Synsets = None,
    data: Data = None,
    part: Part = "test",
    tree: Tree = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    out: Out = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Test what a node means: do images of unseen classes go to the child that the hypothesis says?"""
    from nas.trees.analyses import find_node
    from nas.trees.page import label
    from nas.trees.superclasses import node_hypothesis, posit_hypothesis

    found = _outputs(locals())
    tested = find_node(found.hierarchy, node)
    children = dict(_pair(text) for text in expect or ())
    expected = posit_hypothesis(
        found.hierarchy, tested, found.class_names, means=None if means is None else means.split(","),
        expect={name: find_node(found.hierarchy, child) for name, child in children.items()},
        synsets=_synsets(synsets, found),
    )  # fmt: skip
    frame = node_hypothesis(
        found.hierarchy, tested, found.logits, found.labels, found.class_names, expected, threshold=threshold
    )
    columns = ["level", "class", "means", "images", "accuracy", "low", "high", "accepted"]
    typer.echo(f"node {tested}, {_plain(label(found.hierarchy, tested))}: {len(expected)} unseen classes")
    _show(frame, columns, len(frame), out)
    tried, among = int(frame["children"].iloc[0]), len(found.hierarchy.children_of(tested))
    words = "accepted" if bool(frame["accepted"].iloc[-1]) else "not decided" if tried == 1 else "not accepted"
    typer.echo(f"the hypothesis is {words}" + (f"; only {tried} of {among} children tested" if tried < among else ""))


@app.command("superclasses")
def superclasses_command(
    model: Model,
    unseen: UnseenNeeded,
    node: Annotated[list[str] | None, typer.Option("--node", help="only this node; several times")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="run folder of another network of these classes to compare with")
    ] = None,
    synsets: Synsets = None,
    data: Data = None,
    part: Part = "test",
    tree: Tree = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    top: Top = 20,
    out: Out = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Zero-shot superclass accuracy (Table 5.6): nodes against the network, on images of unseen classes."""
    from nas.trees.analyses import find_node
    from nas.trees.outputs import tree_outputs
    from nas.trees.superclasses import superclass_accuracy

    found = _outputs(locals())
    other = baseline and tree_outputs(
        baseline, data, unseen=unseen, part=part, tree="flat", names=False, data_dir=data_dir, device=device
    )
    frame = superclass_accuracy(
        found.hierarchy, found.logits, found.labels, found.class_names, network_logits=other.logits if other else None,
        nodes=None if node is None else [find_node(found.hierarchy, one) for one in node],
        synsets=_synsets(synsets, found),
    )  # fmt: skip
    _show(frame, list(frame.columns), top, out)


@app.command("similar")
def similar_command(
    model: Model,
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", help="default all inner nodes")] = None,
    count: Annotated[int, typer.Option("--count", help="images of each node")] = 8,
    data: Data = None,
    unseen: Unseen = None,
    part: Part = "test",
    tree: Tree = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="PNG file of the images, a row a node")] = None,
    out: Out = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Maximum-similarity examples: the images most like each node, with their labels."""
    from nas.trees.analyses import find_node, max_similarity
    from nas.trees.pictures import contact_sheet

    require_file_place(sheet)
    found = _outputs(locals())
    frame = max_similarity(
        found.hierarchy, found.logits, found.labels, found.class_names, count=count,
        nodes=[find_node(found.hierarchy, one) for one in nodes] if nodes else None,
    )  # fmt: skip
    for (number, name), rows in frame.groupby(["node", "name"], sort=False):
        labels = rows["label"].value_counts(sort=True)
        counted = ", ".join(f"{_plain(one)} {count}" for one, count in labels.items())
        typer.echo(f"{number:>5}  {_plain(name)}: {counted}")
    if sheet is not None:
        sheet.write_bytes(
            contact_sheet(found.source, frame["image"].to_numpy(), int(frame["rank"].max()), found.resolution)
        )
        typer.echo(f"written to {sheet}")
    _write(frame, out)


@app.command("paths")
def paths_command(
    model: Model,
    classes: Annotated[list[str] | None, typer.Argument(metavar="[CLASS]...", help="default all")] = None,
    data: Data = None,
    unseen: Unseen = None,
    part: Part = "test",
    tree: Tree = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    top: Top = 40,
    out: Out = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """How often the images of each class go through each node, in percent."""
    from nas.trees.analyses import traversals
    from search_spaces.errors import closest
    from search_spaces.serialisation import require

    found = _outputs(locals())
    for name in classes or ():
        known = name in found.class_names
        require(known, f"no class {name!r} in the data{closest(name, found.class_names[:1000])}")
    frame = traversals(found.hierarchy, found.logits, found.labels, found.class_names)
    if classes:
        frame = frame[frame["label"].isin(classes)]
    _show(frame, ["label", "depth", "node", "name", "images", "share"], top, out)


def _outputs(given: dict[str, Any]) -> "TreeOutputs":
    """The network's logits for the images that a command's options name."""
    from nas.trees.outputs import tree_outputs

    require_file_place(given["out"])
    set_threads(given["threads"])
    names = ("data", "unseen", "part", "tree", "pretrained", "resolution", "data_dir", "seed", "device")
    return tree_outputs(given["model"], **{name: given[name] for name in names if name in given})


def _pair(text: str) -> tuple[str, str]:
    from search_spaces.serialisation import require

    name, sign, child = text.rpartition("=")
    require(bool(sign and name and child), f"--expect takes CLASS=CHILD, for example truck=12, got {text!r}")
    return name, child


def _synsets(path: Path | None, found: "TreeOutputs") -> dict[str, str | None] | None:
    from nas.trees.wordnet import read_synsets

    return None if path is None else read_synsets(path, found.class_names)


def _show(frame: "pd.DataFrame", columns: list[str], top: int, out: Path | None) -> None:
    """A table's first lines on the terminal, all of it in a file."""
    from search_spaces.serialisation import require

    require(top >= 0, f"--top must be >= 0, got {top}")
    shown = frame[columns].head(top).rename(columns=lambda name: name.replace("_", " "))
    for name in shown.select_dtypes(exclude=["number", "bool"]).columns:
        shown[name] = [_plain(one) for one in shown[name]]
    if top:
        typer.echo(shown.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if len(frame) > top:
        typer.echo(f"{top} of {len(frame)} lines{'' if out else '; all of them with --out FILE.csv'}")
    _write(frame, out)


def _write(frame: "pd.DataFrame", out: Path | None) -> None:
    from search_spaces.serialisation import write_text_atomic

    if out is not None:
        write_text_atomic(out, frame.to_csv(index=False))
        typer.echo(f"written to {out}")


def _plain(text: Any) -> str:
    """A name may come from anywhere: nothing in it moves the cursor."""
    from nas.reporting.svg import printable, shortened

    return shortened(printable(text), WIDTH)
