-- Approvals by officers: which were used, and the policy that is in force.

CREATE TABLE approval (
    nonce BLOB PRIMARY KEY CHECK (length(nonce) = 16)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER approval_stays_used BEFORE DELETE ON approval
    BEGIN SELECT RAISE(ABORT, 'illegal transition: an approval that was used stays used'); END;
CREATE TRIGGER approval_stays BEFORE UPDATE ON approval
    BEGIN SELECT RAISE(ABORT, 'illegal transition: an approval that was used stays used'); END;

CREATE TABLE approval_policy (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    text TEXT NOT NULL
) STRICT;

CREATE TRIGGER approval_policy_stays BEFORE DELETE ON approval_policy
    BEGIN SELECT RAISE(ABORT, 'illegal transition: a policy is replaced, never taken away'); END;
