-- Epochs, links, blocks, keys, SAEs, the log. The state tables repeat states.py on purpose.

CREATE TABLE epoch (
    epoch       INTEGER PRIMARY KEY CHECK (epoch > 0),
    state       TEXT NOT NULL CHECK (state IN ('preactivation','active','deactivated','compromised','destroyed')),
    check_value TEXT NOT NULL CHECK (length(check_value) = 10)
) STRICT;
CREATE UNIQUE INDEX one_active_epoch ON epoch(state) WHERE state = 'active';

CREATE TABLE link (
    link_id TEXT PRIMARY KEY,
    peer    TEXT NOT NULL,
    state   TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open','frozen'))
) STRICT;

-- How many keys can be claimed, kept by the triggers below: counting never depends on the size of the pool.
CREATE TABLE pool (
    link_id  TEXT NOT NULL REFERENCES link,
    key_bits INTEGER NOT NULL,
    ready    INTEGER NOT NULL CHECK (ready >= 0),
    PRIMARY KEY (link_id, key_bits)
) STRICT, WITHOUT ROWID;

CREATE TABLE block (
    block_pk     INTEGER PRIMARY KEY,
    link_id      TEXT NOT NULL REFERENCES link,
    block_id     TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN
                 ('deposited','ready','frozen','exhausted','expired','revoked','retired')),
    epoch        INTEGER NOT NULL REFERENCES epoch,
    key_bits     INTEGER NOT NULL CHECK (key_bits > 0 AND key_bits % 64 = 0),
    key_count    INTEGER NOT NULL CHECK (key_count > 0),
    next_index   INTEGER NOT NULL DEFAULT 0 CHECK (next_index BETWEEN 0 AND key_count),
    live         INTEGER NOT NULL CHECK (live BETWEEN 0 AND key_count),
    wrapped      BLOB NOT NULL,
    digest       BLOB NOT NULL UNIQUE,
    deposited_at INTEGER NOT NULL,
    UNIQUE (link_id, block_id)
) STRICT;
CREATE INDEX claimable ON block(link_id, key_bits, block_pk) WHERE state = 'ready';
CREATE INDEX unconfirmed ON block(link_id, key_count) WHERE state = 'deposited';

-- Apart from its block, so that moving the cursor does not rewrite the segments.
CREATE TABLE segments (
    block_pk INTEGER PRIMARY KEY REFERENCES block,
    sealed   BLOB NOT NULL
) STRICT;

CREATE TABLE relation (
    relation_id INTEGER PRIMARY KEY,
    master      TEXT NOT NULL,
    slaves      TEXT NOT NULL,
    UNIQUE (master, slaves)
) STRICT;

