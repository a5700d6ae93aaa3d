"""What a plan costs: bytes and bit operations counted, latency measured side by side, or modelled."""
