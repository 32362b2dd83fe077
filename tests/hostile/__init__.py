"""Hostile clients: bytes, JSON, headers, paths, TLS and closes that no honest client sends, at a running KME."""
