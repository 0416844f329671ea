"""Benchmarks: Playhead against its peers and a loopback ceiling, in one run on one file system."""
