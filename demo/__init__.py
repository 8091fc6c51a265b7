"""The demo: a real model from an HTTP origin, an S3 server or a Hub through the daemon into shared memory, used by four
workers at once."""
