"""A copy by token (SPC-4 6.18, SBC-4 5.15, 5.43), as sg_raw sends it: POPULATE TOKEN, RECEIVE ROD TOKEN INFORMATION, WRITE USING TOKEN.

ddpt has a mode for this, but its version 0.97 writes each range one byte early, so that numbers of blocks arrive multiplied by 256.
"""

from __future__ import annotations

from .machine import Machine

LIST_ID = 0x101
TOKEN_AT, TOKEN_BYTES = 38, 512
"""Where the token is in what RECEIVE ROD TOKEN INFORMATION gives."""


def copy_script(machine: Machine, source: str, sink: str, skip: int, seek: int, count: int) -> str:
    """A script that copies `count` blocks from block `skip` of one disk to block `seek` of another, in one go."""
    ask = _with_length(bytes(14) + _range(skip, count))
    machine.push(ask, "/tmp/populate")
    # The token stands between these two.
    write = _with_length(bytes(16) + bytes(TOKEN_BYTES) + bytes(6) + _range(seek, count))
    machine.push(write[:16], "/tmp/write-head")
    machine.push(write[16 + TOKEN_BYTES :], "/tmp/write-tail")
    return f"""
        sg_raw --send={len(ask)} --infile=/tmp/populate {source} {_cdb(0x83, 0x10, len(ask), 6)} 2>&1
        sg_raw --request=1024 --outfile=/tmp/information {source} {_cdb(0x84, 0x07, 1024, 2)} 2>&1
        dd if=/tmp/information of=/tmp/token bs=1 skip={TOKEN_AT} count={TOKEN_BYTES} status=none
        cat /tmp/write-head /tmp/token /tmp/write-tail >/tmp/write
        sg_raw --send={len(write)} --infile=/tmp/write {sink} {_cdb(0x83, 0x11, len(write), 6)} 2>&1
    """


def _range(first: int, count: int) -> bytes:
    """The length of the list of ranges, and one range (SBC-4 5.15.3)."""
    return (16).to_bytes(2, "big") + first.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4)


def _with_length(rest: bytes) -> bytes:
    """A parameter list whose first two bytes say how long the rest is. `rest` begins with those two, empty."""
    return (len(rest) - 2).to_bytes(2, "big") + rest[2:]


def _cdb(opcode: int, service: int, length: int, list_id_at: int) -> str:
    cdb = bytearray(16)
    cdb[0], cdb[1] = opcode, service
    cdb[list_id_at : list_id_at + 4] = LIST_ID.to_bytes(4, "big")
    cdb[10:14] = length.to_bytes(4, "big")
    return cdb.hex(" ")
