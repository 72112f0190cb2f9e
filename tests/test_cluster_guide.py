"""What an operator types: the commands of docs/cluster.md and the containers of configs/kubernetes, really run on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import yaml

from geoseg.cluster import SETTINGS, Cluster
from geoseg.verbs.batch import status
from geoseg.verbs.predict import predict
from tests.conftest import make_scene

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
CLUSTER = ROOT / "configs" / "cluster" / "kubernetes.yaml"
MANIFEST = list(yaml.safe_load_all((ROOT / "configs" / "kubernetes" / "geoseg.yaml").read_text(encoding="utf-8")))
PODS = {each["metadata"]["name"]: each["spec"]["template"] for each in MANIFEST if each["kind"] in ("Deployment", "Job")}
BYTES = {"Gi": 2**30, "Mi": 2**20}

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


def block(words: str, language: str = "sh") -> str:
    """The block of the guide that has these words."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if words in text]
    return str(found)


def named(kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in MANIFEST if each["kind"] == kind}


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pod and container of each."""
    return [(name, pod["spec"], one) for name, pod in PODS.items() for one in pod["spec"]["containers"]]


def from_files(kind: str) -> dict[str, dict[str, str]]:
    """Secrets or ConfigMaps that the guide makes: keys and the files they come from."""
    made = {}
    for line in block("kubectl create secret").replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[:3] == ["kubectl", "create", kind]:
            files = [word.removeprefix("--from-file=").rpartition("=") for word in words if word.startswith("--from-file=")]
            made[next(word for word in words[3:] if word.startswith("geoseg-"))] = {key or Path(file).name: file for key, _, file in files}
    return made


def environment(container: dict[str, Any]) -> dict[str, str]:
    """What Kubernetes would put into the environment of a container."""
    maps = {each["metadata"]["name"]: each["data"] for each in MANIFEST if each["kind"] == "ConfigMap"}
    known: dict[str, str] = {}
    for source in container["envFrom"]:
        known |= maps[source["configMapRef"]["name"]]
    for entry in container.get("env", ()):
        amount = container["resources"]["limits"][entry["valueFrom"]["resourceFieldRef"]["resource"].removeprefix("limits.")]
        known[entry["name"]] = str(int(amount[:-2]) * BYTES[amount[-2:]]) if amount[-2:] in BYTES else amount
    return known


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def ours(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which Python finds this geoseg, and no more cores are taken than a test may."""
    return os.environ | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def replaced(text: str, replacements: dict[str, str]) -> str:
    """In one pass, the longest first."""
    pattern = "|".join(re.escape(old) for old in sorted(replacements, key=len, reverse=True))
    return re.sub(pattern, lambda found: replacements[found[0]], text) if pattern else text


def words_of(command: list[str]) -> list[str]:
    """The same programs, of this environment."""
    programs = {"dask": ["-m", "dask"], "geoseg": ["-m", "geoseg.cli"], "python": []}
    return [sys.executable, *programs[command[0]], *command[1:]]


