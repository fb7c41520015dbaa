"""``nas nars``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Data, DataDir, Device, Out, Seed

if TYPE_CHECKING:
    from predictor.trials import Trial


def nars_command(
    space: Annotated[
        str, typer.Option("--space", help="joint space: fbnetv3, fbnetv3-recipe, fbnetv3-cifar, digits-joint")
    ],
    data: Data,
    out: Out,
    flops: Annotated[str | None, typer.Option("--flops", help="range of the candidates: 2M:12M")] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="network of a recipe-only space: file, name, torchvision:NAME")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="side of the images for --network; default the network's")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="T")] = 5,
    candidates: Annotated[int, typer.Option("--candidates", help="m, trained in a round")] = 48,
    pool: Annotated[int, typer.Option("--pool", help="n, to choose from")] = 20_000,
    epochs: Annotated[int | None, typer.Option("--epochs", help="of a whole training; default the recipe's")] = None,
    images: Annotated[
        int | None, typer.Option("--images", help="training images for candidates; default all not held out")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option("--held-out", help="training images to compare candidates on; default a tenth")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="of the predictor: default or thesis")] = "default",
    cpus_per_trial: Annotated[float, typer.Option("--cpus-per-trial", help="cores of one training")] = 1.0,
    gpus_per_trial: Annotated[float, typer.Option("--gpus-per-trial", help="GPUs of one training, also parts")] = 0.0,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="cluster that trains, HOST:PORT; default this machine")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", help="further attempts at a training that failed")] = 1,
    data_dir: DataDir = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train candidates round by round and fit the accuracy predictor. Killed, the same command goes on where it was."""
    from nas.rounds import PREDICTOR, TABLE, nars
    from predictor.parallel import Resources
    from search_spaces.limits import parse_limits
    from search_spaces.serialisation import require

    limits = None if flops is None else parse_limits(flops)
    require(limits is None or len(limits) == 1, f"--flops of candidates must be one range, got {flops}")
    resources = Resources(
        cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial, address=ray_address, retries=retries
    )
    result = nars(
        space,
        data,
        out=out,
        flops=None if limits is None else limits[0],
        network=network,
        resolution=resolution,
        rounds=rounds,
        candidates=candidates,
        pool=pool,
        epochs=epochs,
        images=images,
        held_out=held_out,
        preset=preset,
        resources=resources,
        device=device,
        seed=seed,
        data_dir=data_dir,
        settled=_Told(rounds * candidates),
        command=sys.argv[1:],
    )
    done = [trial for trial in result.trials if trial.status == "done"]
    stop = "no early stop" if result.stop_epoch is None else f"early stop after epoch {result.stop_epoch}"
    typer.echo(f"{len(done)} of {len(result.trials)} candidates trained, {stop}")
    typer.echo(f"written to {out / TABLE} and {out / PREDICTOR}")


class _Told:
    """One line a candidate, with an estimate of the time left."""

    def __init__(self, total: int) -> None:
        import time

        self.total, self.told, self.started, self.clock = total, 0, time.monotonic(), time.monotonic

    def __call__(self, trial: "Trial") -> None:
        self.told += 1
        what = "failed"  # why was told as it happened
        if trial.status == "done":
            what = f"{trial.accuracy():.2f} % in {trial.seconds:.0f} CPU-s"
        left = (self.clock() - self.started) / self.told * (self.total - trial.id) / 60
        typer.echo(
            f"candidate {trial.id} of {self.total}, round {trial.round}: {what}; about {left:.0f} min left", err=True
        )
