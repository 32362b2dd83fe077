-- Links to other KMEs (kme-peer/1): who owns a block, who serves a slave, what was said and what is still to be said.

-- mine: this end alone assigns the block's keys. At the other end next_index counts the segments that were assigned.
ALTER TABLE block ADD COLUMN mine INTEGER NOT NULL DEFAULT 1 CHECK (mine IN (0, 1));
ALTER TABLE block ADD COLUMN own_epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE block ADD COLUMN tag BLOB CHECK (tag IS NULL OR length(tag) = 16);

-- mine: the master is served here. due: bit i is set when slave i of the relation is served here (-1: all are).
ALTER TABLE key ADD COLUMN mine INTEGER NOT NULL DEFAULT 1 CHECK (mine IN (0, 1));
ALTER TABLE key ADD COLUMN due INTEGER NOT NULL DEFAULT -1;

-- why: the reason for which a link is frozen; an open link has none.
ALTER TABLE link ADD COLUMN why TEXT NOT NULL DEFAULT '';
ALTER TABLE link ADD COLUMN incarnation TEXT NOT NULL DEFAULT '';
ALTER TABLE link ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;
-- Number of the last message and rows of the log when the service began; NULL once the peer has judged them.
ALTER TABLE link ADD COLUMN start_sent INTEGER;
ALTER TABLE link ADD COLUMN start_rows INTEGER;
UPDATE link SET incarnation = printf('%016x', unixepoch()) || lower(hex(randomblob(8)));

-- What this KME knows of the one at the other end of a link; heard: when it was last in touch.
CREATE TABLE far_end (
    link_id     TEXT PRIMARY KEY REFERENCES link,
    incarnation TEXT NOT NULL,
    seen        INTEGER NOT NULL DEFAULT 0,
    log_rows    INTEGER NOT NULL DEFAULT 0,
    ready       TEXT NOT NULL DEFAULT '{}',
    heard       INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Answers to messages of a peer: a repeated message gets the same answer.
CREATE TABLE inbox (
    link_id TEXT NOT NULL REFERENCES link,
    txid    BLOB NOT NULL CHECK (length(txid) = 16),
    body    BLOB NOT NULL,
    answer  BLOB NOT NULL,
    until   INTEGER NOT NULL,
    PRIMARY KEY (link_id, txid)
) STRICT, WITHOUT ROWID;
CREATE INDEX inbox_over ON inbox(until);

-- Messages that are repeated until the peer acknowledges them.
CREATE TABLE outbox (
    outbox_pk INTEGER PRIMARY KEY,
    link_id   TEXT NOT NULL REFERENCES link,
    seq       INTEGER NOT NULL,
    txid      BLOB NOT NULL UNIQUE CHECK (length(txid) = 16),
    call      TEXT NOT NULL,
    body      BLOB NOT NULL,
    since     INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_of_link ON outbox(link_id, outbox_pk);

-- Which store this is; a copy of it has the same id. The token remembers how far it had come.
CREATE TABLE lineage (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    store_id   BLOB NOT NULL CHECK (length(store_id) = 16),
    generation INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO lineage (one, store_id) VALUES (1, randomblob(16));

-- Segments of the peer's blocks that it assigned: none is ever accepted for a second key.
CREATE TABLE assigned_segment (
    block_pk INTEGER NOT NULL REFERENCES block,
    segment  INTEGER NOT NULL,
    PRIMARY KEY (block_pk, segment)
) STRICT, WITHOUT ROWID;

-- How many keys a relation is given ahead of need.
CREATE TABLE draw (
    relation_id INTEGER NOT NULL REFERENCES relation,
    size        INTEGER NOT NULL,
    peer        TEXT NOT NULL,
    depth       INTEGER NOT NULL CHECK (depth > 0),
    at          INTEGER NOT NULL,
    PRIMARY KEY (relation_id, size)
) STRICT, WITHOUT ROWID;

DROP INDEX claimable;
CREATE INDEX claimable ON block(link_id, key_bits, block_pk) WHERE state = 'ready' AND mine = 1;
CREATE INDEX agreed ON key(relation_id, size, key_id) WHERE state = 'assigned' AND mine = 1;
CREATE INDEX assigning ON key(claimed_at) WHERE state = 'assigning';
CREATE INDEX given_up ON key(claimed_at) WHERE state = 'delivered' AND due = 0;

INSERT INTO move VALUES ('key', 'assigned', 'consumed');

-- ready: keys that this end may assign; theirs: keys that the peer may.
ALTER TABLE pool ADD COLUMN theirs INTEGER NOT NULL DEFAULT 0 CHECK (theirs >= 0);
DROP TRIGGER pool_grows;
DROP TRIGGER pool_follows;
CREATE TRIGGER pool_grows AFTER INSERT ON block WHEN NEW.state = 'ready' BEGIN
    INSERT INTO pool (link_id, key_bits, ready, theirs) VALUES (NEW.link_id, NEW.key_bits,
        (NEW.key_count - NEW.next_index) * NEW.mine, (NEW.key_count - NEW.next_index) * (1 - NEW.mine))
        ON CONFLICT (link_id, key_bits) DO UPDATE
        SET ready = ready + excluded.ready, theirs = theirs + excluded.theirs;
END;
CREATE TRIGGER pool_follows AFTER UPDATE OF state, next_index, mine ON block
    WHEN OLD.state = 'ready' OR NEW.state = 'ready' BEGIN
    INSERT INTO pool (link_id, key_bits, ready) VALUES (NEW.link_id, NEW.key_bits, 0) ON CONFLICT DO NOTHING;
    UPDATE pool SET
        ready = ready + (NEW.state = 'ready') * NEW.mine * (NEW.key_count - NEW.next_index)
                      - (OLD.state = 'ready') * OLD.mine * (OLD.key_count - OLD.next_index),
        theirs = theirs + (NEW.state = 'ready') * (1 - NEW.mine) * (NEW.key_count - NEW.next_index)
                        - (OLD.state = 'ready') * (1 - OLD.mine) * (OLD.key_count - OLD.next_index)
        WHERE link_id = NEW.link_id AND key_bits = NEW.key_bits;
END;

CREATE TRIGGER own_epoch_grows BEFORE UPDATE OF own_epoch, mine ON block
    WHEN NEW.own_epoch < OLD.own_epoch OR (NEW.mine <> OLD.mine AND NEW.own_epoch = OLD.own_epoch)
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a block changes its owner in a later epoch of ownership'); END;
CREATE TRIGGER side_stays BEFORE UPDATE OF mine, due ON key
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a key is does not change'); END;
CREATE TRIGGER segment_stays BEFORE DELETE ON assigned_segment
    WHEN (SELECT state FROM block WHERE block_pk = OLD.block_pk) <> 'retired'
    BEGIN SELECT RAISE(ABORT, 'illegal transition: an assigned segment stays assigned'); END;
