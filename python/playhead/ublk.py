"""Block devices of this host (`/dev/ublkbN`): which volumes have one, and what becomes of it.

A device outlives the service. Whatever ends the service, or takes the volume from it for a while, leaves the device to those who have it
mounted: what they ask of it waits, and is answered when the volume is served again. So a device is *let go* of whenever a disk is withdrawn,
and *removed* only on purpose, and not while it is mounted. The number in its name is the volume's for good; the catalogue has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from playhead import log
from playhead._native import NativeError, UblkServer
from playhead.errors import PlayheadError, conflict
from playhead.problem import from_native
from playhead.resources import Ublk

if TYPE_CHECKING:
    from playhead._native import BlockDeviceDict, IscsiServer, Lun
    from playhead.policy import NativeRule

LET_GO_PATIENCE_S = 5.0
"""How long withdrawing a disk waits for I/O under way before it goes on without."""

_log = log.get("ublk")


def device_path(number: int) -> str:
    """Where hosts find it."""
    return f"/dev/ublkb{number}"


class BlockDevices:
    """Those of this appliance, by the path of their volume."""

    def __init__(self) -> None:
        self._native = UblkServer()
        self._reasons: dict[str, str] = {}

    def heed_reservations(self, iscsi: IscsiServer) -> None:
        self._native.heed_reservations(iscsi)

    def set_policy(self, rules: list[NativeRule]) -> None:
        self._native.set_policy(rules)

    def serve(self, path: str, number: int, disk: Lun, hosts: list[str] | None) -> None:
        """Makes the device, or takes up what an earlier service left. `hosts`: those that alone may see the disk, if it is not for everybody.

        Raises PlayheadError: `not-supported` if the kernel has no ublk, `conflict` if the device is another program's.
        """
        try:
            if hosts is not None:
                raise conflict(
                    f"{path} is for {'mapped hosts' if hosts else 'nobody'} alone, and this host has no initiator name to be mapped by",
                    "unmap it from hosts, and have unmapped_volumes = visible",
                )
            try:
                self._native.serve(path, number, disk)
            except NativeError as error:
                raise from_native(error) from error
        except PlayheadError as error:
            self._reasons[path] = str(error)
            raise
        self._reasons.pop(path, None)

    def serve_or_say(self, path: str, number: int, disk: Lun, hosts: list[str] | None) -> None:
        """As `serve`. What is in the way is said by `resource`, and keeps nothing else from being served."""
        try:
            self.serve(path, number, disk, hosts)
        except PlayheadError as error:
            _log.error("block device is not served", volume=path, device=device_path(number), reason=str(error))

    def let_go(self, path: str) -> None:
        """Serves it no longer for the time being."""
        self._reasons.pop(path, None)
        try:
            self._native.let_go(path, LET_GO_PATIENCE_S)
        except NativeError as error:
            _log.warning("block device was let go of with I/O under way", volume=path, detail=error.message)

    def remove(self, path: str, number: int, uuid: str) -> None:
        """Takes the device away, served or not. Raises `busy`, with nothing done, while it is mounted."""
        try:
            self._native.remove(path, number, uuid)
        except NativeError as error:
            raise from_native(error) from error
        self._reasons.pop(path, None)

    def found(self) -> list[BlockDeviceDict]:
        """What is served now."""
        return self._native.devices()

    def resource(self, path: str, number: int) -> Ublk:
        """How the device of a volume stands."""
        serving = next((device["serving"] for device in self.found() if device["name"] == path), None)
        reason = None if serving else self._reasons.get(path, "the volume is not in service")
        if serving is False:
            reason = (
                f"it was taken away by somebody else, or has failed (see the log); make it anew: `playhead volume set {path} --no-ublk`, "
                "then `--ublk`"
            )
        return Ublk(device=device_path(number), serving=bool(serving), reason=reason)

    def stop(self, patience_s: float) -> int:
        """Lets go of all. Returns how many had I/O under way still."""
        return self._native.stop(patience_s)