@contextmanager
def running(line: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(line, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


def heard(*processes: subprocess.Popen[bytes]) -> set[str]:
    """Addresses on which processes and their children listen."""
    family = [member for each in processes for member in (psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True))]
    return {link.laddr.ip for member in family for link in member.net_connections("inet") if link.status == psutil.CONN_LISTEN}


def eventually(true: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def answers(port: str) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", int(port))) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates that the guide's commands make, and with one sound and one broken scene."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["sh", "-eu", "-c", block("openssl req")], cwd=folder, check=True, capture_output=True)
    flight = folder / "data" / "scenes" / "flight"
    flight.mkdir(parents=True)
    pixels = np.kron(np.random.default_rng(3).integers(1, 255, (3, 8, 9)), np.ones((20, 20))).astype(np.uint8)
    make_scene(flight / "scene.tif", pixels, nodata=0)
    (flight / "broken.tif").write_bytes(b"II*\0" + bytes(100))
    return folder


@pytest.fixture(scope="module")
def expected(site: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The class raster of a plain run."""
    out = tmp_path_factory.mktemp("expected")
    predict(site / "data" / "scenes" / "flight" / "scene.tif", out=out, vectors=False, quicklook=False)
    return (out / "scene_classes.tif").read_bytes()


def states(out: Path) -> dict[str, str]:
    return {Path(row["scene"]).stem: row["state"] for row in status(out)}


@needs_openssl
def test_certificates_are_for_their_owner_and_for_their_purpose(site: Path) -> None:
    folder = site / "certificates"
    assert {path.name for path in folder.iterdir()} >= {f"{name}{end}.pem" for name in ("ca", "cluster", "client") for end in ("", "-key")}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700

    def verified(name: str, purpose: str) -> bool:
        line = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", folder / "ca.pem", folder / f"{name}.pem"]
        return subprocess.run(line, check=False, capture_output=True).returncode == 0

    assert [verified("cluster", "sslserver"), verified("cluster", "sslclient"), verified("client", "sslclient")] == [True] * 3
    assert not verified("client", "sslserver"), "a client could pose as a scheduler"


@pytest.mark.cluster
@needs_openssl
def test_the_guide_as_it_is_typed(site: Path, expected: bytes) -> None:
    port = free_port()
    there = {"scheduler.example:8786": f"127.0.0.1:{port}", "scheduler.example": "127.0.0.1", "worker.example": "127.0.0.1"}
    there |= {"--port 8786": f"--port {port}", "127.0.0.1:8787": "127.0.0.1:0", "OMP_NUM_THREADS=4": "OMP_NUM_THREADS=1"}
    there |= {"/data/flight": f"{site}/data/scenes/flight", "/data/maps": f"{site}/maps", "/tmp": str(site), "/scratch": str(site)}
    programs = "".join(f'{name}() {{ exec {shlex.join(words_of([name]))} "$@"; }}\n' for name in ("dask", "geoseg"))

    def line(words: str) -> list[str]:
        return ["sh", "-eu", "-c", programs + replaced(block(words), there)]

    options: dict[str, Any] = {"cwd": site, "env": ours({})}
    (site / "site.yaml").write_text(replaced(block("kind: address", "yaml"), there), encoding="utf-8")
    with running(line("dask scheduler"), **options) as scheduler:
        eventually(lambda: answers(port))
        with running(line("dask worker"), **options) as worker:
            done = subprocess.run(line("geoseg batch /data"), **options, check=False, capture_output=True, text=True)
            assert heard(scheduler, worker) == {"127.0.0.1"}
    assert done.returncode == 3, done.stderr
    assert "broken.tif" in done.stderr
    assert (site / "maps" / "scene_classes.tif").read_bytes() == expected
    told = subprocess.run(line("batch status"), **options, check=False, capture_output=True, text=True)
    assert told.stdout == "2 scenes: 1 done, 1 failed.\n"


@pytest.mark.slow
@pytest.mark.cluster
@needs_openssl
def test_the_containers_as_kubernetes_would_run_them(site: Path, expected: bytes, tmp_path: Path) -> None:
    """With addresses and paths replaced; the batch ends with the status on which the Job is not repeated."""
    port, health = free_port(), free_port()
    shutil.copytree(site / "data" / "scenes", tmp_path / "data" / "scenes")
    configured = from_files("secret") | from_files("configmap")

    def mounted(name: str, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        """Fill the container's volumes; where they are."""
        places = {"geoseg-scheduler": "127.0.0.1", "8786": port, "8787": health}
        for mount in container["volumeMounts"]:
            (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
            folder = tmp_path / ("data" if "persistentVolumeClaim" in volume else f"{name}-{mount['name']}")
            folder.mkdir(exist_ok=True)
            places[mount["mountPath"]] = str(folder)
            source = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
            for key, file in configured.get(source, {}).items():
                origin = site / file if (site / file).is_file() else ROOT / file
                (folder / key).write_bytes(origin.read_bytes())
        for file in tmp_path.glob(f"{name}-configs/*.yaml"):
            file.write_text(replaced(file.read_text(encoding="utf-8"), places), encoding="utf-8")
        return places

    def started(name: str, *more: str) -> tuple[list[str], dict[str, Any]]:
        pod = PODS[name]["spec"]
        (container,) = pod["containers"]
        places, known = mounted(name, pod, container), environment(container)
        expanded = {f"$({key})": value for key, value in known.items()}
        line = [replaced(replaced(word, expanded), places) for word in (*container["command"], *container["args"])]
        known = {key: replaced(value, places) if value.startswith("/") else value for key, value in known.items()}
        return words_of([*line, *more]), {"env": ours(known), "cwd": replaced(container.get("workingDir", "/tmp"), places)}

    probe = PODS["geoseg-scheduler"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    probe = words_of([word.replace("8787", health) for word in probe])
    line, options = started("geoseg-scheduler", "--host", "127.0.0.1")
    with running(line, **options) as scheduler:
        eventually(lambda: subprocess.run(probe, check=False, capture_output=True).returncode == 0)
        line, options = started("geoseg-worker", "--host", "127.0.0.1")
        with running(line, **options) as worker:
            line, options = started("geoseg-batch")
            done = subprocess.run(line, **options, check=False, capture_output=True, text=True)
            assert heard(scheduler, worker) == {"127.0.0.1"}
    rules = next(each for each in MANIFEST if each["kind"] == "Job")["spec"]["podFailurePolicy"]["rules"]
    assert done.returncode in rules[0]["onExitCodes"]["values"], done.stderr
    assert states(tmp_path / "data" / "maps") == {"scene": "done", "broken": "failed"}
    assert (tmp_path / "data" / "maps" / "scene_classes.tif").read_bytes() == expected


def test_names_in_the_manifest_refer_to_each_other() -> None:
    (service,) = (each for each in MANIFEST if each["kind"] == "Service")
    (policy,) = (each for each in MANIFEST if each["kind"] == "NetworkPolicy")
    chosen = {name for name, pod in PODS.items() if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()}
    assert chosen == {"geoseg-scheduler"}
    for each in MANIFEST:
        if each["kind"] == "Deployment":
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]
    assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items() for pod in PODS.values())
    for name, pod, container in containers():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}, name
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume} <= named(
            "PersistentVolumeClaim"
        )
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= from_files("configmap").keys()
        assert {source["configMapRef"]["name"] for source in container["envFrom"]} <= named("ConfigMap")
        assert from_files("secret")[volumes["tls"]["secret"]["secretName"]].keys() == {"ca.pem", "cert.pem", "key.pem"}
    assert {pod["volumes"][0]["name"] for name, pod, _ in containers() if name != "geoseg-scheduler"} == {"data"}


