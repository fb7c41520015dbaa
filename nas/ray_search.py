"""A search whose processes Ray Train starts, on this machine or on a cluster. The only place beside `predictor.parallel` that
knows Ray.

Every worker does what a process of `torchrun` does: it reads the data where it is, and the first one writes the run folder,
which all machines share. Where a worker is lost, Ray starts all of them again, and they go on from the last checkpoint.
"""

import csv
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from nas.loading import YAML_SUFFIXES
from nas.searching import prepare, search
from predictor.parallel import Cluster
from recipes.datasets import resolve_data_dir
from recipes.distributed import SharedError
from recipes.run_folder import METRICS, RunFolder
from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.serialisation import require, write_text_atomic
from supernets.result import SearchResult, read_result

POLL_SECONDS = 1.0
RAY = "ray"  # folder in the run folder, of Ray's own files
REFUSED = "refused.txt"  # in there: what was wrong with the input

OnEpoch = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes of a search, and where they run.

    Attributes:
        count: how many.
        cpus: cores of each.
        gpus: GPUs of each, of one alone also a part; with 0 the search runs on CPUs.
        address: of a Ray cluster; None: this machine alone.
        retries: how often all of them are started again after one was lost.
    """

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        require(self.count >= 1, f"workers must be at least 1, got {self.count}")
        require(self.cpus > 0, f"cpus of a worker must be > 0, got {self.cpus}")
        require(self.gpus >= 0, f"gpus of a worker must be >= 0, got {self.gpus}")
        several = self.count > 1 and 0 < self.gpus < 1
        require(not several, f"{self.count} workers cannot share GPUs: give each 0, 1 or more, not {self.gpus:g}")
        require(self.retries >= 0, f"retries must be >= 0, got {self.retries}")

    @property
    def device(self) -> str:
        """Where they compute."""
        return "cuda" if self.gpus else "cpu"


def ray_search(
    space: str | Path,
    data: str,
    *,
    workers: Workers,
    out: str | Path,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
    command: Sequence[str] = (),
    checkpoint_minutes: float = 10.0,
    threads: int | None = None,
    **arguments: Any,
) -> SearchResult:
    """`nas.search` by several workers of Ray.

    Args:
        space: name, YAML file or ``module:function``, which every worker can load.
        data: name of a data set, which every worker finds.
        workers: how many, and where.
        out: run folder, on a disk that all machines share.
        resume: continue the search in ``out``.
        on_epoch: called in this process with a row of metrics.csv as it appears.
        command: recorded in the run folder.
        checkpoint_minutes: between checkpoints at most.
        threads: CPU threads of each worker; default: as many as it has cores.
        **arguments: others of `nas.search`: ``flops``, ``params``, ``config``, ``classes``, ``data_dir`` and single settings.

    Raises:
        UserError: anything wrong with the input, a Ray that does not answer or has too little, or what a worker says.
        Stopped: workers were lost more often than ``retries``, or a SIGTERM came; the search goes on with ``resume``.
    """
    given = {"flops": None, "params": None, "config": None, "classes": None, "data_dir": None, **arguments}
    prepared = prepare(space, data, device=workers.device, **given)
    threads = max(1, int(workers.cpus)) if threads is None else threads
    folder = Path(out).absolute()  # all paths are absolute: workers have a working directory of their own
    data_dir = str(resolve_data_dir(given["data_dir"]).absolute())
    task = {
        **given, "space": _anywhere(space), "data": prepared.dataset.name, "data_dir": data_dir, "out": str(folder),
        "device": workers.device, "checkpoint_minutes": checkpoint_minutes, "threads": threads,
    }  # fmt: skip
    with Cluster(workers.address):
        _require_resources(workers)
        recorded = {**prepared.recorded, "threads": threads}
        with RunFolder(folder, recorded, seed=prepared.config.seed, command=command, resume=resume):
            pass  # what is wrong with it is said here; from now on the first worker has its lock
        with _following(folder / METRICS, on_epoch):
            _train(task, workers, folder)
    return read_result(folder)


def _anywhere(space: str | Path) -> str:
    """The same space from any working directory, if it is that of a file."""
    return str(Path(space).absolute()) if Path(space).suffix in YAML_SUFFIXES else str(space)


def _require_resources(workers: Workers) -> None:
    """Refuse more cores or GPUs than there are; Ray would wait for them."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        wanted, there = each * workers.count, resources.get(kind, 0.0)
        require(wanted <= there, f"{workers.count} workers ask for {wanted:g} {kind}s, Ray has {there:g}")


