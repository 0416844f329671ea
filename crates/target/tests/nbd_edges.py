"""What libnbd sees at the edges of the protocol. Run with the server's address and port, and the name of an empty 64 MiB export."""

import errno
import random
import sys
import time

import nbd

HOST, PORT, EXPORT = sys.argv[1:]
MIB = 1 << 20
SIZE = 64 * MIB


def connected(structured=True, export=EXPORT, context=True, strict=0):
    h = nbd.NBD()
    h.set_export_name(export)
    h.set_request_structured_replies(structured)
    if structured and context:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    # The library would refuse most of what is tried here before the server sees it.
    h.set_strict_mode(strict)
    h.connect_tcp(HOST, PORT)
    return h


def refused(code, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == code, (call, arguments, error.string, error.errnum)
    else:
        raise AssertionError(f"{call} {arguments} succeeded")


def negotiation():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_full_info(True)
    h.connect_tcp(HOST, PORT)
    names = []
    h.opt_list(lambda name, description: names.append((name, description)))
    assert (EXPORT, "first") in names and ("other", "second") in names, names
    contexts = []
    h.set_export_name(EXPORT)
    h.opt_list_meta_context(contexts.append)
    assert contexts == ["base:allocation"], contexts
    h.set_export_name("missing")
    refused(errno.ENOENT, h.opt_go)
    h.set_export_name("")
    refused(errno.ENOENT, h.opt_info)
    h.set_export_name(EXPORT)
    h.opt_info()
    assert h.get_size() == SIZE
    assert h.get_canonical_export_name() == EXPORT
    assert h.get_export_description() == "first"
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
    assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    h.opt_go()
    for able in "flush fua trim zero fast_zero df multi_conn cache".split():
        assert getattr(h, f"can_{able}")(), able
    assert not h.is_read_only()
    h.shutdown()
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_tcp(HOST, PORT)
    h.opt_abort()


def edges(structured):
    h = connected(structured)
    h.pwrite(b"\x11" * 4096, SIZE - 4096)
    assert h.pread(4096, SIZE - 4096) == b"\x11" * 4096
    refused(errno.EINVAL, h.pread, 512, SIZE)
    refused(errno.EINVAL, h.pread, 8192, SIZE - 4096)
    refused(errno.ENOSPC, h.pwrite, b"x" * 8192, SIZE - 4096)
    refused(errno.ENOSPC, h.zero, 8192, SIZE - 4096)
    refused(errno.EINVAL, h.trim, 8192, SIZE - 4096)
    refused(errno.EINVAL, h.cache, 8192, SIZE - 4096)
    for call in (h.trim, h.zero, h.cache):
        refused(errno.EINVAL, call, 512, 7)
        refused(errno.EINVAL, call, 100, 0)
    refused(errno.EINVAL, h.pwrite, b"x" * 100, 0)
    refused(errno.EINVAL, h.pwrite, b"x" * 512, 3)
    refused(errno.EINVAL, h.pread, 100, 0)
    assert h.pread(0, 512) == b""
    h.pwrite(b"", 512)
    h.trim(0, 0)
    h.zero(0, 0)
    h.cache(0, 0)
    refused(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
    h.flush()
    h.pwrite(b"\x22" * 512, 0, nbd.CMD_FLAG_FUA)
    h.trim(512, 0, nbd.CMD_FLAG_FUA)
    h.zero(512, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(512, 0) == bytes(512)
    if not structured:
        refused(errno.EINVAL, h.pread, 32 * MIB + 512, 0)
    h.shutdown()


def large():
    h = connected()
    data = random.Random(5).randbytes(32 * MIB)
    h.pwrite(data, 0)
    assert h.pread(32 * MIB, 0, nbd.CMD_FLAG_DF) == data
    assert h.pread(32 * MIB, 0) == data
    h.zero(SIZE, 0)
    assert h.pread(32 * MIB, 32 * MIB) == bytes(32 * MIB)


def chunks():
    """A structured read of a sparse area comes with holes; with DF it comes whole."""
    h = connected()
    h.zero(4 * MIB, 0)
    h.pwrite(b"\x33" * 65536, MIB)
    seen = []

    def chunk(data, offset, status, error):
        seen.append((offset, len(data), status))

    buf = h.pread_structured(2 * MIB, 0, chunk)
    assert buf == bytes(MIB) + b"\x33" * 65536 + bytes(MIB - 65536)
    hole, data = nbd.READ_HOLE, nbd.READ_DATA
    assert [(o, s) for o, _, s in seen] == [(0, hole), (MIB, data), (MIB + 65536, hole)], seen
    seen.clear()
    assert h.pread_structured(2 * MIB, 0, chunk, nbd.CMD_FLAG_DF) == buf
    assert seen == [(0, 2 * MIB, data)], seen


def status():
    h = connected()
    h.zero(SIZE, 0)
    h.zero(MIB, MIB, nbd.CMD_FLAG_NO_HOLE)
    h.pwrite(b"\x44" * 4096, 2 * MIB)
    found = []

    def extent(context, offset, entries, error):
        found.append((context, offset, entries))

    h.block_status(SIZE, 0, extent)
    expected = [MIB, 3, MIB, 2, 4096, 0, SIZE - 2 * MIB - 4096, 3]
    assert found == [("base:allocation", 0, expected)], found
    found.clear()
    h.block_status(SIZE - 512, 512, extent, nbd.CMD_FLAG_REQ_ONE)
    assert found == [("base:allocation", 512, [MIB - 512, 3])], found
    refused(errno.EINVAL, h.block_status, 0, 0, extent)
    refused(errno.EINVAL, h.block_status, 4096, SIZE, extent)
    plain = connected(context=False)
    refused(errno.EINVAL, plain.block_status, 4096, 0, extent)


def many_at_once():
    """64 requests under way on each of four connections; what is flushed on one is there on all."""
    handles = [connected() for _ in range(4)]
    blocks = {}
    dice = random.Random(7)
    waiting = []
    for i in range(64):
        for number, h in enumerate(handles):
            at = (i * 4 + number) * 8192
            blocks[at] = dice.randbytes(8192)
            waiting.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(blocks[at])), at)))
    finish(waiting)
    handles[0].flush()
    reads = []
    for at in blocks:
        h = handles[(at // 8192 + 1) % 4]
        buf = nbd.Buffer(8192)
        reads.append((at, buf, h, h.aio_pread(buf, at)))
    finish([(h, cookie) for _, _, h, cookie in reads])
    for at, buf, _, _ in reads:
        assert buf.to_bytearray() == blocks[at], at


def finish(waiting):
    deadline = time.monotonic() + 20
    for h, cookie in waiting:
        while not h.aio_command_completed(cookie):
            assert time.monotonic() < deadline
            h.poll(1000)


def read_only():
    h = connected(export="other")
    assert h.is_read_only() and not h.can_trim() and not h.can_zero()
    refused(errno.EPERM, h.pwrite, b"x" * 512, 0)
    refused(errno.EPERM, h.trim, 512, 0)
    refused(errno.EPERM, h.zero, 512, 0)
    h.flush()
    assert h.pread(512, 0) == bytes(512)


negotiation()
edges(True)
edges(False)
large()
chunks()
status()
many_at_once()
read_only()
