//! Gives a user another password: the one way in which reset and change end (contract §3, ASVS 7.4.3).

use super::{
    audit,
    error::Unavailable,
    events::Event,
    letters::Letter,
    lockout,
    model::{Caller, EndReason, OutboxEntry, SessionId, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Sessions as _, Users as _},
    register::stored_identifiers,
    reset_flow,
};

/// How it came about.
#[derive(Debug, Clone, Copy)]
pub enum Occasion {
    /// In this session, which goes on; every other one ends.
    Change(SessionId),
    /// With a link or code; every session ends.
    Reset,
}

/// Why there is no other password.
#[derive(Debug, thiserror::Error)]
pub enum NewPasswordError {
    /// The user was disabled or deleted, or their password changed, since they were looked up.
    #[error("the user has changed")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Sets the password, ends sessions, tells the owner and writes it down, all or nothing; then voids
/// outstanding links and codes, which are bound to the old state and dead already.
///
/// # Errors
/// [`NewPasswordError`].
pub async fn set<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: &User,
    hash: &str,
    occasion: Occasion,
) -> Result<(), NewPasswordError> {
    let now = ports.now();
    let (action, why, kept) = match occasion {
        Occasion::Change(session) => ("password_change", EndReason::PasswordChanged, Some(session)),
        Occasion::Reset => ("password_reset", EndReason::PasswordReset, None),
    };
    let event = audit::event(ports, action, caller).of_user(user.id);
    let event = kept.map(|session| event.clone().in_session(session)).unwrap_or(event);
    let letters = letters(ports, caller, user);
    ports
        .transaction(async |store| {
            if !store.set_password(user, hash, now).await? {
                return Err(NewPasswordError::Changed);
            }
            for session_id in store.end_sessions_of(user.id, kept, why, now).await? {
                let ended = Event::SessionEnded { user_id: user.id, session_id, reason: why };
                store.enqueue(&outbox::event(ports, &ended)).await?;
            }
            // Whoever proves the address again takes the account back, and whatever else signs in to it was
            // perhaps added by somebody else (ABUSE 24). Where Google runs the address, its owner's Google
            // account is linked again when it is next used.
            if matches!(occasion, Occasion::Reset) {
                store.forget_identities(user.id).await?;
            }
            store.record(&event).await?;
            store.enqueue(&outbox::event(ports, &Event::PasswordChanged { user_id: user.id })).await?;
            for letter in &letters {
                store.enqueue(letter).await?;
            }
            Ok(())
        })
        .await?;
    // After the commit: a fault here must not undo it.
    if let Err(error) = tidy(ports, user, occasion).await {
        tracing::warn!(error = %error, "old links, codes and counts not deleted");
    }
    Ok(())
}

// To every address of theirs: whoever took over one of them must not be the only one to read it.
fn letters<P: Ports>(ports: &P, caller: &Caller, user: &User) -> Vec<OutboxEntry> {
    let client = caller.client();
    let policy = ports.policy();
    let letter = Letter::PasswordChanged {
        when: ports.now(),
        browser: client.browser,
        os: client.os,
        reset_url: format!("{}{}", policy.public_url, policy.links.password_forgotten),
    };
    stored_identifiers(user).iter().map(|to| outbox::letter(ports, to, letter.clone(), None)).collect()
}

