"""The host's own switches, by the names ESXi gives them, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class HostSettings:
    """Advanced settings of one host; they hold for all its devices."""

    hardware_accelerated_move: bool = True
    """DataMover.HardwareAcceleratedMove: EXTENDED COPY."""
    hardware_accelerated_init: bool = True
    """DataMover.HardwareAcceleratedInit: WRITE SAME."""
    hardware_accelerated_locking: bool = True
    """VMFS3.HardwareAcceleratedLocking: COMPARE AND WRITE."""
    enable_block_delete: bool = True
    """VMFS3.EnableBlockDelete: UNMAP."""
    max_hw_transfer_kib: int = 4096
    """DataMover.MaxHWTransferSize: how much one EXTENDED COPY or WRITE SAME is asked to do."""
