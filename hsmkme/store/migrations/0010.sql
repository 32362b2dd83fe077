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
