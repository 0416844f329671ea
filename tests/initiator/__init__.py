"""An iSCSI initiator for tests: it can do everything right, and each thing wrong."""
