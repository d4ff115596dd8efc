-- Accounts elsewhere that sign a user in, by a keyed digest of issuer and subject (OpenID Connect Core 1.0, 5.7).
CREATE TABLE identities (
    subject_index BYTEA PRIMARY KEY,
    user_id       UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider      TEXT NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL,
    UNIQUE (user_id, provider)
);
