"""A scheduler with TLS serves those who hold a certificate of its authority, and nobody else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import psutil
import pytest
from distributed.security import Security

from geoseg.cluster import Cluster, run
from geoseg.errors import OptionsError

OPENSSL = shutil.which("openssl")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")]


def thrice(number: int) -> int:
    return 3 * number


def certificates(folder: Path, name: str) -> dict[str, Path]:
    """An authority of our own, and a certificate signed by it."""
    folder.mkdir()
    ca, ca_key, cert, key, request = (folder / f"{stem}.pem" for stem in ("ca", "ca_key", "cert", "key", "request"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch")
    for line in (
        ("req", "-x509", *curve, "-days", "2", "-subj", f"/CN={name} authority", "-keyout", ca_key, "-out", ca),
        ("req", *curve, "-subj", f"/CN={name}", "-keyout", key, "-out", request),
        ("x509", "-req", "-days", "2", "-in", request, "-CA", ca, "-CAkey", ca_key, "-set_serial", "1", "-out", cert),
    ):
        subprocess.run([str(OPENSSL), *map(str, line)], check=True, capture_output=True)
    return {"tls_ca": ca, "tls_cert": cert, "tls_key": key}


def security(files: dict[str, Path]) -> Security:
    return Security(
        require_encryption=True,
        tls_ca_file=str(files["tls_ca"]),
        tls_client_cert=str(files["tls_cert"]),
        tls_client_key=str(files["tls_key"]),
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("tls") / "ours", "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("tls") / "foreign", "foreign")


@pytest.fixture(scope="module")
def served(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Address and processes of ``dask scheduler`` and one ``dask worker``, as a user starts them, on loopback."""
    folder = tmp_path_factory.mktemp("scheduler")
    facts = folder / "scheduler.json"
    common = ["--protocol", "tls", "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", facts]
    common += ["--tls-ca-file", ours["tls_ca"], "--tls-cert", ours["tls_cert"], "--tls-key", ours["tls_key"]]
    lines = [["scheduler", "--port", "0", *common], ["worker", "--nthreads", "1", *common]]
    started = []
    with (folder / "log.txt").open("w") as log:
        try:
            for role, *options in lines:
                line = [sys.executable, "-m", f"distributed.cli.dask_{role}", *map(str, options)]
                started.append(subprocess.Popen(line, stdout=log, stderr=log, cwd=Path(__file__).parents[1]))
                deadline = time.monotonic() + 60
                while not facts.exists() and time.monotonic() < deadline:
                    time.sleep(0.1)
            yield json.loads(facts.read_text())["address"], [psutil.Process(process.pid) for process in started]
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(30)


@pytest.fixture(scope="module")
def address(served: tuple[str, list[psutil.Process]]) -> str:
    return served[0]


def test_our_certificate_is_served(address: str, ours: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "tls.yaml"
    path.write_text("\n".join(["kind: address", f"address: {address}", *(f"{key}: {value}" for key, value in ours.items())]))
    assert dict(run(thrice, range(20), Cluster.of(str(path)))) == {number: 3 * number for number in range(20)}


def test_a_plain_client_is_refused(address: str) -> None:
    with pytest.raises(OSError, match=r"(?i)timed out|reset|closed"):
        distributed.Client(address.replace("tls", "tcp"), timeout="2s")
    with pytest.raises(OptionsError, match="no scheduler answers"):
        list(run(thrice, [1], Cluster.of(address.replace("tls", "tcp"))))


def test_a_certificate_of_a_foreign_authority_is_refused(address: str, foreign: dict[str, Path]) -> None:
    with pytest.raises(OSError, match=r"(?i)certificate"):
        distributed.Client(address, security=security(foreign), timeout="2s")
    with pytest.raises(OptionsError, match="no scheduler answers"):
        list(run(thrice, [1], Cluster(kind="address", address=address, **foreign)))


def test_a_foreign_certificate_is_refused_even_by_one_who_trusts_our_authority(
    address: str, ours: dict[str, Path], foreign: dict[str, Path]
) -> None:
    with pytest.raises(OSError, match=r"(?i)tim|alert|unknown|closed"):
        distributed.Client(address, security=security(foreign | {"tls_ca": ours["tls_ca"]}), timeout="2s")


def test_everything_listens_on_loopback(served: tuple[str, list[psutil.Process]], ours: dict[str, Path]) -> None:
    address, processes = served
    assert dict(run(thrice, [2], Cluster(kind="address", address=address, **ours))) == {2: 6}
    family = [member for process in processes for member in (process, *process.children(recursive=True))]
    heard = {link.laddr.ip for member in family for link in member.net_connections("inet") if link.status == psutil.CONN_LISTEN}
    assert heard == {"127.0.0.1"}