def _work(task: dict[str, Any]) -> None:
    """What a worker does, after Ray has set up the process group.

    Ray starts anew whatever raises, and would meet wrong input again: that is written down, and the worker ends well. Where it
    alone has met it, it raises all the same, since the others wait for it; started anew, all end.
    """
    given = dict(task)
    torch.set_num_threads(given.pop("threads"))
    refused = Path(given["out"]) / RAY / REFUSED
    if refused.exists():
        return
    try:
        search(given.pop("space"), given.pop("data"), resume=True, **given)
    except (UserError, torch.OutOfMemoryError) as error:
        said = str(error) if isinstance(error, UserError) else "out of memory; try a smaller --batch-size"
        with suppress(UserError):  # the disk may be full
            write_text_atomic(refused, said)
            if isinstance(error, SharedError) or not dist.is_initialized():
                return
        raise


def _train(task: dict[str, Any], workers: Workers, folder: Path) -> None:
    """Run the workers to the end.

    Raises:
        UserError: what a worker says.
        Stopped: workers were lost, or a SIGTERM came.
    """
    from ray import train
    from ray.exceptions import RayActorError
    from ray.train.torch import TorchConfig, TorchTrainer

    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told once, below
    scaling = train.ScalingConfig(
        num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=_resources(workers)
    )
    failures = train.FailureConfig(max_failures=workers.retries)
    refused = folder / RAY / REFUSED
    refused.unlink(missing_ok=True)
    for left in reversed(range(workers.retries + 1)):
        trainer = TorchTrainer(
            _work,
            train_loop_config=task,
            torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
            scaling_config=scaling,
            run_config=train.RunConfig(name=RAY, storage_path=str(folder), failure_config=failures),
        )
        try:
            trainer.fit()
        except SystemExit as error:  # Ray's own handler of SIGTERM
            raise Stopped("stopped by a SIGTERM") from error
        except train.ControllerError as error:
            # Ray starts anew whatever dies at work, but gives up when a worker dies while the others still start.
            if not left or not isinstance(error.controller_failure, RayActorError):
                raise Stopped(first_line(error.controller_failure)) from error
        except train.TrainingFailedError as error:
            _require_input(refused)
            failed = sorted(getattr(error, "worker_failures", {}).items())
            said = [failure for _, failure in failed if isinstance(failure, UserError)]
            if said:
                raise UserError(str(said[0])) from error
            reasons = [f"worker {rank}: {first_line(failure)}" for rank, failure in failed]
            raise Stopped("; ".join(reasons) or first_line(error)) from error
        else:
            _require_input(refused)
            return


def _require_input(refused: Path) -> None:
    """Say what a worker has written there, if one has."""
    if refused.exists():
        raise UserError(refused.read_text(encoding="utf-8"))


def _resources(workers: Workers) -> dict[str, float]:
    """Of a worker, by Ray's names."""
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


@contextmanager
def _following(metrics: Path, on_epoch: OnEpoch | None) -> Iterator[None]:
    """Tell every row of a run's metrics once, in a thread, while inside."""
    if on_epoch is None:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        told = len(_rows(metrics))
        while True:
            last = ended.wait(POLL_SECONDS)
            rows = _rows(metrics)
            for row in rows[told:]:
                on_epoch(row)
            told = max(told, len(rows))
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _rows(metrics: Path) -> list[dict[str, str]]:
    """Rows of the file so far; none before it is there."""
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            return [dict(row) for row in csv.DictReader(file) if None not in row.values()]
    except OSError:
        return []
