"""Run a function over items, here or on many machines."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from geoseg.errors import OptionsError, ReadError
from geoseg.options import parse, read_table

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")

_LOOPBACK = ("127.", "localhost", "[::1]")
_WAITING_PER_WORKER = 2  # tasks that are with the scheduler at a time: enough to keep workers busy, however many items there are
_PAUSE_S = 2.0
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-ttl": "30 minutes",
    "distributed.worker.daemon": False,  # a reader thread must be able to outlive the task's own
}


class Cluster(BaseModel):
    """Where work is done.

    Attributes:
        kind: ``here``, one item after the other in this process; ``local``, in processes of this machine; ``address``, by the
            workers of a scheduler that runs already.
        workers: number of processes, for ``local``.
        threads: cores that each of them computes with; None for an equal share.
        address: ``tcp://HOST:PORT``, on loopback only, or ``tls://HOST:PORT``.
        tls_ca: certificate of the authority that signed the scheduler's and the workers'.
        tls_cert: our certificate, signed by it.
        tls_key: the key of our certificate.
        gpu: give a task to workers with a GPU only, one at a time (they were started with ``--resources GPU=1``).
        no_workers_timeout: seconds after which a task fails that no worker can take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["here", "local", "address"] = "here"
    workers: Annotated[int, Field(ge=1)] = 2
    threads: Annotated[int, Field(ge=1)] | None = None
    address: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    gpu: bool = False
    no_workers_timeout: Annotated[float, Field(gt=0)] = 600.0

    @classmethod
    def of(cls, words: str) -> Cluster:
        """Understand what a user says: ``here``, ``local``, ``local:4``, ``tcp://...``, ``tls://...``, or a YAML file.

        Raises:
            OptionsError: if it is none of these, or the file holds an unknown key.
        """
        kind, _, count = words.partition(":")
        if words.startswith(("tcp://", "tls://")):
            return cls(kind="address", address=words)._checked(words)
        if kind == "local" and (not count or (count.isdecimal() and int(count) > 0)):
            return cls(kind="local", workers=int(count) if count else os.cpu_count() or 1)
        if words == "here":
            return cls()
        if words.endswith((".yaml", ".yml")):
            return parse(cls, read_table(words), words)._checked(words)
        raise OptionsError(f"cluster {words!r}: expected here, local, local:N, tcp://HOST:PORT, tls://HOST:PORT or a YAML file")

    def _checked(self, words: str) -> Cluster:
        """Refuse what cannot be safe: whoever reaches a scheduler without TLS runs code on its workers."""
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

    A call that fails to read or write (``OSError``, ``ReadError``) is made again. Only what is sent to the workers needs to
    pickle: the function by its module and name, items and results as they are, so let them be small.

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


def _dispatched(
    client: Client, cluster: Cluster, function: Callable[[T], R], items: Iterable[T], retries: int
) -> Iterator[tuple[T, R | Exception]]:
    """Keep the workers busy with a few tasks each, and hand out what they answer."""
    from distributed import as_completed

    batch, numbers, waiting = uuid.uuid4().hex[:8], itertools.count(), iter(items)
    resources = {"GPU": 1} if cluster.gpu else None
    items_of: dict[str, T] = {}

    def submit() -> Future[Any] | None:
        for item in waiting:
            key = f"geoseg-{batch}-{next(numbers)}"
            items_of[key] = item
            return client.submit(_attempt, function, item, retries, key=key, pure=False, resources=resources)
        return None

    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    answers = as_completed([future for _ in range(_WAITING_PER_WORKER * workers) if (future := submit()) is not None])
    for future in answers:
        error = future.exception()
        yield items_of.pop(future.key), future.result() if error is None else error
        future.release()
        if (following := submit()) is not None:
            answers.add(following)


@contextmanager
def _client(cluster: Cluster) -> Iterator[Client]:
    """Connect to a scheduler, or start one with its workers on loopback."""
    import dask
    from distributed import Client, LocalCluster

    settings: dict[str, Any] = {**_SETTINGS, "distributed.scheduler.no-workers-timeout": f"{cluster.no_workers_timeout}s"}
    with dask.config.set(settings):
        if cluster.kind == "address":
            with _connected(cluster) as client:
                yield client
            return
        threads = cluster.threads or max(1, (os.cpu_count() or 1) // cluster.workers)
        with (
            LocalCluster(
                n_workers=cluster.workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                resources={"GPU": 1} if cluster.gpu else None,
                env={"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "5000")},
            ) as machines,
            Client(machines) as client,
        ):
            yield client


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
