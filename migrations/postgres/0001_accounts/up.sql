CREATE TABLE installation (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE users (
    id            UUID PRIMARY KEY,
    email         BYTEA,
    email_index   BYTEA UNIQUE,
    phone         BYTEA,
    phone_index   BYTEA UNIQUE,
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
    created_at    TIMESTAMPTZ NOT NULL,
    updated_at    TIMESTAMPTZ NOT NULL,
    last_login_at TIMESTAMPTZ,
    deleted_at    TIMESTAMPTZ,
    deleted_by    UUID,
    delete_reason TEXT
);

CREATE INDEX users_by_verification ON users (is_verified, updated_at);

CREATE TABLE sessions (
    id           UUID PRIMARY KEY,
    user_id      UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    generation   BIGINT NOT NULL,
    rotated_at   TIMESTAMPTZ NOT NULL,
    expires_at   TIMESTAMPTZ NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL,
    last_used_at TIMESTAMPTZ NOT NULL,
    ended_at     TIMESTAMPTZ,
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
    id           UUID PRIMARY KEY,
    channel      TEXT NOT NULL CHECK (channel IN ('mail', 'sms', 'event')),
    kind         TEXT NOT NULL,
    payload      BYTEA NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'dead', 'published')),
    attempts     INTEGER NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL,
    available_at TIMESTAMPTZ NOT NULL,
    expires_at   TIMESTAMPTZ,
    lease_owner  UUID,
    settled_at   TIMESTAMPTZ,
    last_error   TEXT NOT NULL
);
-- While a letter is claimed, available_at is the end of its lease.
CREATE INDEX outbox_due ON outbox (available_at) WHERE state = 'pending';
CREATE INDEX outbox_by_age ON outbox (created_at);

CREATE TABLE audit_events (
    id               UUID PRIMARY KEY,
    at               TIMESTAMPTZ NOT NULL,
    action           TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    reason           TEXT NOT NULL,
    user_id          UUID,
    session_id       UUID,
    identifier_index BYTEA,
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
    key        TEXT PRIMARY KEY,
    value      BYTEA NOT NULL,
    count      BIGINT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX ephemeral_entries_by_expiry ON ephemeral_entries (expires_at);
