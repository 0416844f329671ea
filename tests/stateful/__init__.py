"""Sessions that look right and have something broken in them, many at once, against the live service."""
