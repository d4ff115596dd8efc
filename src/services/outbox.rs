//! Makes outbox entries of letters and events. Payloads are sealed: they hold addresses and codes.

use serde::Serialize;
use time::OffsetDateTime;

use super::{
    events::Event,
    identifier::Identifier,
    letters::{Letter, Message, Recipient},
    model::{Channel, OutboxEntry, OutboxState},
    ports::Ports,
};

/// A letter to an identifier, not to be sent after `expires_at`.
pub fn letter<P: Ports>(ports: &P, to: &Identifier, letter: Letter, expires_at: Option<OffsetDateTime>) -> OutboxEntry {
    let (channel, to) = match to {
        Identifier::Email(address) => (Channel::Mail, Recipient::Email(address.clone())),
        Identifier::Phone(number) => (Channel::Sms, Recipient::Phone(number.clone())),
    };
    let kind = letter.kind();
    let entry = entry(ports, channel, kind, OutboxState::Pending, &Message { to, letter });
    OutboxEntry { expires_at, ..entry }
}

/// An event for later subscribers.
pub fn event<P: Ports>(ports: &P, event: &Event) -> OutboxEntry {
    entry(ports, Channel::Event, event.kind(), OutboxState::Published, event)
}

fn entry<P: Ports>(
    ports: &P,
    channel: Channel,
    kind: &str,
    state: OutboxState,
    payload: &impl Serialize,
) -> OutboxEntry {
    let (id, now) = (ports.new_id(), ports.now());
    let payload = serde_json::to_vec(payload).unwrap_or_default();
    OutboxEntry {
        id,
        channel,
        kind: kind.to_owned(),
        payload: ports.keys().seal_payload(id, &payload, ports.random()),
        state,
        attempts: 0,
        created_at: now,
        available_at: now,
        expires_at: None,
        last_error: String::new(),
    }
}
