-- The time of day: the latest that was seen, what it differs from the machine's steady clock by, and what rests on it.

-- latest: seconds since the epoch. ahead: the time of day less the steady clock of this boot. doubted: the clock was
-- set, and nobody has said that it is right.
CREATE TABLE clock (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    latest  INTEGER NOT NULL,
    boot    TEXT NOT NULL,
    ahead   INTEGER NOT NULL,
    doubted INTEGER NOT NULL CHECK (doubted IN (0, 1))
) STRICT;
INSERT INTO clock VALUES (1, 0, '', 0, 0);

-- not_before: until then the block stays deposited, whatever its peer says of it; 0: no such time.
ALTER TABLE block ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0 CHECK (not_before >= 0);
CREATE INDEX locked ON block(not_before) WHERE state = 'deposited' AND not_before > 0;
CREATE TRIGGER lock_stays BEFORE UPDATE OF not_before ON block
    BEGIN SELECT RAISE(ABORT, 'illegal transition: the time before which a block is not released does not change'); END;

-- ttl: for how many seconds a key may be claimed after its deposit, or collected after it was made; 0: no limit.
ALTER TABLE link ADD COLUMN ttl INTEGER NOT NULL DEFAULT 0 CHECK (ttl >= 0);
ALTER TABLE pair ADD COLUMN ttl INTEGER NOT NULL DEFAULT 0 CHECK (ttl >= 0);

-- What an epoch was is told by the log, which proves itself, and not by columns that anybody may write to who has the
-- file. proof: the row of the log that says that the master key is gone.
DROP TRIGGER proof_follows;
ALTER TABLE epoch ADD COLUMN proof INTEGER;
UPDATE epoch SET proof = (SELECT min(seq) FROM log WHERE text ->> '$.event' = 'epoch.destroy'
    AND text ->> '$.epoch' = epoch.epoch) WHERE proved;
ALTER TABLE epoch DROP COLUMN proved;
ALTER TABLE epoch DROP COLUMN witness;
CREATE TRIGGER proof_follows BEFORE UPDATE OF proof ON epoch WHEN OLD.state <> 'destroyed'
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what is destroyed is proved'); END;
DROP TRIGGER first_epoch_stays;
ALTER TABLE block DROP COLUMN first_epoch;
