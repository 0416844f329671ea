"""A hypervisor's data mover as a test client: it clones, zeroes, locks and reclaims with offloads, and without them where it must."""
