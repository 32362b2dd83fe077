-- Keys for slaves at several other KMEs: taken from one link, carried over the others under one-time pads.

-- A pad is a row of key too, of the same relation. It masks key_id on its way over link_id, and nothing else ever.
CREATE TABLE pad (
    pad_id  BLOB PRIMARY KEY REFERENCES key,
    key_id  BLOB NOT NULL REFERENCES key,
    link_id TEXT NOT NULL REFERENCES link
) STRICT, WITHOUT ROWID;
CREATE INDEX pads_of ON pad(key_id);

CREATE TRIGGER pad_stays BEFORE UPDATE ON pad
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a pad masks does not change'); END;

-- The keys of each block that is shared with a peer, so that a reconciliation need not read all keys.
CREATE TABLE key_of_block (
    block_pk INTEGER NOT NULL REFERENCES block,
    key_id   BLOB NOT NULL REFERENCES key ON DELETE CASCADE,
    PRIMARY KEY (block_pk, key_id)
) STRICT, WITHOUT ROWID;
INSERT INTO key_of_block SELECT DISTINCT part.value ->> '$[0]', key_id FROM key, json_each(parts) AS part
    WHERE mine = 0 OR due <> -1;
