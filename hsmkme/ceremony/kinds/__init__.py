"""The kinds of steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hsmkme.ceremony.kinds.backing import Backup, Restore
from hsmkme.ceremony.kinds.ending import Decommission
from hsmkme.ceremony.kinds.epochs import DestroyEpoch, Rotate
from hsmkme.ceremony.kinds.making import Bring, Initialise, Make
from hsmkme.ceremony.kinds.pins import ChangePin

AnyStep = Annotated[
    Initialise | Make | Bring | ChangePin | Backup | Restore | Rotate | DestroyEpoch | Decommission,
    Field(discriminator="do"),
]
"""Every step that a plan may have."""
