"""Do two SAEs get the same key, once?"""

from __future__ import annotations

from tests.world import Demo


def test_master_and_slave_get_the_same_bytes(demo: Demo) -> None:
    fetched = demo.enc("sae-1", "sae-2", number=5)
    assert demo.dec("sae-2", "sae-1", list(fetched)) == fetched


def test_a_slave_gets_a_key_once(demo: Demo) -> None:
    (key_id,) = demo.enc("sae-1", "sae-2")
    demo.dec("sae-2", "sae-1", [key_id])
    again = demo.post("sae-2", "sae-1/dec_keys", {"key_IDs": [{"key_ID": key_id}]})
    assert again.status_code == 400
    assert again.json() == {"message": "one or more keys specified are not found on KME"}
