"""Linux's own target (LIO) as another array: a LUN over a raw disk, in a machine of its own that can lose its power and come back.

Set up through configfs, which is all that targetcli does too. The backstore is `iblock` over an emulated NVMe disk, whose file is the host's:
what the array has acknowledged is in that file, and stays there when the machine is killed. Hosts reach it at a port of 127.0.0.1.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from .appliance import free_port
from .machine import Machine

TARGET = "iqn.2003-01.org.linux-iscsi.array:disk"
LUN = 0
MEMORY_MIB = 384

CONFIGURATION = "/sys/kernel/config/target"
PORTAL_GROUP = f"{CONFIGURATION}/iscsi/{TARGET}/tpgt_1"

# The serial number makes the names of page 83h: they must be the same after the next boot. emulate_tpu and emulate_tpws: as targetcli offers
# thin provisioning. demo_mode: any initiator may come, as itself. The receive buffer keeps the window of QEMU's user network open.
SET_UP = f"""
mkdir -p /etc/target
modprobe -a target_core_mod target_core_iblock iscsi_target_mod
mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
sysctl -qw net.ipv4.tcp_rmem='4096 8388608 16777216'
mkdir -p /var/target/pr /var/target/alua
mkdir -p {CONFIGURATION}/core/iblock_0/disk
cd {CONFIGURATION}/core/iblock_0/disk
echo -n udev_path=/dev/disk1 >control
echo -n 6c8f2d1e-0000-4000-8000-706c61796865 >wwn/vpd_unit_serial
echo 1 >enable
echo 1 >attrib/emulate_tpu
echo 1 >attrib/emulate_tpws
mkdir -p {PORTAL_GROUP}/lun/lun_{LUN}
ln -s $PWD {PORTAL_GROUP}/lun/lun_{LUN}/disk
mkdir {PORTAL_GROUP}/np/0.0.0.0:3260
cd {PORTAL_GROUP}/attrib
echo 0 >authentication
echo 1 >generate_node_acls
echo 1 >cache_dynamic_acls
echo 0 >demo_mode_write_protect
echo 1 >{PORTAL_GROUP}/enable
"""


class Lio:
    """Use it as a context manager. `file` is the LUN, byte for byte."""

    target = TARGET
    lun = LUN

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.file = folder / "array.img"
        with self.file.open("wb") as file:
            file.truncate(size_bytes)
        self.port = free_port()
        self._machine: Machine | None = None

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The LUN without Playhead."""
        return f"iscsi://{self.portal}/{TARGET}/{LUN}"

    @property
    def machine(self) -> Machine:
        """The machine it runs in."""
        assert self._machine is not None, "it is switched off"
        return self._machine

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def blank(self) -> None:
        """All of the LUN is unmapped, and zeros. Only while nobody uses it."""
        size_bytes = self.file.stat().st_size
        os.truncate(self.file, 0)
        os.truncate(self.file, size_bytes)

    def start(self) -> None:
        """Boots it and exports the LUN."""
        assert self._machine is None
        machine = Machine(memory_mib=MEMORY_MIB, disks=[self.file], forwarded={self.port: 3260})
        self._machine = machine.__enter__()
        self._machine.check(SET_UP)

    def kill(self) -> None:
        """A power cut: sessions break, what it has in flight is done or not."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def disable(self) -> None:
        """Ends all sessions and takes no new ones; the LUN stays."""
        self.machine.check(f"echo 0 >{PORTAL_GROUP}/enable")

    def enable(self) -> None:
        """Takes sessions again."""
        self.machine.check(f"echo 1 >{PORTAL_GROUP}/enable")