-- parts: [[block_pk, first segment, count], ...]; served: bit i is set when slave i of the relation has it.
CREATE TABLE key (
    key_id      BLOB PRIMARY KEY CHECK (length(key_id) = 16),
    relation_id INTEGER NOT NULL REFERENCES relation,
    state       TEXT NOT NULL CHECK (state IN ('assigning','assigned','delivered','consumed','void')),
    size        INTEGER NOT NULL CHECK (size > 0 AND size % 8 = 0),
    parts       TEXT NOT NULL,
    served      INTEGER NOT NULL DEFAULT 0,
    claimed_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX uncollected ON key(claimed_at) WHERE state IN ('assigning','assigned','delivered');

-- Requests with an Idempotency-Key, and the keys they were answered with (16 bytes each).
CREATE TABLE answer (
    client  TEXT NOT NULL,
    token   TEXT NOT NULL,
    request BLOB NOT NULL,
    key_ids BLOB NOT NULL,
    until   INTEGER NOT NULL,
    PRIMARY KEY (client, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_over ON answer(until);

-- Consumed keys whose segments stay until nobody can ask for the same answer again.
CREATE TABLE erase_later (
    key_id BLOB PRIMARY KEY REFERENCES key,
    due    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX erase_due ON erase_later(due);

CREATE TABLE sae (
    sae_id  TEXT PRIMARY KEY CHECK (length(sae_id) > 0),
    kme_id  TEXT NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TABLE pair (
    master TEXT NOT NULL REFERENCES sae,
    slave  TEXT NOT NULL REFERENCES sae,
    PRIMARY KEY (master, slave),
    CHECK (master <> slave)
) STRICT, WITHOUT ROWID;

CREATE TABLE log (
    seq  INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TABLE log_head (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seq  INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
INSERT INTO log_head VALUES (1, 0, zeroblob(32));
CREATE TABLE log_seal (
    seq       INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    at        TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
CREATE TRIGGER log_is_append_only BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_kept BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

CREATE TABLE move (kind TEXT NOT NULL, was TEXT NOT NULL, becomes TEXT NOT NULL, PRIMARY KEY (kind, was, becomes))
    STRICT, WITHOUT ROWID;
INSERT INTO move VALUES
    ('epoch','preactivation','active'), ('epoch','preactivation','compromised'),
    ('epoch','preactivation','destroyed'), ('epoch','active','deactivated'), ('epoch','active','compromised'),
    ('epoch','deactivated','compromised'), ('epoch','deactivated','destroyed'), ('epoch','compromised','destroyed'),
    ('block','deposited','ready'), ('block','deposited','frozen'), ('block','deposited','expired'),
    ('block','deposited','revoked'), ('block','ready','frozen'), ('block','ready','exhausted'),
    ('block','ready','expired'), ('block','ready','revoked'), ('block','frozen','ready'),
    ('block','frozen','exhausted'), ('block','frozen','expired'), ('block','frozen','revoked'),
    ('block','exhausted','frozen'), ('block','exhausted','revoked'), ('block','exhausted','retired'),
    ('block','expired','retired'), ('block','revoked','retired'),
    ('key','assigning','assigned'), ('key','assigning','void'), ('key','assigned','delivered'),
    ('key','assigned','void'), ('key','delivered','consumed'), ('key','delivered','void');

CREATE TRIGGER epoch_moves BEFORE UPDATE OF state ON epoch WHEN NEW.state <> OLD.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE kind = 'epoch' AND was = OLD.state AND becomes = NEW.state)
    BEGIN SELECT RAISE(ABORT, 'illegal transition of an epoch'); END;
CREATE TRIGGER block_moves BEFORE UPDATE OF state ON block WHEN NEW.state <> OLD.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE kind = 'block' AND was = OLD.state AND becomes = NEW.state)
    BEGIN SELECT RAISE(ABORT, 'illegal transition of a block'); END;
CREATE TRIGGER key_moves BEFORE UPDATE OF state ON key WHEN NEW.state <> OLD.state
    AND NOT EXISTS (SELECT 1 FROM move WHERE kind = 'key' AND was = OLD.state AND becomes = NEW.state)
    BEGIN SELECT RAISE(ABORT, 'illegal transition of a key'); END;
CREATE TRIGGER cursor_moves_right BEFORE UPDATE OF next_index ON block WHEN NEW.next_index < OLD.next_index
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a cursor moves right only'); END;
CREATE TRIGGER served_grows BEFORE UPDATE OF served ON key WHEN (NEW.served & OLD.served) <> OLD.served
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a collected key stays collected'); END;
CREATE TRIGGER key_stays BEFORE UPDATE OF key_id, relation_id, size, parts ON key
    BEGIN SELECT RAISE(ABORT, 'illegal transition: what a key is does not change'); END;
CREATE TRIGGER key_row_stays BEFORE DELETE ON key WHEN OLD.state NOT IN ('consumed','void')
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a live key is not deleted'); END;

CREATE TRIGGER pool_grows AFTER INSERT ON block WHEN NEW.state = 'ready' BEGIN
    INSERT INTO pool VALUES (NEW.link_id, NEW.key_bits, NEW.key_count - NEW.next_index)
        ON CONFLICT (link_id, key_bits) DO UPDATE SET ready = ready + excluded.ready;
END;
CREATE TRIGGER pool_follows AFTER UPDATE OF state, next_index ON block
    WHEN OLD.state = 'ready' OR NEW.state = 'ready' BEGIN
    INSERT INTO pool VALUES (NEW.link_id, NEW.key_bits, 0) ON CONFLICT DO NOTHING;
    UPDATE pool SET ready = ready
        + CASE NEW.state WHEN 'ready' THEN NEW.key_count - NEW.next_index ELSE 0 END
        - CASE OLD.state WHEN 'ready' THEN OLD.key_count - OLD.next_index ELSE 0 END
        WHERE link_id = NEW.link_id AND key_bits = NEW.key_bits;
END;
