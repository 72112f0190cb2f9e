"""Run a function over items, here or on many machines."""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from geoseg.errors import ClusterError, OptionsError, OutputError, ReadError
from geoseg.options import nearest, parse, read_table

if TYPE_CHECKING:
    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Client, Future, SpecCluster
    from distributed.security import Security

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

_LOOPBACK = ("127.", "localhost", "[::1]")
_WAITING_PER_WORKER = 4  # tasks that are with the scheduler at a time: enough to keep workers busy, however many items there are
_PAUSE_S = 2.0
_ELSEWHERE = (OSError, ReadError, OutputError)  # what may go well on another machine
SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-ttl": "30 minutes",
    "distributed.worker.daemon": False,  # a reader thread must be able to outlive the task's own
    "distributed.worker.memory.pause": False,  # what a model needs does not shrink by waiting
    "distributed.worker.profile.enabled": False,  # these two take 3 % of a core each
    "distributed.admin.tick.interval": "1s",
}
_KEYS = {
    "here": "",
    "local": "workers threads gpu report no_workers_timeout",
    "cuda": "threads report no_workers_timeout",
    "slurm": "jobs cores memory walltime partition account gres directives skip_directives prologue interface shared_temp logs gpu "
    "report no_workers_timeout",
    "address": "address tls_ca tls_cert tls_key threads gpu report no_workers_timeout",
}
_LATEST, _STAGGER = 0.95, 0.02  # parts of a job's walltime: when its worker has left at the latest, and how far they spread around
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


