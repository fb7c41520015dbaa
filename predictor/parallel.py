"""Trainings side by side with Ray Tune, on this machine or on a cluster. The only place of the predictor that knows Ray."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.serialisation import require

Job = Mapping[str, Any]  # plain values; "id" tells jobs apart
Report = Callable[[Mapping[str, Any]], None]  # progress of a job: plain values
Work = Callable[[Job, Report], Mapping[str, Any]]  # what a job is; its result is plain values

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
RESULT, FAILURE = "result", "failure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one training gets, and where.

    Attributes:
        cpus_per_trial: cores.
        gpus_per_trial: GPUs, also a part of one.
        address: of a Ray cluster; None: this machine alone.
        retries: further attempts at a training that failed.
        concurrent: trainings at a time at most; None: as many as fit.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    address: str | None = None
    retries: int = 1
    concurrent: int | None = None

    def __post_init__(self) -> None:
        require(self.cpus_per_trial > 0, f"cpus_per_trial must be > 0, got {self.cpus_per_trial}")
        require(self.gpus_per_trial >= 0, f"gpus_per_trial must be >= 0, got {self.gpus_per_trial}")
        require(self.retries >= 0, f"retries must be >= 0, got {self.retries}")
        require(self.concurrent is None or self.concurrent >= 1, f"concurrent must be >= 1, got {self.concurrent}")


def run_jobs(
    jobs: Sequence[Job],
    work: Work,
    *,
    resources: Resources,
    folder: Path,
    done: Callable[[Job, Mapping[str, Any]], None],
    failed: Callable[[Job, str], None],
) -> None:
    """Do all jobs; each ends in exactly one call of `done` or `failed`, in this process, as soon as it is over.

    Where Ray ends all trainings at once, as it does when memory runs out, the rest is started again; where that comes to
    nothing, one by one, and the one that cannot be done alone has failed.

    Args:
        jobs: what to do.
        work: a function that workers can import, or one that can be pickled; it must be able to go on where it was stopped.
        resources: see there.
        folder: for Ray's own files; on a cluster a folder that all machines share.
        done: gets the job and what `work` returned.
        failed: gets the job and one line, after the last attempt.

    Raises:
        UserError: the address does not answer, or a job asks for more than there is.
        Stopped: a signal has ended Tune.
    """
    left = {job["id"]: job for job in jobs}
    running: dict[Any, Job] = {}

    def settled(tell: Callable[[Job, Any], None], job: Job, outcome: Any) -> None:
        left.pop(job["id"], None)
        running.pop(job["id"], None)
        tell(job, outcome)

    concurrent, stuck = resources.concurrent, 0
    while left:
        before = len(left)
        running.clear()
        told = partial(settled, done), partial(settled, failed), running
        try:
            _attempt(list(left.values()), work, replace(resources, concurrent=concurrent), folder, *told)
        except RuntimeError as error:
            if not _is_of_ray(error):
                raise
            stuck = stuck + 1 if len(left) == before else 0
            reason = first_line(error.__cause__ or error)
            logger.warning("Ray ended all trainings: %s; %d go on from their checkpoints", reason, len(left))
            if stuck and concurrent != 1:
                concurrent = 1
            elif stuck > resources.retries:  # one alone was running: it is the cause
                for job in list(running.values()):
                    settled(failed, job, f"Ray ended it: {reason}")
                concurrent, stuck = resources.concurrent, 0
        else:
            if left:  # Tune does so at a SIGUSR1
                raise Stopped(f"stopped with {len(left)} trainings to do")


def _is_of_ray(error: RuntimeError) -> bool:
    """Whether Ray itself gave up; Tune ends as a whole when a worker is killed for want of memory."""
    from ray.exceptions import RayError

    return isinstance(error, RayError) or isinstance(error.__cause__, RayError)


def _attempt(
    jobs: Sequence[Job],
    work: Work,
    resources: Resources,
    folder: Path,
    done: Callable[[Job, Mapping[str, Any]], None],
    failed: Callable[[Job, str], None],
    running: dict[Any, Job],
) -> None:
    """Do all jobs, as long as Ray lives; ``running`` holds those under way."""
    import ray

    with Cluster(resources.address):
        available = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for kind, wanted in (("CPU", resources.cpus_per_trial), ("GPU", resources.gpus_per_trial)):
            require(
                wanted <= available.get(kind, 0.0),
                f"a training asks for {wanted:g} {kind}s, Ray has {available.get(kind, 0.0):g}",
            )
        _tune(jobs, work, resources, folder, done, failed, running)


class Cluster:
    """Ray, started or joined on entering and left on leaving; a Ray that runs already is used as it is.

    Args:
        address: of a cluster; None: this machine alone.

    Raises:
        UserError: on entering, if the address does not answer.
    """

    def __init__(self, address: str | None) -> None:
        self.address, self.own = address, False
        self.handler = signal.getsignal(signal.SIGTERM)  # Ray sets one of its own and leaves it behind

    def __enter__(self) -> None:
        if self.address is not None:
            _use_token()
        import ray

        if ray.is_initialized():
            return
        if self.address is not None:
            _require_answer(self.address)
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints tables whatever its verbosity
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # else Ctrl-C ends Tune as if all were done
        options: dict[str, Any] = {}
        if self.address is None:  # workers find what this process finds: a clone, a user's own modules
            paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            options = {"include_dashboard": False, "runtime_env": {"env_vars": paths}}
        try:
            ray.init(
                address=self.address or "local", logging_level=logging.ERROR, log_to_driver=False,
                configure_logging=False, **options,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = self.address or "this machine"
            raise UserError(f"Ray does not answer at {where}: {first_line(error)}") from error
        self.own = True

    def __exit__(self, *_: object) -> None:
        import ray

        if self.own:
            ray.shutdown()
            if self.handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self.handler)


def _use_token() -> None:
    """Show a cluster the token that Ray keeps here: given an address, Ray 2.60 does so only where it is told to.

    Ray reads this when it is imported; a cluster without tokens does not mind.
    """
    kept = Path.home() / ".ray" / "auth_token"
    if kept.is_file() or os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _require_answer(address: str) -> None:
    """Ask the port itself first: Ray tries for minutes.

    Raises:
        UserError: nobody listens there, or it is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    require(bool(host) and port.isdigit(), f"a Ray address is HOST:PORT, ray://HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"Ray does not answer at {address}: {first_line(error)}") from error


def _tune(
    jobs: Sequence[Job],
    work: Work,
    resources: Resources,
    folder: Path,
    done: Callable[[Job, Mapping[str, Any]], None],
    failed: Callable[[Job, str], None],
    running: dict[Any, Job],
) -> None:
    from ray import tune

    def trainable(config: dict[str, Any]) -> None:
        try:
            result = dict(work(config["job"], lambda progress: tune.report(dict(progress))))
        except UserError as error:  # another attempt would meet it again
            tune.report({FAILURE: str(error)})
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error
        else:
            tune.report({RESULT: result})

    broken: list[Exception] = []  # Tune would take what `done` and `failed` raise for a failure of the training

    def told(tell: Callable[[Job, Any], None], job: Job, outcome: Any) -> None:
        if not broken:
            try:
                tell(job, outcome)
            except Exception as error:
                broken.append(error)

    class Broken(tune.Stopper):
        """Ends all where a result cannot be handed over."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(broken)

    class Watch(tune.Callback):
        """Hands results over as they come."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            running[trial.config["job"]["id"]] = trial.config["job"]

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            job, last = trial.config["job"], trial.last_result
            if RESULT in last:
                told(done, job, last[RESULT])
            else:
                told(failed, job, str(last.get(FAILURE, "it ended without a result")))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told(failed, trial.config["job"], _last_line(trial))

    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are told by `failed`
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
        param_space={"job": tune.grid_search([dict(job) for job in jobs])},
        tune_config=tune.TuneConfig(max_concurrent_trials=resources.concurrent),
        run_config=tune.RunConfig(
            name="ray", storage_path=str(folder.absolute()), verbose=0, callbacks=[Watch()], stop=Broken(),
            failure_config=tune.FailureConfig(max_failures=resources.retries),
        ),
    )  # fmt: skip
    tuner.fit()
    if broken:
        raise broken[0]


def _last_line(trial: Any) -> str:
    """The exception of a trial that failed, without the traceback above it."""
    path = getattr(trial, "error_file", None)
    lines = Path(path).read_text(encoding="utf-8", errors="replace").strip().splitlines() if path else []
    return lines[-1].removeprefix("RuntimeError: ") if lines else "its process ended"
