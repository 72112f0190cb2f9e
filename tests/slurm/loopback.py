"""Start a SLURM of one node on loopback, without root's services and without accounting; stop it again by process id.

    python -m tests.slurm.loopback COMMAND...

runs a command in which ``sbatch``, ``squeue`` and ``scancel`` speak to that SLURM. Needs Debian's ``slurm-wlm`` and ``munge``.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("sbatch", "scancel", "scontrol", "sinfo", "slurmctld", "slurmd", "munged", "setpriv")
PLACES = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/sbin"))
PARTITION = "test"
CONFIG = """\
ClusterName=geoseg
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ctld}
SlurmdPort={d}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
MailProg=/bin/true
SlurmdParameters=config_overrides
KillWait=5
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000 State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


class SlurmError(RuntimeError):
    """It did not start; the message holds the ends of its logs."""


def missing() -> list[str]:
    """What is needed and not here: programs, and a name of this machine that stands for loopback, where SLURM then listens."""
    absent = [name for name in PROGRAMS if not _program(name)]
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    return absent if address.startswith("127.") else [*absent, "a host name that resolves to loopback"]


@contextmanager
def slurm(folder: Path, *, cores: int = 4, patience: float = 60.0) -> Iterator[dict[str, str]]:
    """A SLURM whose files all lie in a folder (with a short path: sockets); gives the environment in which one speaks to it.

    Args:
        folder: empty; only we may write there.
        cores: that the node says it has, however many there are.
        patience: seconds until its node has to be idle.

    Raises:
        SlurmError: if it does not start.
    """
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    text = CONFIG.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        user=pwd.getpwuid(os.getuid()).pw_name,
        ctld=_free_port(),
        d=_free_port(),
        cores=cores,
        partition=PARTITION,
    )
    (folder / "slurm.conf").write_text(text, encoding="ascii")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{name}={folder / 'munge' / name}" for name in ("pid-file", "log-file", "seed-file")]
    munged = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder / 'munge.socket'}", *munge, "--num-threads=2"]
    with ExitStack() as running:
        running.enter_context(_daemon(munged, folder, environment))
        _until(lambda: (folder / "munge.socket").exists(), patience, folder, "munged opens no socket")
        running.enter_context(_daemon(["slurmctld", "-D", "-c"], folder, environment))
        _until(lambda: _says(["scontrol", "ping"], "UP", environment), patience, folder, "slurmctld does not answer")
        running.enter_context(_daemon(["slurmd", "-D"], folder, environment))
        _until(lambda: _says(["sinfo", "-h", "-o", "%T"], "idle", environment), patience, folder, "the node does not get idle")
        try:
            yield environment
        finally:
            subprocess.run([_program("scancel") or "", "--user", str(os.getuid())], env=environment, check=False, timeout=20)
            _until(lambda: not _says(["squeue", "-h"], " ", environment), patience, folder, "jobs do not end")


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=PLACES)


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _says(command: list[str], word: str, environment: dict[str, str]) -> bool:
    """Whether a command's output holds a word."""
    line = [_program(command[0]) or command[0], *command[1:]]
    try:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return word in done.stdout


@contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a daemon in the foreground, in a session of its own; end it by its id. It ends with us, too, if we are killed."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        line = [_program("setpriv") or "setpriv", "--pdeathsig", "TERM", _program(command[0]) or command[0], *command[1:]]
        process = subprocess.Popen(line, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(holds: object, patience: float, folder: Path, complaint: str) -> None:
    end = time.monotonic() + patience
    while not holds():  # type: ignore[operator]
        if time.monotonic() > end:
            raise SlurmError(f"{complaint} within {patience:g} s\n{_logs(folder)}")
        time.sleep(0.2)


def _logs(folder: Path) -> str:
    """The ends of all logs."""
    paths = sorted([*folder.glob("*.out"), *folder.glob("*.log"), *folder.glob("munge/log-file")])
    return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]) for path in paths)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    with tempfile.TemporaryDirectory(prefix="slurm") as name, slurm(Path(name)) as surroundings:
        sys.exit(subprocess.run(sys.argv[1:], env=surroundings, check=False).returncode)
