"""All of it at once: attackers, a witness, and what is measured of the service."""

from __future__ import annotations

import random
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from tests.appliance import Appliance, wait_until
from tests.stateful import breaking, logins
from tests.stateful.attacker import Attacker, Forbidden, Ground
from tests.stateful.witness import CHAP, INITIATOR, Witness

from playhead.lab import cdb
from playhead.lab.session import Session

MIB = 1 << 20
ATTACKERS = 4
LUN_BYTES = 64 * MIB
MEMORY_MAX_BYTES = 1536 * MIB
"""What unfinished writes may hold in all (1 GiB), and half as much again."""
THREADS_SPARE = 8
ROUNDS_PER_IMAGE = 1000
OFFLOADS = ("ats", "xcopy", "write-same", "unmap", "odx")
SCENARIOS = (
    breaking.commands, breaking.commands, breaking.commands, breaking.lengths, breaking.lengths, breaking.bursts, breaking.bursts,
    breaking.half_a_burst, breaking.aborts, breaking.aborts, breaking.numbers, breaking.digests, breaking.headers, breaking.texts,
    breaking.deaf, breaking.calm, breaking.calm, breaking.noise, breaking.reinstatement,
    logins.stages, logins.stages, logins.impostors, logins.trespass, logins.trespass, logins.crowds,
)  # fmt: skip


class Siege:
    """An appliance with a target to attack, two LUNs, and a witness' LUN on another target."""

    def __init__(self, appliance: Appliance, seed: str) -> None:
        self.appliance, self.seed = appliance, seed
        appliance.cli("group", "create", "attacked", "--limit", "2GiB")
        for name in ("a", "b"):
            appliance.cli("volume", "create", f"attacked/{name}", "--size", str(LUN_BYTES))
        appliance.cli("group", "create", "witness", "--limit", "2GiB")
        appliance.cli("volume", "create", "witness/w", "--size", str(LUN_BYTES))
        self._host("witness", INITIATOR, "witness/w")
        address, iqn = appliance.addresses["iscsi"], str(appliance.disk("attacked/a")["iqn"])
        with Session(address, iqn, initiator="iqn.2026-11.org.example:scout") as scout:
            naas = tuple(cdb.naa_of(scout.must(cdb.inquiry(0x83), read_bytes=1024, lun=lun)) for lun in (0, 1))
            scout.log_out()
        disk = appliance.disk("witness/w")
        self.witness = Witness(address, disk["iqn"], disk["lun"], LUN_BYTES // cdb.BLOCK_BYTES, seed)
        naa = cdb.naa_of(self.witness.session.must(cdb.inquiry(0x83), read_bytes=1024, lun=disk["lun"]))
        forbidden = Forbidden(INITIATOR, disk["iqn"], disk["lun"], naa)
        self.ground = Ground(address, iqn, (0, 1), naas, LUN_BYTES // cdb.BLOCK_BYTES, forbidden)
        self.attackers = [Attacker(self.ground, number, seed) for number in range(1, ATTACKERS + 1)]
        self.stop = threading.Event()
        self.failures: list[str] = []

    def _host(self, name: str, initiator: str, path: str) -> None:
        """A host with CHAP both ways, and a LUN that is mapped to it alone."""
        cli = self.appliance.cli
        cli("host", "create", name, "--initiator", initiator)
        chap = ["host", "chap", name, "--user", CHAP.name, "--mutual-user", str(CHAP.target_name)]
        for option, secret in (("--secret-file", CHAP.secret), ("--mutual-secret-file", str(CHAP.target_secret))):
            file = self.appliance.store.with_name(option)
            file.touch(0o600)
            file.write_text(secret)
            chap += [option, str(file)]
        cli(*chap)
        cli("host", "map", name, path)

    def run(self, seconds: float) -> None:
        """Attacks for that long. Afterwards `failures` is what went wrong; nothing, one hopes."""
        idle = self._threads()
        with ThreadPoolExecutor(ATTACKERS + 2) as pool:
            working = [pool.submit(self._attack, by) for by in self.attackers]
            working += [pool.submit(self._witness), pool.submit(self._operator)]
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.stop.wait(0.5):
                self._look()
            self.stop.set()
        for work in working:
            if error := work.exception():
                self.failures.append("".join(traceback.format_exception(error)))
        if not self.failures:
            self._aftermath(idle)

    def _witness(self) -> None:
        """The witness' rounds; now and then the moment is opened as an image, used for as long as the rounds go on, and compared."""
        try:
            while not self.stop.is_set():
                self.appliance.cli("image", "open", "witness/moment")
                model = bytes(self.witness.model)
                for _ in range(ROUNDS_PER_IMAGE):
                    self.witness.round()
                    if self.stop.is_set():
                        break
                disk = self.appliance.disk("witness/moment/w")
                with self.witness.log_in(disk["iqn"]) as session:
                    for lba in self.witness.some_places():
                        self.witness.compare(session, disk["lun"], lba, model)
                    session.log_out()
                self.appliance.cli("image", "close", "witness/moment")
        finally:
            self.stop.set()

    def _operator(self) -> None:
        """Policies for the attacked LUNs, changed all the time."""
        rng = random.Random(f"{self.seed}/operator")
        url = f"http://{self.appliance.addresses['api']}/api/v1/policy"
        try:
            while not self.stop.wait(0.3):
                lun = rng.choice(("attacked/a", "attacked/b"))
                body = {"lun": lun, "offloads": {rng.choice(OFFLOADS): rng.choice(("support", "support", "reject"))}}
                answer = httpx.patch(url, json=body, timeout=60)
                assert answer.is_success, answer.text
        finally:
            self.stop.set()

    def _attack(self, by: Attacker) -> None:
        try:
            while not self.stop.is_set():
                by.rng.choice(SCENARIOS)(by)
                by.count("scenarios")
        finally:
            # In the end this is so anyhow; after a failure it ends the others.
            self.stop.set()

    def _status(self, field: str) -> int:
        text = Path(f"/proc/{self.appliance.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")))

    def _threads(self) -> int:
        return self._status("Threads")

    def memory_bytes(self) -> int:
        """Memory of the service that is no file's."""
        return self._status("RssAnon") * 1024

    def _look(self) -> None:
        process = self.appliance.process
        if process is None or process.poll() is not None:
            self.failures.append("the service has ended")
        elif self.memory_bytes() > MEMORY_MAX_BYTES:
            self.failures.append(f"the service holds {self.memory_bytes() >> 20} MiB")
        if self.failures:
            self.stop.set()

    def _aftermath(self, idle_threads: int) -> None:
        """The dust settles: threads go, the witness' blocks are right, the journals are sound, and the LUNs serve."""
        wait_until(lambda: self._threads() <= idle_threads + THREADS_SPARE, "the sessions' threads are gone", 90)
        self.witness.check_all()
        self.witness.session.log_out()
        for group in ("attacked", "witness"):
            assert self.appliance.cli("journal", "verify", group)["problems"] == []
        for group in self.appliance.cli("status")["groups"]:
            assert group["state"] == "serving"
        with Session(self.ground.address, self.ground.iqn, initiator="iqn.2026-11.org.example:scout") as scout:
            for lun in self.ground.luns:
                breaking.restore(scout, lun)
                scout.ready(lun)

    def summary(self) -> str:
        """What happened, in a line."""
        totals: dict[str, int] = {}
        for by in self.attackers:
            for what, count in by.counts.items():
                totals[what] = totals.get(what, 0) + count
        told = ", ".join(f"{count} {what}" for what, count in sorted(totals.items()))
        return f"seed {self.seed}: {told}; {self.witness.rounds} rounds of the witness"
