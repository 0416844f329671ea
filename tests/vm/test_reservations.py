"""Persistent reservations from a real initiator: who holds what survives the service's clean and unclean ends."""

from __future__ import annotations

from .initiator import session
from .machine import Machine
from .playhead import PlayheadAppliance

MIB = 1 << 20
RESERVATION_CONFLICT = 24
"""Exit code of sg3-utils."""


def test_reservations_survive_the_services_end(machine: Machine, playhead: PlayheadAppliance) -> None:
    one, other = 0xA11CE, 0xB0B
    disk = playhead.create_disk("offload-reserve", 64 * MIB)

    def held(device: str) -> str:
        # The first command after a restart or a preemption may meet a unit attention.
        return machine.check(f"sg_turs {device} || true; sg_persist --read-reservation {device}")

    def write(device: str) -> int:
        return machine.run(f"sg_turs {device}; sg_write_same --16 --lba=0 --num=1 --in=/dev/zero {device}").status

    with (
        session(machine, [disk]) as [mine],
        session(machine, [disk], initiator="iqn.2025-01.example.guest:rival") as [rival],
    ):
        machine.check(f"sg_persist --out --register --param-aptpl --param-sark={one:x} {mine}")
        machine.check(f"sg_persist --out --register --param-aptpl --param-sark={other:x} {rival}")
        machine.check(f"sg_persist --out --reserve --param-rk={one:x} --prout-type=1 {mine}")
        for crash in (False, True):
            playhead.restart(crash=crash)
            assert f"Key=0x{one:x}" in held(mine)
            assert write(rival) == RESERVATION_CONFLICT
            assert write(mine) == 0
            keys = machine.check(f"sg_persist --read-keys {rival}")
            assert f"0x{one:x}" in keys
            assert f"0x{other:x}" in keys

        machine.check(f"sg_persist --out --preempt --param-rk={other:x} --param-sark={one:x} --prout-type=1 {rival}")
        assert f"Key=0x{other:x}" in held(mine)
        assert write(mine) == RESERVATION_CONFLICT
        playhead.restart()
        assert f"Key=0x{other:x}" in held(rival)
        assert write(mine) == RESERVATION_CONFLICT
        assert write(rival) == 0
        machine.check(f"sg_persist --out --clear --param-rk={other:x} {rival}")
        assert write(mine) == 0
        # Nothing comes back that was cleared.
        playhead.restart()
        assert "no reservation held" in held(mine).lower()
        assert write(mine) == 0
        assert write(rival) == 0
