"""The network: addresses, listening, TLS to one key, connections, and JSON asked of another machine."""
