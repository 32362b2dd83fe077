-- Epochs over time: a new one is opened, block keys move to it, the old one is destroyed.

-- since: when it became active. wraps: how many block keys were ever wrapped under it. witness: a wrapped key that
-- nothing unwraps any more once the epoch is destroyed. proved: the token showed that the master key is gone.
ALTER TABLE epoch ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epoch ADD COLUMN wraps INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epoch ADD COLUMN witness BLOB CHECK (witness IS NULL OR length(witness) = 40);
ALTER TABLE epoch ADD COLUMN proved INTEGER NOT NULL DEFAULT 0 CHECK (proved IN (0, 1));
UPDATE epoch SET since = unixepoch(), wraps = (SELECT count(*) FROM block WHERE block.epoch = epoch.epoch);

-- first_epoch: under which the block was sealed. Its key was under epochs from that one to the present one.
ALTER TABLE block ADD COLUMN first_epoch INTEGER NOT NULL DEFAULT 0;
UPDATE block SET first_epoch = epoch;
CREATE TRIGGER first_epoch_stays BEFORE UPDATE OF first_epoch ON block
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a block was sealed under does not change'); END;

CREATE INDEX live_under ON block(epoch, block_pk) WHERE state <> 'retired';
CREATE INDEX ended_under ON block(epoch) WHERE state = 'retired';

CREATE INDEX ageing ON block(link_id, deposited_at) WHERE state IN ('deposited', 'ready');

CREATE TRIGGER block_goes_under_active BEFORE INSERT ON block
    WHEN NOT EXISTS (SELECT 1 FROM epoch WHERE epoch = NEW.epoch AND state = 'active')
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a block goes under the active epoch'); END;
CREATE TRIGGER block_moves_to_active BEFORE UPDATE OF epoch ON block
    WHEN NEW.epoch <= OLD.epoch OR OLD.state = 'retired'
    OR NOT EXISTS (SELECT 1 FROM epoch WHERE epoch = NEW.epoch AND state = 'active')
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a live block moves to the active epoch'); END;
CREATE TRIGGER wraps_count AFTER INSERT ON block
    BEGIN UPDATE epoch SET wraps = wraps + 1 WHERE epoch = NEW.epoch; END;
CREATE TRIGGER rewraps_count AFTER UPDATE OF epoch ON block
    BEGIN UPDATE epoch SET wraps = wraps + 1 WHERE epoch = NEW.epoch; END;

CREATE TRIGGER epoch_stays BEFORE UPDATE OF epoch, check_value ON epoch
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what an epoch is does not change'); END;
CREATE TRIGGER epoch_is_empty BEFORE UPDATE OF state ON epoch
    WHEN NEW.state = 'destroyed' AND EXISTS (SELECT 1 FROM block WHERE epoch = NEW.epoch AND state <> 'retired')
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a live block is under this epoch'); END;
CREATE TRIGGER proof_follows BEFORE UPDATE OF proved ON epoch
    WHEN NEW.proved < OLD.proved OR OLD.state <> 'destroyed'
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what is destroyed is proved, once and for ever'); END;
CREATE TRIGGER epoch_row_stays BEFORE DELETE ON epoch
    BEGIN SELECT RAISE(ABORT, 'illegal transition: an epoch is not forgotten'); END;
