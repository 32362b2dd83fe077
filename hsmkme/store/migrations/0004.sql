-- What every request reads costs the same however many keys, blocks and SAEs there are.

-- Counts the changes of the registry, so that a process need not read it again while it is the same.
CREATE TABLE registry (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO registry VALUES (1, 1);
CREATE TRIGGER sae_added AFTER INSERT ON sae BEGIN UPDATE registry SET version = version + 1; END;
CREATE TRIGGER sae_changed AFTER UPDATE ON sae BEGIN UPDATE registry SET version = version + 1; END;
CREATE TRIGGER sae_removed AFTER DELETE ON sae BEGIN UPDATE registry SET version = version + 1; END;
CREATE TRIGGER pair_added AFTER INSERT ON pair BEGIN UPDATE registry SET version = version + 1; END;
CREATE TRIGGER pair_changed AFTER UPDATE ON pair BEGIN UPDATE registry SET version = version + 1; END;
CREATE TRIGGER pair_removed AFTER DELETE ON pair BEGIN UPDATE registry SET version = version + 1; END;

-- waiting: keys of blocks that wait for the peer's confirmation. Each block's pool exists from its deposit on.
ALTER TABLE pool ADD COLUMN waiting INTEGER NOT NULL DEFAULT 0 CHECK (waiting >= 0);
DROP TRIGGER pool_grows;
DROP TRIGGER pool_follows;
INSERT INTO pool (link_id, key_bits, ready) SELECT DISTINCT link_id, key_bits, 0 FROM block WHERE true
    ON CONFLICT DO NOTHING;
UPDATE pool SET waiting = (SELECT coalesce(sum(key_count - next_index), 0) FROM block
    WHERE state = 'deposited' AND block.link_id = pool.link_id AND block.key_bits = pool.key_bits);
CREATE TRIGGER pool_grows AFTER INSERT ON block BEGIN
    INSERT INTO pool (link_id, key_bits, ready, theirs, waiting) VALUES (NEW.link_id, NEW.key_bits,
        (NEW.key_count - NEW.next_index) * (NEW.state = 'ready') * NEW.mine,
        (NEW.key_count - NEW.next_index) * (NEW.state = 'ready') * (1 - NEW.mine),
        (NEW.key_count - NEW.next_index) * (NEW.state = 'deposited'))
        ON CONFLICT (link_id, key_bits) DO UPDATE
        SET ready = ready + excluded.ready, theirs = theirs + excluded.theirs, waiting = waiting + excluded.waiting;
END;
CREATE TRIGGER pool_follows AFTER UPDATE OF state, next_index, mine ON block
    WHEN OLD.state IN ('ready', 'deposited') OR NEW.state IN ('ready', 'deposited') BEGIN
    UPDATE pool SET
        ready = ready + (NEW.state = 'ready') * NEW.mine * (NEW.key_count - NEW.next_index)
                      - (OLD.state = 'ready') * OLD.mine * (OLD.key_count - OLD.next_index),
        theirs = theirs + (NEW.state = 'ready') * (1 - NEW.mine) * (NEW.key_count - NEW.next_index)
                        - (OLD.state = 'ready') * (1 - OLD.mine) * (OLD.key_count - OLD.next_index),
        waiting = waiting + (NEW.state = 'deposited') * (NEW.key_count - NEW.next_index)
                          - (OLD.state = 'deposited') * (OLD.key_count - OLD.next_index)
        WHERE link_id = NEW.link_id AND key_bits = NEW.key_bits;
END;

DROP INDEX unconfirmed;
CREATE INDEX unconfirmed ON block(link_id, block_id) WHERE state = 'deposited';
CREATE INDEX unconfirmed_since ON block(deposited_at) WHERE state = 'deposited';
-- The latest blocks of a link are found from its end.
CREATE INDEX block_of_link ON block(link_id, block_pk);
