"""hsmkme: a Key Management Entity whose keys are kept by a PKCS#11 token."""

__version__ = "0.1.0"