class Cluster(BaseModel):
    """Where work is done.

    Attributes:
        kind: ``here``, one item after the other in this process; ``local``, in processes of this machine; ``cuda``, in one process
            for each of its GPUs; ``slurm``, in jobs that are submitted with ``sbatch`` and cancelled at the end; ``address``, by
            the workers of a scheduler that runs already.
        workers: number of processes, for ``local``.
        threads: cores that each of them computes with, for ``local``, ``cuda`` and ``address``; None for an equal share, and for
            ``address`` for what ``OMP_NUM_THREADS`` says there (Dask's own word is 1).
        jobs: number of jobs with one worker each, for ``slurm``, like all that follows up to ``logs``. A job that ends is replaced.
        cores: of each job.
        memory: of each job, such as ``16GiB``; a worker that fills 95 % of it is started anew.
        walltime: of each job, ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``. Longer than the longest scene: a worker leaves
            when 91 to 95 % are over, and what it was at begins again elsewhere.
        partition: or queue; None for the site's default.
        account: that pays.
        gres: such as ``gpu:a100:1``; ``gpu:1`` if None, with ``gpu``.
        directives: more of sbatch's, such as ``--qos=night``.
        skip_directives: leave out those that hold one of these words, such as ``--mem``.
        prologue: lines of shell before the worker starts, such as ``module load cuda``.
        interface: network interface of this machine on which the workers, which have one of that name, reach it, such as ``ib0``;
            None if all is on this machine. Both sides encrypt, with certificates that are made for the run.
        shared_temp: folder that all nodes see, for these certificates; None for the working folder.
        logs: folder of the jobs' logs, which all nodes see; None for the working folder.
        address: ``tcp://HOST:PORT``, on loopback only, or ``tls://HOST:PORT``.
        tls_ca: certificate of the authority that signed the scheduler's and the workers'.
        tls_cert: our certificate, signed by it.
        tls_key: the key of our certificate.
        gpu: give a task to workers with a GPU only, one at a time (they were started with ``--resources GPU=1``). So does ``cuda``.
        report: HTML page to write at the end, on what each worker did when (Dask's performance report; it needs bokeh, and whoever
            opens it the network).
        no_workers_timeout: seconds after which a task fails that no worker can take; for ``slurm`` more than a job ever waits, for
            ``address`` without effect: a scheduler that runs already has its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["here", "local", "cuda", "slurm", "address"] = "here"
    workers: Annotated[int, Field(ge=1)] = 2
    threads: Annotated[int, Field(ge=1)] | None = None
    jobs: Annotated[int, Field(ge=1)] = 2
    cores: Annotated[int, Field(ge=1)] = 4
    memory: str = "16GiB"
    walltime: str = "04:00:00"
    partition: str | None = None
    account: str | None = None
    gres: str | None = None
    directives: tuple[str, ...] = ()
    skip_directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    shared_temp: Path | None = None
    logs: Path | None = None
    address: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    gpu: bool = False
    report: Path | None = None
    no_workers_timeout: Annotated[float, Field(gt=0)] = 600.0

    @field_validator("walltime", mode="before")
    @classmethod
    def _timed(cls, words: object) -> object:
        """Refuse what is no time, and what YAML makes of one without quotes: a number of seconds."""
        if not isinstance(words, str) or not _seconds(words):
            raise ValueError(f'{words!r} is no time, expected such as "04:00:00" or "1-12:00:00", with the quotes')
        return words

    @field_validator("memory")
    @classmethod
    def _sized(cls, words: str) -> str:
        """Refuse what is no amount of memory."""
        if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[kKMGT]i?B", words):
            raise ValueError(f"{words!r} is no amount of memory, expected such as 16GiB")
        return words

    @classmethod
    def of(cls, words: str) -> Cluster:
        """Understand what a user says: ``here``, ``local``, ``local:4``, ``cuda``, ``tcp://...``, ``tls://...``, or a YAML file.

        Raises:
            OptionsError: if it is none of these, or the file holds a key that is unknown or not for its kind.
        """
        kind, _, count = words.partition(":")
        if words.startswith(("tcp://", "tls://")):
            return cls(kind="address", address=words)._checked(words)
        if kind == "local" and (not count or (count.isdecimal() and int(count) > 0)):
            return cls(kind="local", workers=int(count) if count else os.cpu_count() or 1)
        if words == "here":
            return cls()
        if words == "cuda":
            return cls(kind="cuda")
        if words.endswith((".yaml", ".yml")):
            return parse(cls, read_table(words), words)._checked(words)
        raise OptionsError(f"cluster {words!r}: expected here, local, local:N, cuda, tcp://HOST:PORT, tls://HOST:PORT or a YAML file")

    def _checked(self, words: str) -> Cluster:
        """Refuse keys of another kind, and what cannot be safe: whoever reaches a scheduler without TLS runs code on its workers."""
        keys = _KEYS[self.kind].split()
        if alien := sorted(self.model_fields_set - {"kind", *keys}):
            raise OptionsError(f"{words}: key {alien[0]!r} is not for kind {self.kind!r}; {nearest(alien[0], keys)}")
        if self.kind != "address":
            return self
        scheme, _, host = (self.address or "").partition("://")
        if scheme not in ("tcp", "tls") or not host:
            raise OptionsError(f"{words}: address {self.address!r} is none; expected tcp://HOST:PORT or tls://HOST:PORT")
        if scheme == "tcp" and not host.startswith(_LOOPBACK):
            raise OptionsError(
                f"{words}: {self.address} is not on this machine and not encrypted; start the scheduler with TLS, use tls://"
            )
        if scheme == "tls" and not (self.tls_ca and self.tls_cert and self.tls_key):
            raise OptionsError(f"{words}: tls:// needs tls_ca, tls_cert and tls_key; give them in a YAML file")
        return self


def run(
    function: Callable[[T], R], items: Iterable[T], cluster: Cluster | None = None, *, retries: int = 2
) -> Iterator[tuple[T, R | Exception]]:
    """Call a function for each item; whatever goes wrong with one stops no other.

    A call that fails to read or write (``OSError``, ``ReadError``) is made again, on a cluster in the end by another worker.
    Only what is sent to the workers needs to pickle: the function by its module and name, items and results as they are, so let
    them be small.

    Args:
        function: of a module that workers can import.
        items: as many as you like; they are taken as they are needed.
        cluster: where; None for here.
        retries: how often a call is made again.

    Yields:
        Each item with its result, or with what the function raised, as they finish. A task that has killed its worker three times
        gives ``distributed.KilledWorker``, one that no worker can take ``distributed.scheduler.NoValidWorkerError``.
    """
    if cluster is None or cluster.kind == "here":
        for item in items:
            yield item, _attempt(function, item, retries)
        return
    with _client(cluster) as client:
        yield from _dispatched(client, cluster, function, items, retries)


def _attempt(function: Callable[[T], R], item: T, retries: int) -> R | Exception:
    """Call a function; its failure is an answer, too, so that a scheduler need not judge it."""
    for left in range(retries, -1, -1):
        try:
            return function(item)
        except (OSError, ReadError) as error:
            if not left:
                return error
            time.sleep(_PAUSE_S / (1 + left))
        except Exception as error:  # noqa: BLE001 the caller gets it, beside the item
            return error
    raise AssertionError


def _answer(question: bytes, retries: int, threads: int | None) -> tuple[Any, str]:
    """What a worker sends back: its answer and its name. An answer that cannot travel is a failure, or it would be asked for for ever.

    A question is a function and an item, pickled: a scheduler looks into its tasks, and would load all that these need, too.
    """
    from distributed import get_worker

    function, item = pickle.loads(question)
    if torch := sys.modules.get("torch"):  # Dask's nanny tells MKL to use one thread, and torch listens to the least
        torch.set_num_threads(threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    answer = _attempt(function, item, retries)
    failed = isinstance(answer, Exception)
    if isinstance(answer, Exception):
        answer.__traceback__ = answer.__cause__ = answer.__context__ = None
    try:
        sent = pickle.dumps(answer)
        if failed:
            pickle.loads(sent)
    except Exception as error:  # noqa: BLE001 whatever a class does when it is pickled
        answer = ClusterError(f"{type(answer).__name__}: {answer}" if failed else f"the answer cannot be sent ({error})")
    return answer, get_worker().address


def _dispatched(
    client: Client, cluster: Cluster, function: Callable[[T], R], items: Iterable[T], retries: int
) -> Iterator[tuple[T, R | Exception]]:
    """Keep the workers busy with a few tasks each, and hand out what they answer.

    When a worker dies, all tasks it had are suspected; those that were suspected three times are tried again, one at a time.
    What a worker could not read or write is given to another one, once: its disk may be the only full one.
    """
    from distributed import as_completed, wait
    from distributed.scheduler import KilledWorker

    batch, numbers, waiting = uuid.uuid4().hex[:8], itertools.count(), iter(items)
    resources = {"GPU": 1} if cluster.gpu or cluster.kind == "cuda" else None
    threads = cluster.threads if cluster.kind == "address" else None
    crew = _Crew(client, cluster.jobs if cluster.kind == "slurm" else 1)
    items_of: dict[str, T] = {}
    suspects: list[T] = []
    moved: set[str] = set()

    def submit(chosen: list[T], workers: list[str] | None = None) -> list[Future[Any]]:
        if not chosen:
            return []
        keys = [f"geoseg-{batch}-{next(numbers)}" for _ in chosen]
        items_of.update(zip(keys, chosen, strict=True))
        if workers:
            moved.update(keys)
        asked: list[Future[Any]] = client.map(
            partial(_answer, retries=retries, threads=threads),
            [pickle.dumps((function, item)) for item in chosen],
            key=keys,
            pure=False,
            resources=resources,
            workers=workers,
        )
        return asked

    answers = as_completed(submit(list(itertools.islice(waiting, crew.window()))), with_results=True, raise_errors=False)
    for finished in answers.batches():
        answers.update(submit(list(itertools.islice(waiting, max(0, crew.window() - len(items_of) + len(finished))))))
        for future, result in finished:
            item = items_of.pop(future.key)
            answer, where = _judged(future, result)
            future.release()
            if isinstance(answer, KilledWorker):
                suspects.append(item)
            elif isinstance(answer, _ELSEWHERE) and future.key not in moved and (others := crew.without(where)):
                answers.update(submit([item], others))
            else:
                yield item, answer
    for item in suspects:
        (future,) = submit([item])
        wait(future)
        yield item, _judged(future, future.result() if future.status == "finished" else None)[0]


class _Crew:
    """The workers that there are, asked for now and then: some come late, some leave."""

    def __init__(self, client: Client, least: int) -> None:
        self._client, self._least, self._asked = client, least, -math.inf
        self._addresses: list[str] = []

    def window(self) -> int:
        """How many tasks may be with the scheduler."""
        return _WAITING_PER_WORKER * max(self._least, len(self._known()))

    def without(self, address: str) -> list[str]:
        """All workers but this one."""
        return [other for other in self._known() if other != address]

    def _known(self) -> list[str]:
        if time.monotonic() - self._asked > _PAUSE_S:
            self._addresses, self._asked = list(self._client.scheduler_info(n_workers=-1)["workers"]), time.monotonic()
        return self._addresses


def _judged(future: Future[Any], result: Any) -> tuple[Any, str]:
    """The answer of a finished task, and the worker that gave it, if one did.

    An answer that has come counts, whatever became of its task since: when a worker dies right after it, the scheduler takes it back.

    Raises:
        ClusterError: if the scheduler has gone.
    """
    match result:
        case (answer, str(where)):
            return answer, where
    if future.status == "error":
        return future.exception(), ""
    raise ClusterError("the scheduler has gone; run again: what is done is kept")


@contextmanager
def _client(cluster: Cluster) -> Iterator[Client]:
    """Connect to a scheduler, or start one with its workers on loopback."""
    import dask
    from distributed import Client

    settings: dict[str, Any] = {**SETTINGS, "distributed.scheduler.no-workers-timeout": f"{cluster.no_workers_timeout}s"}
    started: dict[str, Callable[[Cluster], AbstractContextManager[SpecCluster]]]
    started = {"local": _processes, "cuda": _gpu_processes, "slurm": _jobs}
    if cluster.report:
        settings |= {"distributed.worker.profile.enabled": True}
    with dask.config.set(settings), ExitStack() as stack:
        if cluster.kind == "address":
            client = stack.enter_context(_connected(cluster))
        else:
            client = stack.enter_context(Client(stack.enter_context(started[cluster.kind](cluster))))
            _log.info("dashboard: %s", client.dashboard_link)
        if cluster.report:
            stack.enter_context(_reported(cluster.report))
        yield client


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Write Dask's performance report of what happens meanwhile.

    Raises:
        OptionsError: if bokeh is missing, or there is no such folder.
    """
    from distributed import performance_report

    if not find_spec("bokeh"):
        raise OptionsError("a report is drawn with bokeh, which is not there; install geoseg[dashboard]")
    if not path.absolute().parent.is_dir():
        raise OptionsError(f"{path}: the folder of the report is not there; make it")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with performance_report(filename=str(draft), mode="cdn"):
            yield
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _threads(threads: int) -> dict[str, str]:
    """The environment of a worker that computes with so many cores."""
    cores = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    return cores | {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "5000")}