async fn tidy<P: Ports>(ports: &P, user: &User, occasion: Occasion) -> Result<(), Unavailable> {
    reset_flow::void(ports, user.id).await?;
    // Failures were guesses at the old password; whoever proved the address may use the new one at once.
    if matches!(occasion, Occasion::Reset) {
        for identifier in stored_identifiers(user) {
            lockout::lift(ports, &identifier).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{
        letters::Recipient,
        memory::{ADDRESS, NUMBER, World, caller},
        ports::Ephemeral as _,
        run::run,
    };

    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$AAAA$AAAA";

    fn set_for(world: &World, user: &User, occasion: Occasion) -> Result<(), NewPasswordError> {
        run(set(world, &caller(), user, HASH, occasion))
    }

    #[test]
    fn a_change_spares_its_own_session_and_a_reset_none() {
        let (changed, reset) = (World::with_ada(), World::with_ada());
        for world in [&changed, &reset] {
            let user = world.users().remove(0);
            let [first, this, last] = [0; 3].map(|_| world.sign_in(user.id).tokens);
            let (bearer, events) = (world.bearer(&this), world.events().len());
            let is_change = std::ptr::eq(world, &raw const changed);
            let (occasion, why, action) = match is_change {
                true => (Occasion::Change(bearer.session.id), EndReason::PasswordChanged, "password_change"),
                false => (Occasion::Reset, EndReason::PasswordReset, "password_reset"),
            };
            set_for(world, &bearer.user, occasion).unwrap();
            assert_eq!([&first, &this, &last].map(|pair| world.is_alive(pair)), [false, is_change, false]);
            let reasons = world.sessions().iter().map(|session| session.end_reason).collect::<Vec<_>>();
            assert_eq!(reasons, [Some(why), Some(why).filter(|_| !is_change), Some(why)]);
            let ended = if is_change { 2 } else { 3 };
            assert_eq!(world.events()[events..events + ended], vec!["SessionEnded"; ended]);
            assert_eq!(world.events()[events + ended..], ["PasswordChanged"]);
            assert_eq!(world.audited().last(), Some(&(action, "")));
            let user = world.users().remove(0);
            assert_eq!(user.password_hash.as_deref(), Some(HASH));
            assert_eq!((user.password_changed_at, user.updated_at), (Some(world.now()), world.now()));
        }
    }

    #[test]
    fn the_owner_is_told_at_every_address_and_where_to_turn() {
        let world = World::with_ada();
        set_for(&world, &world.users()[0], Occasion::Reset).unwrap();
        let letters = world.letters();
        let to: Vec<_> = letters.iter().map(|message| message.to.clone()).collect();
        assert_eq!(to, [Recipient::Email(ADDRESS.into()), Recipient::Phone(NUMBER.into())]);
        for message in letters {
            let Letter::PasswordChanged { when, browser, os, reset_url } = message.letter else { panic!("another") };
            assert_eq!((when, browser.as_str(), os.as_str()), (world.now(), "Firefox", "Linux"));
            assert_eq!(reset_url, "https://id.example.org/password-reset");
        }
    }

    #[test]
    fn nothing_is_done_for_a_user_who_has_changed() {
        type Change = fn(&mut User);
        let changes: [Change; 4] = [
            |user| user.password_hash = Some("$another".into()),
            |user| user.password_hash = None,
            |user| user.is_active = false,
            |user| user.deleted_at = Some(time::OffsetDateTime::UNIX_EPOCH),
        ];
        for change in changes {
            let world = World::with_ada();
            let user = world.users().remove(0);
            world.sign_in(user.id);
            let (entries, audited) = (world.entries(), world.audited());
            world.on_next_commit(change);
            assert!(matches!(set_for(&world, &user, Occasion::Reset), Err(NewPasswordError::Changed)));
            assert_eq!((world.entries(), world.audited()), (entries, audited));
            assert_eq!(world.sessions()[0].ended_at, None);
            assert_ne!(world.users()[0].password_hash.as_deref(), Some(HASH));
            assert_eq!(world.users()[0].password_changed_at, None);
        }
    }

    #[test]
    fn a_letter_that_cannot_be_written_and_a_commit_that_fails_undo_everything() {
        type Break = fn(&World);
        let faults: [Break; 2] = [World::break_outbox, |world| world.fail_commits(true)];
        for fault in faults {
            let world = World::with_ada();
            world.sign_in(world.users()[0].id);
            let (user, audited) = (world.users().remove(0), world.audited());
            fault(&world);
            assert!(matches!(set_for(&world, &user, Occasion::Reset), Err(NewPasswordError::Unavailable(_))));
            assert!(world.users()[0] == user);
            assert_eq!(world.sessions()[0].ended_at, None);
            assert_eq!(world.audited(), audited);
        }
    }

    #[test]
    fn a_store_that_fails_after_the_commit_undoes_nothing_and_old_links_are_dead_all_the_same() {
        let world = World::with_ada();
        let user = world.users().remove(0);
        let to = crate::services::identifier::Identifier::email(ADDRESS).unwrap();
        let (letter, put) = reset_flow::letter(&world, &user, &to);
        run(world.put(&put.key, &put.value, put.ttl)).unwrap();
        run(world.clone().enqueue(&letter)).unwrap();
        let (_, token) = world.link();
        assert!(run(reset_flow::check_token(&world, &user, &token)).unwrap().is_some());
        world.fail_store(true);
        set_for(&world, &user, Occasion::Reset).unwrap();
        world.fail_store(false);
        let user = world.users().remove(0);
        assert_eq!(user.password_hash.as_deref(), Some(HASH));
        assert!(run(reset_flow::check_token(&world, &user, &token)).unwrap().is_none());
    }

    #[test]
    fn who_had_no_password_gets_one() {
        let world = World::with_ada();
        world.change_user(|user| user.password_hash = None);
        set_for(&world, &world.users()[0], Occasion::Reset).unwrap();
        assert_eq!(world.users()[0].password_hash.as_deref(), Some(HASH));
    }
}
