-- Several tokens: each epoch is of one of them, and a block's key may be wrapped by more than one.

-- token: whose master key it is; '' until the token is seen that has it.
ALTER TABLE epoch ADD COLUMN token TEXT NOT NULL DEFAULT '';
DROP INDEX one_active_epoch;
CREATE UNIQUE INDEX one_active_epoch ON epoch(token) WHERE state = 'active';
DROP TRIGGER epoch_stays;
CREATE TRIGGER epoch_stays BEFORE UPDATE OF epoch, check_value, token ON epoch
    WHEN NEW.epoch <> OLD.epoch OR NEW.check_value <> OLD.check_value OR OLD.token <> ''
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what an epoch is does not change'); END;

-- The block's key as further tokens wrap it, each once. What the block's own row says is read first, this on failure.
CREATE TABLE copy (
    block_pk INTEGER NOT NULL REFERENCES block,
    epoch    INTEGER NOT NULL REFERENCES epoch,
    wrapped  BLOB NOT NULL,
    PRIMARY KEY (block_pk, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX copies_under ON copy(epoch, block_pk);

CREATE TRIGGER copy_goes_under_active BEFORE INSERT ON copy
    WHEN NOT EXISTS (SELECT 1 FROM epoch WHERE epoch = NEW.epoch AND state = 'active')
    OR EXISTS (SELECT 1 FROM block JOIN epoch USING (epoch) WHERE block_pk = NEW.block_pk
        AND (block.state = 'retired' OR token = (SELECT token FROM epoch WHERE epoch = NEW.epoch)))
    OR EXISTS (SELECT 1 FROM copy JOIN epoch USING (epoch) WHERE block_pk = NEW.block_pk
        AND token = (SELECT token FROM epoch WHERE epoch = NEW.epoch))
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a copy is of a live block, under the active epoch of another token'); END;
CREATE TRIGGER copy_moves_to_active BEFORE UPDATE OF epoch ON copy
    WHEN NEW.epoch <= OLD.epoch OR EXISTS (SELECT 1 FROM block WHERE block_pk = OLD.block_pk AND state = 'retired')
    OR NOT EXISTS (SELECT 1 FROM epoch JOIN epoch AS old USING (token)
        WHERE epoch.epoch = NEW.epoch AND epoch.state = 'active' AND old.epoch = OLD.epoch)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a copy of a live block moves to the active epoch of its token'); END;
CREATE TRIGGER copy_stays BEFORE UPDATE OF block_pk ON copy
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a copy is of does not change'); END;
CREATE TRIGGER copy_is_kept BEFORE DELETE ON copy
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a copy is not forgotten'); END;
CREATE TRIGGER copies_count AFTER INSERT ON copy
    BEGIN UPDATE epoch SET wraps = wraps + 1 WHERE epoch = NEW.epoch; END;
CREATE TRIGGER recopies_count AFTER UPDATE OF epoch ON copy
    BEGIN UPDATE epoch SET wraps = wraps + 1 WHERE epoch = NEW.epoch; END;

DROP TRIGGER block_moves_to_active;
CREATE TRIGGER block_moves_to_active BEFORE UPDATE OF epoch ON block
    WHEN NEW.epoch <= OLD.epoch OR OLD.state = 'retired'
    OR NOT EXISTS (SELECT 1 FROM epoch JOIN epoch AS old USING (token)
        WHERE epoch.epoch = NEW.epoch AND epoch.state = 'active' AND old.epoch = OLD.epoch)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a live block moves to the active epoch of its token'); END;
DROP TRIGGER epoch_is_empty;
CREATE TRIGGER epoch_is_empty BEFORE UPDATE OF state ON epoch
    WHEN NEW.state = 'destroyed' AND (EXISTS (SELECT 1 FROM block WHERE epoch = NEW.epoch AND state <> 'retired')
        OR EXISTS (SELECT 1 FROM copy JOIN block USING (block_pk) WHERE copy.epoch = NEW.epoch AND state <> 'retired'))
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a live block is under this epoch'); END;

-- What tells the key of row seals, which all tokens give alike; NULL until the first was seen.
ALTER TABLE lineage ADD COLUMN row_key_check BLOB CHECK (row_key_check IS NULL OR length(row_key_check) = 16);