def _processes(cluster: Cluster) -> SpecCluster:
    """Workers on this machine."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=cluster.workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        resources={"GPU": 1} if cluster.gpu else None,
        env=_threads(cluster.threads or max(1, (os.cpu_count() or 1) // cluster.workers)),
    )


def _gpu_processes(cluster: Cluster) -> SpecCluster:
    """A worker for each GPU of this machine: it sees that one only, as the first.

    Raises:
        OptionsError: if there is none.
    """
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    gpus = _gpus()
    if not gpus:
        raise OptionsError("cluster cuda: this machine shows no GPU (CUDA_VISIBLE_DEVICES, nvidia-smi); use local")
    environment = _threads(cluster.threads or max(1, (os.cpu_count() or 1) // len(gpus)))
    options = {"host": "127.0.0.1", "nthreads": 1, "resources": {"GPU": 1}, "dashboard_address": None}
    options["memory_limit"] = MEMORY_LIMIT // len(gpus)  # Dask would count a share of the cores
    workers = {
        number: {"cls": Nanny, "options": options | {"env": environment | {"CUDA_VISIBLE_DEVICES": gpu}}} for number, gpu in enumerate(gpus)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=workers, scheduler=scheduler, name="geoseg")


def _gpus() -> list[str]:
    """Names of the GPUs that we may use, without a word to CUDA: a process that spoke to it would hold memory on one."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        try:
            query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
            visible = ",".join(subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split())
        except (OSError, subprocess.SubprocessError):
            return []
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in visible.split(","))))


