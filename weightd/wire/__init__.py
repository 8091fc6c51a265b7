"""The wire format: generated protobuf, conversions, the one error table."""
