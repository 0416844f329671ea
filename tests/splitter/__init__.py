"""Volumes whose production lives elsewhere, through the real service."""
