"""Keeper of the token: the only package that speaks PKCS#11.

``token.Token`` is what the service holds: read-only sessions, verbs on blocks. ``officer`` holds what
creates and destroys token objects; only ceremonies may import it.
"""

from hsmkme.hsm.profiles import Profile, TokenAddress, load_profile, read_profile
from hsmkme.hsm.token import Token

__all__ = ["Profile", "Token", "TokenAddress", "load_profile", "read_profile"]
