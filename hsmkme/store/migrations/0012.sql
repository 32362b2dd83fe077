-- What a row says and nothing else proves is sealed by a key that only the token gives (store/seals.py).
ALTER TABLE block ADD COLUMN seal BLOB;
ALTER TABLE epoch ADD COLUMN seal BLOB;
ALTER TABLE copy ADD COLUMN seal BLOB;

-- Whether what was there before was sealed. The log says so too, and is believed rather than this.
ALTER TABLE lineage ADD COLUMN rows_sealed INTEGER NOT NULL DEFAULT 0 CHECK (rows_sealed IN (0, 1));

-- Wraps are counted by the statements that make them, which seal the count: a trigger may call no function.
DROP TRIGGER wraps_count;
DROP TRIGGER rewraps_count;
DROP TRIGGER copies_count;
DROP TRIGGER recopies_count;

-- The time of a claim becomes that of the delivery, and is sealed anew then; and once, when it was not sealed before.
DROP TRIGGER key_stays;
CREATE TRIGGER key_stays BEFORE UPDATE OF key_id, relation_id, size, parts ON key
    WHEN NEW.state <> 'void' OR NEW.parts <> '[]' OR NEW.key_id <> OLD.key_id
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a key is does not change'); END;
CREATE TRIGGER claim_stays BEFORE UPDATE OF claimed_at, seal ON key
    WHEN NOT (OLD.state = 'assigned' AND NEW.state = 'delivered')
    AND (NEW.claimed_at <> OLD.claimed_at OR (SELECT rows_sealed FROM lineage))
    BEGIN SELECT RAISE(ABORT, 'illegal transition: when a key was claimed does not change'); END;

-- What is kept apart stays so until it is revoked, also an ended block of which keys were to be collected.
DELETE FROM move WHERE kind = 'block' AND was = 'frozen' AND becomes <> 'revoked';
INSERT INTO move VALUES ('block', 'expired', 'frozen');

-- A copy that is of no block may go.
DROP TRIGGER copy_is_kept;
CREATE TRIGGER copy_is_kept BEFORE DELETE ON copy WHEN EXISTS (SELECT 1 FROM block WHERE block_pk = OLD.block_pk)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a copy is not forgotten'); END;

-- Who has not the key changes nothing that is sealed.
CREATE TRIGGER block_stays_sealed BEFORE UPDATE OF seal ON block
    WHEN NEW.seal IS NULL AND (SELECT rows_sealed FROM lineage)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a row is sealed by the key that the token gives'); END;
CREATE TRIGGER copy_stays_sealed BEFORE UPDATE OF seal ON copy
    WHEN NEW.seal IS NULL AND (SELECT rows_sealed FROM lineage)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a row is sealed by the key that the token gives'); END;
CREATE TRIGGER epoch_stays_sealed BEFORE UPDATE OF seal ON epoch
    WHEN NEW.seal IS NULL AND (SELECT rows_sealed FROM lineage)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a row is sealed by the key that the token gives'); END;
CREATE TRIGGER epoch_begins_sealed BEFORE INSERT ON epoch
    WHEN NEW.seal IS NULL AND (SELECT rows_sealed FROM lineage)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a row is sealed by the key that the token gives'); END;
