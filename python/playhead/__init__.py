"""Playhead: continuous data protection for block storage.

This package is the control plane. It decides what exists (`catalogue`), brings it to life (`appliance`), and speaks to people and
programs (`api`, `cli`). Bytes of user data never pass through it: the data path is Rust, behind `playhead._native`.
"""
