-- Rows that somebody wrote to behind the product's back are found and kept apart.

-- What a row of key says that never changes, under a key that only the token gives (16 bytes).
ALTER TABLE key ADD COLUMN seal BLOB;

-- How many segments of a block were taken, once more: a block's row that an old copy replaced does not agree.
CREATE TABLE taken (
    block_pk INTEGER PRIMARY KEY REFERENCES block,
    segments INTEGER NOT NULL
) STRICT;
INSERT INTO taken SELECT block_pk, next_index FROM block;
CREATE TRIGGER block_begins AFTER INSERT ON block
    BEGIN INSERT INTO taken VALUES (NEW.block_pk, NEW.next_index); END;
CREATE TRIGGER cursor_is_noted AFTER UPDATE OF next_index ON block
    BEGIN UPDATE taken SET segments = NEW.next_index WHERE block_pk = NEW.block_pk; END;

-- A state that there is not may end as what is kept apart, and a key that is void may lose its place.
DROP TRIGGER block_moves;
CREATE TRIGGER block_moves BEFORE UPDATE OF state ON block WHEN NEW.state <> OLD.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE kind = 'block' AND was = OLD.state AND becomes = NEW.state)
    AND (NEW.state <> 'frozen' OR OLD.state = 'retired'
        OR EXISTS (SELECT 1 FROM move WHERE kind = 'block' AND was = OLD.state))
    BEGIN SELECT RAISE(ABORT, 'illegal transition of a block'); END;
DROP TRIGGER key_moves;
CREATE TRIGGER key_moves BEFORE UPDATE OF state ON key WHEN NEW.state <> OLD.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE kind = 'key' AND was = OLD.state AND becomes = NEW.state)
    AND (NEW.state <> 'void' OR OLD.state = 'consumed'
        OR EXISTS (SELECT 1 FROM move WHERE kind = 'key' AND was = OLD.state))
    BEGIN SELECT RAISE(ABORT, 'illegal transition of a key'); END;
DROP TRIGGER key_stays;
CREATE TRIGGER key_stays BEFORE UPDATE OF key_id, relation_id, size, parts, seal ON key
    WHEN NEW.state <> 'void' OR NEW.parts <> '[]' OR NEW.key_id <> OLD.key_id
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a key is does not change'); END;