@contextmanager
def _jobs(cluster: Cluster) -> Iterator[SpecCluster]:
    """A scheduler in this process, and workers in jobs; one that has ended is replaced, all are cancelled at the end.

    Raises:
        OptionsError: if a package or SLURM is missing, or it refuses such a job.
    """
    if not shutil.which("sbatch"):
        raise OptionsError("cluster slurm: there is no sbatch on the PATH; run geoseg where jobs can be submitted")
    with _slurm(cluster) as machines:
        tried = subprocess.run(["sbatch", "--test-only"], input=machines.job_script(), capture_output=True, text=True, check=False)
        if tried.returncode:
            raise OptionsError(f"cluster slurm: sbatch refuses the jobs ({' '.join(tried.stderr.split())}); mend the YAML file")
        machines.adapt(minimum_jobs=cluster.jobs, maximum_jobs=cluster.jobs)
        yield machines


@contextmanager
def _slurm(cluster: Cluster) -> Iterator[SLURMCluster]:
    """A scheduler that could submit jobs; its ``job_script()`` is what it would submit.

    Raises:
        OptionsError: if a package is missing, or a folder.
    """
    try:
        import cryptography  # noqa: F401 the certificates are made with it
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise OptionsError(f"cluster slurm: {error}; install geoseg[slurm]") from error
    shared, logs = ((folder or Path()).absolute() for folder in (cluster.shared_temp, cluster.logs))
    for folder in (shared, logs):
        if not folder.is_dir() or re.search(r"\s", str(folder)):
            raise OptionsError(f"cluster slurm: {folder} is no folder, or has a space in its name; set shared_temp and logs to others")
    gres = cluster.gres or ("gpu:1" if cluster.gpu else None)
    settings = {f"DASK_{key.upper().replace('.', '__')}": str(value) for key, value in SETTINGS.items()}
    environment = _threads(cluster.cores) | settings
    seconds = _seconds(cluster.walltime)
    lifetime = ("--lifetime", f"{seconds * (_LATEST - _STAGGER):.0f}s", "--lifetime-stagger", f"{seconds * _STAGGER:.0f}s")
    # without an interface all is on this machine, and a worker has to be told so: alone it would listen to everybody
    where = {"interface": cluster.interface} if cluster.interface else {"host": "127.0.0.1"}
    worker = [*lifetime, *(() if cluster.interface else ("--host", "127.0.0.1")), "--dashboard-address", "127.0.0.1:0"]
    with (
        TemporaryDirectory(prefix=".geoseg-", dir=shared) as keys,
        SLURMCluster(
            cores=1,  # of Dask: one task at a time
            job_cpu=cluster.cores,
            processes=1,
            memory=cluster.memory,
            walltime=cluster.walltime,
            queue=cluster.partition,
            account=cluster.account,
            job_name="geoseg",
            job_extra_directives=[*([f"--gres={gres}"] if gres else []), *cluster.directives],
            job_directives_skip=list(cluster.skip_directives),
            job_script_prologue=[*(f"export {name}={value}" for name, value in environment.items()), *cluster.prologue],
            worker_extra_args=[*worker, *(["--resources", "GPU=1"] if cluster.gpu else [])],
            log_directory=str(logs),
            security=_certificates(Path(keys)),
            protocol="tls://",
            interface=cluster.interface,
            scheduler_options={"dashboard_address": "127.0.0.1:0", **where},
        ) as machines,
    ):
        yield machines


