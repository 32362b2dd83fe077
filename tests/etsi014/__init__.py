"""ETSI GS QKD 014 V1.1.1 to the letter: over mutual TLS, against a running KME."""