def test_ports_and_paths_agree_with_the_cluster_file() -> None:
    cluster = Cluster.of(str(CLUSTER))
    (service,) = (each for each in MANIFEST if each["kind"] == "Service")
    (port,) = service["spec"]["ports"]
    assert cluster.address == f"tls://{service['metadata']['name']}:{port['port']}"
    spec = PODS["geoseg-scheduler"]["spec"]["containers"][0]
    assert {(each["name"], each["containerPort"]) for each in spec["ports"]} == {(port["targetPort"], port["port"])}
    assert f"--port={port['port']}" in spec["args"]
    assert cluster.address in PODS["geoseg-worker"]["spec"]["containers"][0]["command"]
    batch = PODS["geoseg-batch"]["spec"]["containers"][0]
    (words,) = (word for word in batch["args"] if word.startswith("--cluster="))
    assert Path(words.partition("=")[2]).name in from_files("configmap")["geoseg-configs"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in batch["volumeMounts"]}
    assert Path(words.partition("=")[2]).parent == mounts["configs"]
    keys = from_files("secret")["geoseg-client"]
    assert [cluster.tls_ca, cluster.tls_cert, cluster.tls_key] == [mounts["tls"] / key for key in keys]


def test_everything_is_encrypted_and_nobody_is_root() -> None:
    for name, pod, container in containers():
        assert dask.config.get("distributed.comm.require-encryption", config=dask.config.collect([], environment(container)))
        if container["command"][0] == "dask":
            files = {word.partition("=")[0]: word.partition("=")[2] for word in container["args"] if word.startswith("--tls-")}
            (place,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls")
            assert files == {f"--tls-{key}": f"{place}/{file}.pem" for key, file in (("ca-file", "ca"), ("cert", "cert"), ("key", "key"))}
            assert any(word.startswith("--dashboard-address=127.0.0.1:") for word in container["args"]), name
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] != 0
        assert not pod["automountServiceAccountToken"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert "--protocol=tls" in PODS["geoseg-scheduler"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("where", ["guide", "manifest"])
def test_a_scheduler_that_runs_already_is_told_what_geoseg_tells_its_own(where: str) -> None:
    if where == "guide":
        exports = re.findall(r'export (DASK_\w+)="?([^"\n]*)"?\n', block("dask scheduler") + block("dask worker"))
        known = dask.config.collect([], dict(exports))
    else:
        known = dask.config.collect([], environment(PODS["geoseg-worker"]["spec"]["containers"][0]))
    assert {key: dask.config.get(key, config=known) for key in SETTINGS} == SETTINGS
    assert dask.config.get("distributed.comm.require-encryption", config=known) is True
    assert dask.config.get("distributed.scheduler.no-workers-timeout", config=known)
