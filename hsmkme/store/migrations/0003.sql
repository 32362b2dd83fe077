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
