"""The demo: a real model from an HTTP origin through the daemon into shared memory, used by four workers at once."""
