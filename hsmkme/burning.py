"""What is done with keys that do not open: they are void, and a block that is to blame is kept apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hsmkme.errors import HsmkmeError, RecordFault, StoreError
from hsmkme.model import BlockName, Entry, SealedKey
from hsmkme.store import Store

log = logging.getLogger(__name__)


def quarantine(store: Store, block: BlockName | RecordFault, actor: str) -> None:
    """Freeze a block that does not open in a token that works. Durable writes: one commit with state and alarm."""
    log.error("ALARM block %s of link %s does not open: quarantined", block.block_id, block.link_id)
    try:
        store.blocks.freeze(BlockName(block.link_id, block.block_id), Entry("alarm.block-tampered", actor))
    except StoreError:  # the row breaks rules of its table too
        store.examining.examine(actor)


def burn(store: Store, keys: Sequence[SealedKey], error: HsmkmeError) -> None:
    """Void keys that were claimed and cannot be opened. Durable writes: alarm, if a block is to blame; then one commit
    with key rows, erased segments and audit row."""
    if isinstance(error, RecordFault):
        quarantine(store, error, "kme")
    try:
        store.keys.void([key.key_id for key in keys], Entry("key.void", "kme", {"reason": type(error).__name__}))
    except StoreError:
        log.exception("claimed keys could not be voided; they expire uncollected")
