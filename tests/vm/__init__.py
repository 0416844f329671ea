"""The VM bench: a real Linux kernel as the client of Playhead's front ends. docs/testing-vm.md explains it."""