def _certificates(folder: Path) -> Security:
    """Certificates for a run, in a folder that only we can read: whoever has them runs code on the workers."""
    from distributed.security import Security

    made = Security.temporary()
    files = {}
    for role in ("scheduler", "worker", "client"):
        for kind, text in made.get_tls_config_for_role(role).items():
            if kind in ("ca_file", "cert", "key"):
                path = folder / f"{role}-{kind}.pem"
                path.touch(mode=0o600)
                path.write_text(text, encoding="ascii")
                files["tls_ca_file" if kind == "ca_file" else f"tls_{role}_{kind}"] = str(path)
    return Security(require_encryption=True, **files)


def _seconds(walltime: str) -> int:
    """How long a walltime of SLURM's is; 0 if it is none."""
    if not (found := _WALLTIME.fullmatch(walltime)):
        return 0
    days, hours, minutes, seconds = (int(digits or 0) for digits in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _connected(cluster: Cluster) -> Client:
    """A client of a scheduler that runs already.

    Raises:
        OptionsError: if it does not answer.
    """
    from distributed import Client
    from distributed.security import Security

    files = {"tls_ca_file": cluster.tls_ca, "tls_client_cert": cluster.tls_cert, "tls_client_key": cluster.tls_key}
    secure = (cluster.address or "").startswith("tls://")
    try:
        security = Security(require_encryption=True, **{key: str(path) for key, path in files.items()}) if secure else None
        return Client(cluster.address, security=security, timeout="20s")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OptionsError(f"{cluster.address}: no scheduler answers ({reason}); start it, or mend the address") from error
