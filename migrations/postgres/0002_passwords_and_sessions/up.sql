ALTER TABLE users ADD COLUMN password_changed_at TIMESTAMPTZ;

ALTER TABLE sessions ADD COLUMN country TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN city TEXT NOT NULL DEFAULT '';

ALTER TABLE audit_events ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN country TEXT NOT NULL DEFAULT '';
ALTER TABLE audit_events ADD COLUMN city TEXT NOT NULL DEFAULT '';

-- The greatest cost of each kind of imported hash: what a failed sign-in makes up for.
CREATE TABLE imported_hashes (
    scheme TEXT PRIMARY KEY,
    work   BIGINT NOT NULL
);
CREATE INDEX users_with_imported_hash ON users (id)
    WHERE password_hash IS NOT NULL AND password_hash NOT LIKE '$argon2id$%';
