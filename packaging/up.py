"""`make up`: an appliance that stays up, with a sample LUN, and the commands that attach to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

STORE = Path(__file__).parents[1] / ".work" / "up"
GROUP, VOLUME = "sample", "disk"


def playhead(api: str, *arguments: str) -> Any:
    """A command with `-o json`; None if it was refused."""
    command = [sys.executable, "-m", "playhead", "--api", api, *arguments, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def main() -> int:
    """Runs until it is told to stop; returns what the service exited with."""
    STORE.parent.mkdir(exist_ok=True)
    service = subprocess.Popen(
        [sys.executable, "-m", "playhead", "serve", "--store", str(STORE), *sys.argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.terminate()

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C reaches the service by itself: it is in the terminal's foreground group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert service.stdout is not None
    line = service.stdout.readline()
    if not line:
        return service.wait()
    ready = json.loads(line)
    api = ready["api"]
    if playhead(api, "group", "show", GROUP) is None:
        playhead(api, "group", "create", GROUP, "--window", "24h")
    volume = playhead(api, "volume", "show", f"{GROUP}/{VOLUME}") or playhead(
        api, "volume", "create", f"{GROUP}/{VOLUME}", "--size", "4G"
    )
    if volume is None:
        print("the sample volume could not be made; see the log above", file=sys.stderr)
        service.terminate()
        return service.wait() or 1
    print(INSTRUCTIONS.format(api=api, portal=ready["iscsi"], **volume, **nbd_parts(ready["nbd"])), flush=True)
    return service.wait()


def nbd_parts(address: str) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    return {"nbd_host": host, "nbd_port": port}


INSTRUCTIONS = """
Playhead is up. {path} is a LUN of {size_bytes} bytes; every write to it is kept. In another terminal:

  export PLAYHEAD_API={api}                        # then `uv run playhead status`, `uv run playhead --help`

Attach it, as root, over iSCSI (open-iscsi):
  iscsiadm -m discovery -t sendtargets -p {portal}
  iscsiadm -m node -T {iqn} -p {portal} --login    # a new /dev/sdX; --logout detaches it

or over NBD (nbd-client):
  nbd-client {nbd_host} {nbd_port} -N {path} /dev/nbd0      # nbd-client -d /dev/nbd0 detaches it

or without root, with QEMU's tools:
  qemu-img info {nbd_url}
  qemu-io -f raw -c 'write -P 1 0 1M' {iscsi_url}

Then go back in time:
  uv run playhead bookmark create {group}/before
  uv run playhead image open {group}/past --at before       # or --at -5m; says how to attach to it
  uv run playhead group rewind {group} --to before          # and `group undo {group}`

Ctrl-C stops it; the store stays in .work/up.
"""

if __name__ == "__main__":
    os.environ.pop("PLAYHEAD_API", None)
    sys.exit(main())
