CREATE TABLE installation (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE users (
    id            BLOB PRIMARY KEY NOT NULL,
    email         BLOB,
    email_index   BLOB UNIQUE,
    phone         BLOB,
    phone_index   BLOB UNIQUE,
    password_hash TEXT,
    role          TEXT NOT NULL CHECK (role IN ('client', 'vendor', 'staff', 'admin')),
    auth_provider TEXT NOT NULL CHECK (auth_provider IN ('email', 'phone', 'google')),
    is_verified   BOOLEAN NOT NULL,
    is_active     BOOLEAN NOT NULL,
    is_contested  BOOLEAN NOT NULL,
    first_name    TEXT NOT NULL,
    last_name     TEXT NOT NULL,
    bio           TEXT NOT NULL,
    avatar        TEXT NOT NULL,
    country       TEXT NOT NULL,
    state         TEXT NOT NULL,
    city          TEXT NOT NULL,
    address       TEXT NOT NULL,
    pid           TEXT NOT NULL UNIQUE,
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    last_login_at BIGINT,
    deleted_at    BIGINT,
    deleted_by    BLOB,
    delete_reason TEXT
);

CREATE INDEX users_by_verification ON users (is_verified, updated_at);

CREATE TABLE sessions (
    id           BLOB PRIMARY KEY NOT NULL,
    user_id      BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    generation   BIGINT NOT NULL,
    rotated_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    ended_at     BIGINT,
    end_reason   TEXT,
    ip           TEXT NOT NULL,
    user_agent   TEXT NOT NULL,
    browser      TEXT NOT NULL,
    os           TEXT NOT NULL,
    device       TEXT NOT NULL
);
CREATE INDEX sessions_of_user ON sessions (user_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE outbox (
    id           BLOB PRIMARY KEY NOT NULL,
    channel      TEXT NOT NULL CHECK (channel IN ('mail', 'sms', 'event')),
    kind         TEXT NOT NULL,
    payload      BLOB NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'dead', 'published')),
    attempts     INTEGER NOT NULL,
    created_at   BIGINT NOT NULL,
    available_at BIGINT NOT NULL,
    expires_at   BIGINT,
    lease_owner  BLOB,
    settled_at   BIGINT,
    last_error   TEXT NOT NULL
);
-- While a letter is claimed, available_at is the end of its lease.
CREATE INDEX outbox_due ON outbox (available_at) WHERE state = 'pending';
CREATE INDEX outbox_by_age ON outbox (created_at);

CREATE TABLE audit_events (
    id               BLOB PRIMARY KEY NOT NULL,
    at               BIGINT NOT NULL,
    action           TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    reason           TEXT NOT NULL,
    user_id          BLOB,
    session_id       BLOB,
    identifier_index BLOB,
    ip               TEXT NOT NULL,
    user_agent       TEXT NOT NULL,
    browser          TEXT NOT NULL,
    os               TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    engine           TEXT NOT NULL
);
CREATE INDEX audit_events_of_user ON audit_events (user_id, at);
CREATE INDEX audit_events_by_age ON audit_events (at);

-- The embedded ephemeral store: codes, counters and locks that run out by themselves.
CREATE TABLE ephemeral_entries (
    key        TEXT PRIMARY KEY NOT NULL,
    value      BLOB NOT NULL,
    count      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX ephemeral_entries_by_expiry ON ephemeral_entries (expires_at);
